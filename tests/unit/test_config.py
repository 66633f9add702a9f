"""Host configuration: defaults, file, environment, and what is refused."""

from pathlib import Path

import pytest

from hypercore import config
from hypercore.config import HostConfig
from hypercore.errors import InvalidArgument, NotFound


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYPERCORE_CONTAINERD_SOCKET", raising=False)
    monkeypatch.setenv("HYPERCORE_RUN_DIR", "/run/elsewhere")
    monkeypatch.setenv("HYPERCORE_CONFIG", str(tmp_path / "none.toml"))


def test_defaults_follow_the_run_dir() -> None:
    loaded = config.load(environ={})
    assert loaded == HostConfig()
    assert loaded.containerd_socket == Path("/run/elsewhere/containerd.sock")
    assert loaded.namespace == "hypercore"


def test_file_then_environment(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [containerd]
        socket = "/run/c.sock"
        namespace = "from-file"
        [network]
        pool = "10.9.0.0/20"
        [vm]
        upper_size_mib = 512
        boot_timeout_s = 9
        [logs]
        segments = 2
        [shim]
        vms_per_server = 1
        [binaries]
        qemu = "/opt/qemu"
        """,
    )
    environ = {"HYPERCORE_NAMESPACE": "from-env", "HYPERCORE_UPPER_SIZE_MIB": "64"}
    assert config.load(path, environ) == HostConfig(
        containerd_socket=Path("/run/c.sock"),
        namespace="from-env",
        network_pool="10.9.0.0/20",
        upper_size_mib=64,
        boot_timeout_s=9,
        log_segments=2,
        vms_per_server=1,
        binaries={"qemu": Path("/opt/qemu")},
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[vm]\nuper_size_mib = 1", r"config.toml:2: \[vm\] uper_size_mib: unknown key"),
        ("[vms]", "config.toml:1: vms: unknown table"),
        ("[vm]\nupper_size_mib = 1", r"upper_size_mib = 1: must be 16 to"),
        ("[network]\npool = '8.8.0.0/16'", "must be a private network"),
        ("[network]\npool = '10.0.0.1/16'", "must be an IPv4 network"),
        ("[network]\npool = '10.0.0.0/30'", "must be a /8 to /24"),
        ("[containerd]\nnamespace = 'a/b'", "must be letters"),
        ("[binaries]\nqemu = 1", "must be a string"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(InvalidArgument, match=wanted):
        config.load(write(tmp_path, text + "\n"), {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HYPERCORE_UPPER_SIZE_MIB", "-1"),
        ("HYPERCORE_BOOT_TIMEOUT_S", "soon"),
        ("HYPERCORE_NETWORK_POOL", "10.0.0.0"),
        ("HYPERCORE_NAMESPACE", "../x"),
    ],
)
def test_mistakes_in_the_environment(name: str, value: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{name}={value}: must be"):
        config.load(environ={name: value})


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        config.load(tmp_path / "missing.toml", {})
