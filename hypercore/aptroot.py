"""Debian packages in a private directory: fetched by the host's apt, verified, never installed.

Gives hypercore programs of one pinned suite (containerd, the guest's crun and compiler) whatever
the host's distribution is. apt does the network and the signatures, with the proxy and mirror the
host's own apt uses; dpkg-deb unpacks. Nothing of the host's package database is touched, no
maintainer script runs. Not a package manager: what is unpacked stays as it is until the caller
removes the directory.
"""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from hypercore import paths
from hypercore.errors import AlreadyExists, InvalidArgument, Unavailable

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PUBLIC_MIRROR = "http://deb.debian.org/debian"
PUBLIC_SECURITY_MIRROR = "http://deb.debian.org/debian-security"
RECORD = ".packages.json"
"""File in an unpacked directory that lists what it was made of."""

_WITH_SECURITY = frozenset({"bookworm", "trixie"})
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

Progress = Callable[[str], None]


def fetch(
    packages: Iterable[str],
    *,
    suite: str,
    into: Path,
    progress: Progress,
    dependencies: bool = False,
) -> None:
    """Unpack `packages` of Debian's `suite` into the new directory `into`.

    Returns at once when `into` already holds them. Otherwise `into` appears whole or not at all.
    Safe to call from several processes.

    Args:
        packages: binary package names.
        suite: code name of the suite, such as "bookworm".
        into: directory to make; its parents are made too.
        progress: called with one line for each step.
        dependencies: unpack all that the packages depend on too, down to libc.

    Raises:
        Unavailable: apt or the mirror failed; `detail` has apt's words.
        AlreadyExists: `into` is there but holds something else.
    """
    wanted = sorted(set(packages))
    have = _read_record(into)
    if have is not None and (have.suite, have.wanted) == (suite, wanted):
        return
    if into.exists():
        raise AlreadyExists(
            f"{into} exists and does not hold the packages {' '.join(wanted)} of {suite}",
            hint=f"remove it and try again: rm -r {into}",
        )
    into.parent.mkdir(parents=True, exist_ok=True)
    with (
        _apt(suite, progress) as apt,
        tempfile.TemporaryDirectory(prefix=f".{into.name}-", dir=into.parent) as scratch,
    ):
        archives = Path(scratch) / "archives"
        (archives / "partial").mkdir(parents=True)
        progress(f"fetching {', '.join(wanted)} from Debian {suite}")
        if dependencies:
            command = ["install", "--download-only", "--no-install-recommends", "-y", *wanted]
            apt.run("apt-get", f"-oDir::Cache::archives={archives}", *command)
        else:
            apt.run("apt-get", "download", *wanted, cwd=archives)
        tree = Path(scratch) / "tree"
        tree.mkdir(mode=0o755)
        versions = {}
        debs = sorted(archives.glob("*.deb"))
        for deb in debs:
            name, version = _unpack(deb, tree)
            versions[name] = version
        progress(f"unpacked {len(debs)} packages")
        record = asdict(_Record(suite, wanted, versions))
        (tree / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        tree.rename(into)


def wanted(directory: Path) -> list[str]:
    """The packages that `fetch` was asked for in making a directory; empty for any other."""
    record = _read_record(directory)
    return record.wanted if record else []


def versions(directory: Path) -> dict[str, str]:
    """Versions by package name of a directory that `fetch` made; empty for any other."""
    record = _read_record(directory)
    return record.versions if record else {}


def depends(package: str, *, suite: str, progress: Progress) -> tuple[str, ...]:
    """Names of the packages that `package` depends on, first alternatives only."""
    with _apt(suite, progress) as apt:
        text = apt.run("apt-cache", "show", "--no-all-versions", package)
    for line in text.splitlines():
        if line.startswith("Depends:"):
            terms = line.removeprefix("Depends:").split(",")
            return tuple(term.split("|")[0].split("(")[0].strip() for term in terms)
    return ()


@dataclass(frozen=True, slots=True)
class _Record:
    """What an unpacked directory was made of."""

    suite: str
    wanted: list[str]
    versions: dict[str, str]


class _Apt:
    """apt with all its state in `directory`, which outlives it as a cache."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, program: str, *args: str, cwd: Path | None = None) -> str:
        path = shutil.which(program)
        if path is None:
            raise Unavailable(f"{program} is not installed", hint="use a Debian or Ubuntu host")
        argv = [path, "-q", f"-c={self.directory / 'apt.conf'}", *args]
        env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(
            argv, cwd=cwd, env=env, text=True, stdin=subprocess.DEVNULL, capture_output=True
        )
        if done.returncode != 0:
            hint = "is the package mirror reachable? (`apt-get update` uses the same one)"
            if "is expired" in done.stderr:
                hint = "this mirror is out of date: name another one in /etc/apt/sources.list"
            raise Unavailable(
                f"{program} {args[-1]} failed for {self.directory.name}: {_reason(done.stderr)}",
                hint=hint,
                detail=done.stderr,
            )
        return done.stdout


@contextmanager
def _apt(suite: str, progress: Progress) -> Iterator[_Apt]:
    """apt for `suite` with fresh package lists, under a lock."""
    if not suite.isalnum():
        raise InvalidArgument(f"suite {suite!r} is not the code name of a Debian suite")
    if not KEYRING.exists():
        raise Unavailable(
            f"{KEYRING} is missing: packages of Debian {suite} cannot be verified",
            hint="apt-get install debian-archive-keyring",
        )
    directory = paths.data_dir() / "cache" / "apt" / suite
    (directory / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = _sources(suite)
        (directory / "sources.list").write_text(sources)
        (directory / "status").touch()
        (directory / "apt.conf").write_text(_configuration(directory))
        apt = _Apt(directory)
        fresh = directory / "updated"
        if not fresh.exists() or fresh.read_text() != sources:
            progress(f"reading the package lists of Debian {suite}")
            apt.run("apt-get", "update")
            fresh.write_text(sources)
        try:
            yield apt
        except Unavailable:
            # Old lists name packages that the mirror has replaced: read them anew next time.
            fresh.unlink(missing_ok=True)
            raise


def _configuration(directory: Path) -> str:
    """apt.conf: read after the host's, so that proxies stay and the host's hooks do not."""
    arch = _ARCHITECTURES.get(platform.machine(), platform.machine())
    values = {
        "APT::Architecture": arch,
        "APT::Sandbox::User": "root",  # _apt may not enter the data directory
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "Acquire::Retries": "3",
        "Dir::State": str(directory),
        "Dir::State::lists": str(directory / "lists"),
        "Dir::State::status": str(directory / "status"),
        "Dir::Cache": str(directory),
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Dir::Etc::sourcelist": str(directory / "sources.list"),
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
    }
    hooks = (
        "APT::Architectures",
        "APT::Update::Pre-Invoke",
        "APT::Update::Post-Invoke",
        "APT::Update::Post-Invoke-Success",
        "DPkg::Pre-Install-Pkgs",
        "DPkg::Post-Invoke",
        "Acquire::IndexTargets::deb::DEP-11",
        "Acquire::IndexTargets::deb::DEP-11-icons-small",
        "Acquire::IndexTargets::deb::DEP-11-icons",
        "Acquire::IndexTargets::deb::DEP-11-icons-large",
    )
    lines = [f"#clear {hook};" for hook in hooks]
    lines += [f'{key} "{value}";' for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _sources(suite: str) -> str:
    main, security = host_mirrors()
    options = f"[signed-by={KEYRING}]"
    lines = [f"deb {options} {main} {suite} main"]
    if suite in _WITH_SECURITY:
        lines += [
            f"deb {options} {main} {suite}-updates main",
            f"deb {options} {security} {suite}-security main",
        ]
    return "\n".join(lines) + "\n"


def host_mirrors(etc_apt: Path = Path("/etc/apt")) -> tuple[str, str]:
    """The URIs of Debian's main and security archives that this host's own apt uses."""
    main, security = PUBLIC_MIRROR, PUBLIC_SECURITY_MIRROR
    files = [etc_apt / "sources.list", *sorted(etc_apt.glob("sources.list.d/*"))]
    found = [uri.rstrip("/") for path in files for uri in _uris(path)]
    for uri in reversed(found):
        if uri.endswith("/debian-security"):
            security = uri
        elif uri.endswith("/debian"):
            main = uri
    return main, security


def _uris(path: Path) -> Iterator[str]:
    """URIs of a sources file, in the one-line or the deb822 format (sources.list(5))."""
    if path.suffix not in (".list", ".sources") or not path.is_file():
        return
    for line in path.read_text(errors="replace").splitlines():
        words = line.split()
        if path.suffix == ".sources":
            if words and words[0].lower() == "uris:":
                yield from words[1:]
        elif words and words[0] == "deb":
            rest = line.split("]", 1)[1].split() if "[" in line else words[1:]
            yield from rest[:1]


def _unpack(deb: Path, tree: Path) -> tuple[str, str]:
    query = ["dpkg-deb", "--show", "--showformat=${Package}\n${Version}", str(deb)]
    name, version = _dpkg(query).split("\n")
    _dpkg(["dpkg-deb", "--extract", str(deb), str(tree)])
    return name, version


def _dpkg(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, text=True, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(argv[:2])} failed: {_reason(done.stderr)}")
    return done.stdout


def _read_record(directory: Path) -> _Record | None:
    try:
        return _Record(**json.loads((directory / RECORD).read_text()))
    except FileNotFoundError:
        return None


def _reason(stderr: str) -> str:
    """apt's first error line: the later ones follow from it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")]
    return (errors or lines or ["no message"])[0]
