"""What a microVM's network consists of: as told to VMM and agent, and as recorded for its removal.

The record is written before the things it names are made, so that whoever finds it can remove
them: no guest, no VMM, no shim server needed, and no listing of everybody else's.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hypercore import nft, paths, ruleset
from hypercore.proto.agent_pb import Interface

GUEST_NIC = "eth0"


@dataclass(frozen=True, slots=True)
class LeaseLink:
    """The host's end of a guest's link, where a DHCP server may be asked for it."""

    name: str
    """device whose outgoing frames are those to the guest"""
    mac: bytes
    """the guest's"""
    fd: int
    """where frames of the guest's are written: its TAP, or a packet socket"""
    is_tap: bool = True


@dataclass(frozen=True, slots=True)
class Attachment:
    """A microVM's end of the network.

    `tap_fd` is the caller's to hand to the VMM and to close; the TAP ends with its last copy.
    `port_fds` are the caller's too, to be kept open as long as the microVM has its ports.
    A VMM that opens its TAP by name gets `netns_fd`, the network namespace to run it in. Without
    a network both are -1, and there is nothing to configure.
    """

    tap_name: str = ""
    tap_fd: int = -1
    ifindex: int = 0
    mac: str = ""
    interfaces: tuple[Interface, ...] = ()
    dns_servers: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    netns_fd: int = -1
    port_fds: tuple[int, ...] = ()
    dhcp: LeaseLink | None = None
    """where to ask for the guest's IPv4 address, which it lacks; its fd is the caller's"""
    dns_is_default: bool = False
    """nobody asked for these servers and domains; a DHCP server's own go before"""


@dataclass(frozen=True, slots=True)
class Redirect:
    """A device in another network namespace whose incoming frames go to a TAP."""

    netns_path: str
    netns_inode: int
    ifindex: int


@dataclass(frozen=True, slots=True)
class Record:
    """What of a microVM's network does not end with its VMM."""

    elements: tuple[nft.Element, ...] = ()
    redirects: tuple[Redirect, ...] = ()


def write_record(microvm_id: str, record: Record) -> None:
    lines = [
        f"element {each.of.family} {each.of.name} {each.key.hex()} {each.data.hex()}"
        f" {each.last.hex()} {each.rate}"
        for each in record.elements
    ]
    lines += [
        f"redirect {each.ifindex} {each.netns_inode} {each.netns_path}"
        for each in record.redirects
    ]
    content = "".join(line + "\n" for line in lines).encode()
    path = paths.MicroVMPaths(microvm_id).network
    try:
        _write(path, content)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path, content)


def _write(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


def read_record(microvm_id: str) -> Record:
    """The record of a microVM; an empty one if there is none. A line cut short is passed over: it
    was being written, so what it names does not exist yet."""
    sets = {(str(each.family), each.name): each for each in ruleset.VM_SETS}
    elements: list[nft.Element] = []
    redirects: list[Redirect] = []
    try:
        text = paths.MicroVMPaths(microvm_id).network.read_text()
    except FileNotFoundError:
        return Record()
    for line in text.split("\n")[:-1]:
        kind, _, rest = line.partition(" ")
        match kind, rest.split(" ", 5 if kind == "element" else 2):
            case "element", [family, name, *values, rate] if (family, name) in sets:
                key, data, last = map(bytes.fromhex, values)
                made = nft.Element(sets[family, name], key, data, last, int(rate))
                elements.append(made)
            case "redirect", [ifindex, inode, path]:
                redirects.append(Redirect(path, int(inode), int(ifindex)))
    return Record(tuple(elements), tuple(redirects))


def remove_record(microvm_id: str) -> None:
    paths.MicroVMPaths(microvm_id).network.unlink(missing_ok=True)


@contextlib.contextmanager
def recorded(microvm_id: str, record: Record) -> Iterator[None]:
    """The record, which goes again if the block fails; the block then has undone its deeds."""
    write_record(microvm_id, record)
    try:
        yield
    except BaseException:
        remove_record(microvm_id)
        raise
