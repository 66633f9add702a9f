"""`hypercore setup --provider`: a release from a server of the test's own, good and bad."""

import asyncio
import hashlib
import http.server
import io
import ssl
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hypercore import host_setup, vmm_release
from hypercore.config import HostConfig
from hypercore.errors import HypercoreError, InvalidArgument, Unavailable
from hypercore.providers.firecracker import FirecrackerProvider
from tests import fake_firecracker

pytestmark = pytest.mark.usefixtures("root")

MEMBER = "release-v1.12.1-x86_64/firecracker-v1.12.1-x86_64"


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(directory: Path, certificate: tuple[Path, Path] | None = None) -> Iterator[str]:
    """The files of `directory` by HTTP, or HTTPS; yields the URL's beginning."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: _Handler(*args, directory=str(directory))
    )
    scheme = "http"
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate[1], certificate[0])
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"{scheme}://localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory with firecracker.tgz, as its project publishes it, and its sum."""
    directory = tmp_path / "site"
    directory.mkdir()
    write_release(directory / "firecracker.tgz", fake_firecracker.install(tmp_path / "program"))
    return directory


def write_release(path: Path, program: Path) -> str:
    with tarfile.open(path, "w:gz") as archive:
        for name in (MEMBER, MEMBER + ".debug", MEMBER.replace("firecracker-v", "jailer-v")):
            member = tarfile.TarInfo(name)
            content = program.read_bytes() if name == MEMBER else b"something else"
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    total = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".sha256.txt").write_text(f"{total}  {path.name}\n")
    return total


def sum_of(site: Path) -> str:
    return (site / "firecracker.tgz.sha256.txt").read_text().split()[0]


def install(url: str, sha256: str = "") -> None:
    provider = FirecrackerProvider()
    vmm_release.install("firecracker", lambda _: None, provider.version, url=url, sha256=sha256)


def assert_nothing_installed() -> None:
    directory = vmm_release.place("firecracker").parent
    assert not directory.exists() or list(directory.iterdir()) == []


def test_setup_takes_a_release_by_its_sum(site: Path) -> None:
    with serving(site) as server:
        wish = host_setup.Wish("firecracker", f"{server}/firecracker.tgz", sum_of(site).upper())
        step = host_setup._vmm_step(wish)
        config = HostConfig()

        async def body() -> None:
            assert not (await step.check(config)).ready
            lines: list[str] = []
            await step.apply(config, lines.append)
            found = await step.check(config)
            place = vmm_release.place("firecracker")
            assert (found.ready, found.text) == (True, f"1.12.1 at {place}")
            assert place.stat().st_mode & 0o777 == 0o755
            assert [path.name for path in place.parent.iterdir()] == ["firecracker"]
            assert lines[0].startswith("downloading http://localhost")

        asyncio.run(body())


def test_the_published_sum_comes_by_https(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, made = tmp_path / "key.pem", tmp_path / "ca.crt"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    argv += ["-nodes", "-days", "2", "-subj", "/CN=test", "-keyout", str(key), "-out", str(made)]
    argv += ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(argv, check=True, capture_output=True)
    with serving(site, (key, made)) as server:
        with pytest.raises(Unavailable, match="certificate verify failed"):
            install(f"{server}/firecracker.tgz")
        monkeypatch.setenv("SSL_CERT_FILE", str(made))
        install(f"{server}/firecracker.tgz")
    assert vmm_release.place("firecracker").exists()


@pytest.mark.parametrize(
    ("url", "sha256", "error", "named"),
    [
        ("{}/firecracker.tgz", "0" * 64, Unavailable, r"has SHA-256 \w+, not 0+: it was not"),
        ("{}/firecracker.tgz", "", InvalidArgument, "over plain HTTP anybody can change"),
        ("{}/firecracker.tgz", "abc", InvalidArgument, "must be 64 hexadecimal digits"),
        ("{}/nothing.tgz", "0" * 64, Unavailable, "cannot be had: HTTP Error 404"),
        ("ftp://localhost/x", "0" * 64, InvalidArgument, "must begin with https://"),
        ("http://localhost:9/x", "0" * 64, Unavailable, "cannot be had: .*[Rr]efused"),
    ],
)
def test_what_cannot_be_had_is_named(
    site: Path, url: str, sha256: str, error: type[HypercoreError], named: str
) -> None:
    with serving(site) as server, pytest.raises(error, match=named) as caught:
        install(url.format(server), sha256)
    assert caught.value.hint or "64" in named or "must begin" in named
    assert_nothing_installed()


def test_a_bad_release_leaves_the_old_program(site: Path, tmp_path: Path) -> None:
    with serving(site) as server:
        install(f"{server}/firecracker.tgz", sum_of(site))
        installed = vmm_release.place("firecracker")
        was = installed.read_bytes()
        old = tmp_path / "old"
        old.write_text("#!/bin/sh\necho Firecracker v1.2.0\n")
        total = write_release(site / "firecracker.tgz", old)
        with pytest.raises(Unavailable, match=r"is Firecracker 1\.2\.0, hypercore needs 1\.7"):
            install(f"{server}/firecracker.tgz", total)
        (site / "torn.tgz").write_bytes((site / "firecracker.tgz").read_bytes()[:200])
        total = hashlib.sha256((site / "torn.tgz").read_bytes()).hexdigest()
        with pytest.raises(Unavailable, match="cannot be unpacked"):
            install(f"{server}/torn.tgz", total)
        with tarfile.open(site / "empty.tgz", "w:gz"):
            pass
        total = hashlib.sha256((site / "empty.tgz").read_bytes()).hexdigest()
        with pytest.raises(Unavailable, match="holds no firecracker"):
            install(f"{server}/empty.tgz", total)
    assert installed.read_bytes() == was
    assert [path.name for path in installed.parent.iterdir()] == ["firecracker"]


def test_only_programs_that_are_published(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="--provider qemu: not published") as caught:
        vmm_release.install("qemu", print, lambda _: "")
    assert "firecracker" in caught.value.hint
    with pytest.raises(Unavailable, match="publishes no SHA-256"):
        vmm_release.install("cloud-hypervisor", print, lambda _: "")
