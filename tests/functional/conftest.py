"""Fixtures of the functional tier: an instance with containerd, a registry, a VM to share.

Session fixtures come up before the leak check of the first test that wants them, so that it sees
them as given.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hypercore import aptroot
from tests.functional import images, instance, leaks, registry
from tests.functional.instance import Instance
from tests.functional.registry import Registry

DEMO_REF = "docker.io/hypercore/hello:latest"
SHELL_REF = "docker.io/test/shell:1"
"""busybox whose command reads commands from its stdin"""


@pytest.fixture(scope="session")
def hypercore(root: None) -> Iterator[Instance]:
    """An instance with containerd running and the demo image in it."""
    if not instance.HYPERCORE.exists():
        pytest.fail(f"{instance.HYPERCORE} is missing: run make build")
    with instance.instance(instance.shared_data_dir()) as made:
        made.run("setup", timeout=900)
        made.boot("spawn", "--rm", DEMO_REF)  # starts the shim server, which stays
        yield made


@pytest.fixture(scope="session")
def expendable(root: None, shell_archive: Path) -> Iterator[Instance]:
    """A second instance with SHELL_REF, for tests that end all that an instance runs."""
    with instance.instance(instance.shared_data_dir()) as made:
        made.run("containerd", "start")
        made.run("image", "load", shell_archive)
        made.boot("spawn", "--rm", SHELL_REF, "true")
        yield made


@pytest.fixture(autouse=True)
def _nothing_left_on_the_host(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test after which the instance has more, or less, than before."""
    names = [name for name in ("hypercore", "expendable") if name in request.fixturenames]
    before = {made: leaks.take(made) for made in map(request.getfixturevalue, names)}
    yield
    differences = [line for made, was in before.items() for line in leaks.compare(made, was)]
    assert not differences, "the host is not as before:\n" + "\n".join(differences)


@pytest.fixture(scope="session")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The registry's program: the host's, else Debian's, unpacked beside our other tools."""
    if path := shutil.which("docker-registry"):
        return Path(path)
    into = instance.shared_data_dir() / "tools" / "docker-registry"
    aptroot.fetch(["docker-registry"], suite="bookworm", into=into, progress=print)
    return into / "usr" / "bin" / "docker-registry"


@pytest.fixture(scope="session")
def local_registry(
    docker_registry: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    """An open registry on loopback that holds test/shell:1."""
    with registry.serve(docker_registry, tmp_path_factory.mktemp("registry")) as served:
        images.push(images.busybox_image(), served.host, "test/shell", "1")
        yield served


@pytest.fixture(scope="session")
def shell_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = tmp_path_factory.mktemp("image") / "shell.tar"
    images.write_oci_archive(images.busybox_image(), SHELL_REF, archive)
    return archive


@pytest.fixture(scope="session")
def shell_image(hypercore: Instance, shell_archive: Path) -> str:
    """The reference of an imported image whose command is a shell."""
    hypercore.run("image", "load", shell_archive)
    return SHELL_REF


@dataclass(frozen=True, slots=True)
class SharedVM:
    """A running VM whose shell waits on its stdin: for exec and looking, not for stopping."""

    microvm_id: str
    made: Instance

    def exec(self, *command: str, **options: object) -> instance.Result:
        return self.made.run("exec", self.microvm_id, *command, **options)


@pytest.fixture(scope="session")
def shared_vm(hypercore: Instance, shell_image: str) -> Iterator[SharedVM]:
    microvm_id = hypercore.spawn(shell_image)
    yield SharedVM(microvm_id, hypercore)
    hypercore.run("rm", "--force", microvm_id)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for failure in instance.retried_boots:
        terminalreporter.section("boot tried once more")
        terminalreporter.write_line(failure)
