"""`hypercore setup --provider NAME`: a VMM from its project's own release, into our tools.

By URL and SHA-256: a pinned one, or the one that the project publishes beside the archive, which
is taken by HTTPS only. Nothing is put into place before it is whole, is what the sum says, and
names its version. Blocking.
"""

import contextlib
import hashlib
import os
import platform
import re
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hypercore import paths
from hypercore.errors import InvalidArgument, Unavailable, from_os_error

SILENCE_S = 30.0
"""Longest wait for the next bytes."""
DOWNLOAD_TIMEOUT_S = 600.0
MAX_BYTES = 512 << 20
CHUNK = 1 << 20

_ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "aarch64"}


@dataclass(frozen=True, slots=True)
class Release:
    """Where a project publishes its program."""

    url: str
    """an archive that holds the program, or the program alone; {arch} is the host's"""
    program: str
    sum_suffix: str = ""
    """what follows the URL of the published SHA-256; empty: the project publishes none"""


RELEASES = {
    "firecracker": Release(
        "https://github.com/firecracker-microvm/firecracker/releases/download/v1.12.1/"
        "firecracker-v1.12.1-{arch}.tgz",
        "firecracker",
        ".sha256.txt",
    ),
    "cloud-hypervisor": Release(
        "https://github.com/cloud-hypervisor/cloud-hypervisor/releases/download/v53.0/"
        "cloud-hypervisor-static",
        "cloud-hypervisor",
    ),
}


def place(provider: str) -> Path:
    """Where the program of `provider` is installed; base.find_binary looks there."""
    return paths.tools_dir() / provider / "bin" / RELEASES[provider].program


def install(
    provider: str,
    report: Callable[[str], None],
    verify: Callable[[Path], str],
    *,
    url: str = "",
    sha256: str = "",
) -> None:
    """Download, check and install the VMM of `provider`.

    Args:
        verify: returns the version of a program, or raises Unavailable if it will not do.
        url: instead of the project's; http is taken with `sha256` only.
        sha256: what the download must have, in hex.

    Raises:
        InvalidArgument: there is no release of this provider, or the URL or sum is no such thing.
        Unavailable: it cannot be had, or is not what it should be. Nothing is changed then.
    """
    release = RELEASES.get(provider)
    if release is None:
        raise InvalidArgument(
            f"--provider {provider}: not published as a program",
            hint="`hypercore setup` installs qemu; releases are known of " + ", ".join(RELEASES),
        )
    source = url or release.url.format(arch=_architecture(provider))
    pinned = _check_source(source, sha256)
    if not pinned:
        pinned = _published_sum(source, release, own=not url)
    target = place(provider)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as scratch:
            archive, program = Path(scratch) / "download", Path(scratch) / release.program
            report(f"downloading {source}")
            got = _download(source, archive)
            if got != pinned:
                raise Unavailable(
                    f"{source} has SHA-256 {got}, not {pinned}: it was not installed",
                    hint="try again; if it stays so, somebody has changed the file",
                )
            _extract(archive, release.program, program)
            program.chmod(0o755)
            version = verify(program)
            os.rename(program, target)
    except OSError as exc:
        raise from_os_error(exc, f"install {provider} in {target.parent}") from exc
    report(f"{version} in {target}")


def _architecture(provider: str) -> str:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise Unavailable(f"{provider} is not published for {machine}")
    return _ARCHITECTURES[machine]


def _check_source(url: str, sha256: str) -> str:
    """The pinned sum in lower case, or nothing."""
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InvalidArgument(f"--sha256 {sha256!r}: must be 64 hexadecimal digits")
    if not url.startswith(("https://", "http://")):
        raise InvalidArgument(f"--url {url!r}: must begin with https:// or http://")
    if url.startswith("http://") and not sha256:
        raise InvalidArgument(
            f"--url {url}: over plain HTTP anybody can change the file on its way",
            hint="use https://, or give its SHA-256: --sha256",
        )
    return sha256.lower()


def _published_sum(url: str, release: Release, *, own: bool) -> str:
    if not release.sum_suffix:
        raise Unavailable(
            f"its project publishes no SHA-256 of {url}",
            hint="look at the file yourself, and give its sum: --sha256",
        )
    with _open(url + release.sum_suffix) as answer:
        text = answer.read(1024).decode(errors="replace")
    match = re.match(r"\s*([0-9a-fA-F]{64})\b", text)
    if match is None:
        whose = "the project's" if own else "that"
        raise Unavailable(
            f"{url + release.sum_suffix}: {whose} file holds no SHA-256: {text[:60]!r}"
        )
    return match[1].lower()


@contextlib.contextmanager
def _open(url: str) -> Iterator[BinaryIO]:
    request = urllib.request.Request(url, headers={"User-Agent": "hypercore"})
    try:
        with urllib.request.urlopen(request, timeout=SILENCE_S) as answer:
            yield answer
    except (urllib.error.URLError, TimeoutError, ConnectionError) as exc:
        reason: object = exc
        if isinstance(exc, urllib.error.HTTPError):
            exc.close()
        elif isinstance(exc, urllib.error.URLError):
            reason = exc.reason
        raise Unavailable(
            f"{url} cannot be had: {reason}",
            hint="without a way to it, download it elsewhere, and name the program in config.toml:"
            " [binaries]",
        ) from exc


def _download(url: str, into: Path) -> str:
    """Its SHA-256 in hex."""
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT_S
    digest, size = hashlib.sha256(), 0
    with _open(url) as answer, into.open("wb") as file:
        while chunk := answer.read(CHUNK):
            digest.update(chunk)
            size += file.write(chunk)
            if size > MAX_BYTES:
                raise Unavailable(f"{url} is larger than {MAX_BYTES >> 20} MiB: that is no VMM")
            if time.monotonic() > deadline:
                raise Unavailable(f"{url} did not arrive within {DOWNLOAD_TIMEOUT_S:g} s")
    return digest.hexdigest()


def _extract(download: Path, program: str, into: Path) -> None:
    """The program out of an archive of the release, or the download itself."""
    if not tarfile.is_tarfile(download):
        download.rename(into)
        return
    wanted = re.compile(rf"(?:.*/)?{re.escape(program)}(?:-v[0-9][^/]*)?")
    try:
        with tarfile.open(download) as archive:
            members = [
                member
                for member in archive
                if member.isfile()
                and wanted.fullmatch(member.name)
                and not member.name.endswith((".debug", ".sig", ".txt"))
            ]
            if len(members) != 1 or members[0].size > MAX_BYTES:
                raise Unavailable(
                    f"the release holds no {program}, or several: "
                    + (", ".join(member.name for member in members) or "none")
                )
            content = archive.extractfile(members[0])
            assert content is not None
            with content, into.open("wb") as file:
                while chunk := content.read(CHUNK):
                    file.write(chunk)
    except (tarfile.TarError, EOFError, zlib.error) as exc:
        raise Unavailable(f"the release cannot be unpacked: {exc}") from exc
