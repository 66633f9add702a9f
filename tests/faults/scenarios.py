"""What the rooms do, small enough to be repeated for each of its system calls.

A scenario's `ready` sets the stage without faults, yields what is run with them, and clears up.
What is run must succeed, verified by its own assertions, or raise.
"""

import contextlib
import errno
import os
import select
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from hypercore import _blockio, _inotify, _process, _tap, _vsock, block, netlink, nft, ruleset
from tests.faults import pump
from tests.integration import netlab

MIB = 1024 * 1024
DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True)
class Scenario:
    rooms: tuple[ModuleType, ...]
    ready: Callable[[], AbstractContextManager[Callable[[], None]]]
    tolerates: frozenset[str] = frozenset()
    """functions whose failure need not be told: the result is right without them"""
    translates: frozenset[int] = frozenset()
    """errnos that may be raised in place of the one that was met"""
    tells_by_event: bool = False
    """an error need not be raised: what is run knows whether it was told"""


SCENARIOS: dict[str, Scenario] = {
    "pump": Scenario(pump.ROOMS, pump.ready, tells_by_event=True),
}


def scenario(
    *rooms: ModuleType, tolerates: tuple[str, ...] = (), translates: tuple[int, ...] = ()
) -> Callable[[Callable[[], Iterator[Callable[[], None]]]], None]:
    def add(ready: Callable[[], Iterator[Callable[[], None]]]) -> None:
        SCENARIOS[ready.__name__] = Scenario(
            rooms,
            contextlib.contextmanager(ready),
            frozenset(tolerates),
            frozenset(translates),
        )

    return add


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hct-faults-", dir="/var/tmp") as made:
        yield Path(made)


@contextlib.contextmanager
def _opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _data_dir(path: Path) -> Iterator[None]:
    before = os.environ.get("HYPERCORE_DATA_DIR")
    os.environ["HYPERCORE_DATA_DIR"] = str(path)
    try:
        yield
    finally:
        del os.environ["HYPERCORE_DATA_DIR"]
        if before is not None:
            os.environ["HYPERCORE_DATA_DIR"] = before


# -- vsock --


@scenario(_vsock)
def connect_hybrid() -> Iterator[Callable[[], None]]:
    def answer() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:  # closed: the end
                return
            with peer, contextlib.suppress(OSError):
                if peer.recv(64).endswith(b"\n"):
                    peer.sendall(b"OK 1024\nhello")
                    peer.recv(1)

    with _directory() as here, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(here / "vsock"))
        listener.listen()
        server = threading.Thread(target=answer)
        server.start()

        def run() -> None:
            fd = _vsock.connect_hybrid(here / "vsock", 77, DEADLINE_S)
            try:
                assert select.select([fd], [], [], DEADLINE_S)[0]
                assert os.read(fd, 64) == b"hello"
            finally:
                os.close(fd)

        try:
            yield run
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            server.join()


# -- processes --
#
# prctl: PR_GET_DUMPABLE cannot fail; where it seemed to, the process only stays as it was.


def _ended(pidfd: int) -> int | None:
    try:
        assert select.select([pidfd], [], [], DEADLINE_S)[0], "the process did not end"
        return os.waitid(os.P_PIDFD, pidfd, os.WEXITED).si_status  # type: ignore[union-attr]
    finally:
        os.close(pidfd)


@scenario(_process, tolerates=("prctl",))
def spawn_plain() -> Iterator[Callable[[], None]]:
    def run() -> None:
        reader, writer = os.pipe()
        try:
            try:
                _, pidfd = _process.spawn(["/bin/echo", "out"], env={}, fds=[(writer, 1)])
            finally:
                os.close(writer)
            assert _ended(pidfd) == 0
            assert os.read(reader, 64) == b"out\n"
        finally:
            os.close(reader)

    yield run


@scenario(_process, tolerates=("prctl",))
def spawn_confined() -> Iterator[Callable[[], None]]:
    binds = (
        _process.Bind("/usr", "/usr"),
        _process.Bind("/dev/null", "/dev/null", False, True),
    )
    links = (("usr/lib", "/lib"), ("usr/lib64", "/lib64"), ("usr/bin", "/bin"))
    with _directory() as root, netlab.namespace() as netns:
        jail = _process.Jail(
            str(root), binds=binds, symlinks=links, directories=("/tmp/made",), proc=True
        )

        def run() -> None:
            _, pidfd = _process.spawn(
                ["/usr/bin/true"],
                env={},
                namespaces=_process.CLONE_NEWNS | _process.CLONE_NEWPID | _process.CLONE_NEWIPC,
                netns_fd=netns,
                uid=61234,
                gid=61234,
                groups=(61235,),
                rlimits=((7, 64, 64),),
                oom_score_adj=500,
                root=jail,
            )
            assert _ended(pidfd) == 0

        yield run
        assert not os.path.ismount(root)


@scenario(_process, tolerates=("prctl",))
def watch_process() -> Iterator[Callable[[], None]]:
    started: list[int] = []
    try:

        def run() -> None:
            pid, pidfd = os.getpid(), os.pidfd_open(os.getpid())
            os.close(pidfd)
            assert _process.start_time(pid) > 0
            child, pidfd = _process.spawn(["/bin/sleep", "60"], env={})
            started.append(pidfd)
            assert _process.reap(pidfd) is None
            _process.send_signal(pidfd, signal.SIGKILL)
            assert select.select([pidfd], [], [], DEADLINE_S)[0]
            assert _process.start_time(child) == 0
            assert _process.reap(pidfd) == -signal.SIGKILL

        yield run
    finally:
        for pidfd in started:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)


# -- disks --


@scenario(_blockio)
def stamp() -> Iterator[Callable[[], None]]:
    with _directory() as here, _data_dir(here / "data"):
        image = here / "template"
        block.create_upper(image, 16)  # what was stamped serves as a template as well

        def run() -> None:
            target = here / "upper"
            target.unlink(missing_ok=True)
            with _opened(image, os.O_RDONLY) as template_fd, _opened(target) as fd:
                template = _blockio.load_template(template_fd)
                template.write(fd, bytes(range(16)))
                assert _blockio.probe_image(fd) == ("ext4", 4096, 16 * MIB, bytes(range(16)))

        yield run


# poll only asks whether to stop: at the next step again
@scenario(_blockio, tolerates=("poll",))
def copy_sparse() -> Iterator[Callable[[], None]]:
    with _directory() as here:
        with _opened(here / "source") as fd:
            os.pwrite(fd, b"a" * 5000, 4096)
            os.pwrite(fd, b"b" * 5000, 3 * MIB)
            os.truncate(fd, 4 * MIB)

        def run() -> None:
            (here / "copy").unlink(missing_ok=True)
            with (
                _opened(here / "source", os.O_RDONLY) as src,
                _opened(here / "copy") as dst,
                _eventfd() as progress,
                _eventfd() as cancel,
            ):
                copied = _blockio.copy_sparse(src, dst, progress, cancel)
                assert os.eventfd_read(progress) == copied
            assert (here / "copy").read_bytes() == (here / "source").read_bytes()

        yield run


@scenario(_blockio)
def reserve() -> Iterator[Callable[[], None]]:
    with _directory() as here:

        def run() -> None:
            (here / "file").unlink(missing_ok=True)
            with _opened(here / "file") as fd:
                _blockio.preallocate(fd, MIB, False)
                assert os.fstat(fd).st_blocks * 512 >= MIB
                _blockio.discard(fd, 0, MIB)
                assert os.fstat(fd).st_blocks * 512 < MIB

        yield run


@scenario(_blockio)
def loop() -> Iterator[Callable[[], None]]:
    with _directory() as here, _opened(here / "file") as fd:
        os.truncate(fd, MIB)

        def run() -> None:
            loop_fd, minor = _blockio.loop_attach(fd, False)
            backing = Path(f"/sys/block/loop{minor}/loop/backing_file")
            assert backing.read_text().strip() == str(here / "file")
            _blockio.loop_detach(loop_fd)
            assert not backing.exists()

        yield run
        attached = Path("/sys/block").glob("loop*/loop/backing_file")
        assert not any(path.read_text().startswith(str(here)) for path in attached)


# -- links and rules --
#
# setsockopt asks for better messages and bigger buffers, which older kernels do not have. Answers
# wait when send() returns: EAGAIN instead of them means that there are none (EPROTO).
NETLINK_TOLERATES = ("setsockopt",)


@contextlib.contextmanager
def _host() -> Iterator[None]:
    with netlab.namespace() as fd, netlab.inside(fd):
        yield
        _tap.close_idle()


@scenario(_tap, tolerates=NETLINK_TOLERATES, translates=(errno.EPROTO,))
def tap() -> Iterator[Callable[[], None]]:
    with _host():
        before = len(netlink.links())

        def run() -> None:
            fd, ifindex = _tap.create(
                b"t0",
                group=7,
                alias=b"of test",
                mac=b"\x02\0\0\0\0\x01",
                address4=bytes([10, 1, 0, 1]),
                prefix4=30,
                neighbour_mac=b"\x02\0\0\0\0\x02",
                neighbour4=bytes([10, 1, 0, 2]),
            )
            try:
                _tap.set_group([ifindex], 8)
                assert _tap.delete_group(8)
                assert not _tap.delete(ifindex)
            finally:
                os.close(fd)

        yield run
        assert len(netlink.links()) == before, "a link is left"


@scenario(_tap, tolerates=NETLINK_TOLERATES, translates=(errno.EPROTO,))
def tap_of_a_namespace() -> Iterator[Callable[[], None]]:
    with _host(), netlab.namespace() as other:
        own = os.readlink("/proc/thread-self/ns/net")

        def run() -> None:
            try:
                fd, _ = _tap.create(b"t0", group=7, netns_fd=other)
                os.close(fd)
                os.close(_tap.new_netns())
            finally:
                assert os.readlink("/proc/thread-self/ns/net") == own, "in another namespace"

        yield run


@scenario(_tap, tolerates=NETLINK_TOLERATES, translates=(errno.EPROTO,))
def nft_elements() -> Iterator[Callable[[], None]]:
    with _host():
        element = nft.Element(ruleset.SENDERS, nft.ifname("t0") + nft.mac(b"\2\0\0\0\0\1"))

        def run() -> None:
            nft.install(ruleset.BRIDGED)
            assert nft.installed(ruleset.BRIDGED)
            nft.add([element], "vm")
            assert nft.elements(ruleset.SENDERS) == [(element, "vm")]
            nft.delete([element])
            assert nft.elements(ruleset.SENDERS) == []

        yield run
        nft.remove(ruleset.BRIDGED)


# -- directories --


@scenario(_inotify)
def watch_directory() -> Iterator[Callable[[], None]]:
    with _directory() as here:

        def run() -> None:
            fd = _inotify.watch_directory(here)
            try:
                (here / "new").touch()
                assert select.select([fd], [], [], DEADLINE_S)[0]
            finally:
                os.close(fd)
                (here / "new").unlink(missing_ok=True)

        yield run
