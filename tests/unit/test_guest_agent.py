"""The agent's pure parts, on a host's interpreter: network requests, files, a runtime's words."""

import socket
import struct

import pytest

from agent import netlink, network, runtime_log
from agent.errors import NOT_FOUND, PERMISSION_DENIED, UNKNOWN, RpcError
from hypercore.proto import agent_pb

CRUN_LOG = (
    "2026-11-24T15:00:00.000001Z: warning: something\n"
    "2026-11-24T15:00:00.000002Z: executable file `nosuch` not found in $PATH: "
    "No such file or directory\n"
)
RUNC_LOG = (
    'time="2026-11-24T15:00:00Z" level=warning msg="odd"\n'
    'time="2026-11-24T15:00:00Z" level=error msg="runc create failed: unable to start container '
    'process: exec: \\"nosuch\\": executable file not found in $PATH"\n'
)


def test_last_words_of_the_runtimes() -> None:
    assert runtime_log.message_of(CRUN_LOG) == (
        "executable file `nosuch` not found in $PATH: No such file or directory"
    )
    assert runtime_log.message_of(RUNC_LOG) == (
        "runc create failed: unable to start container process: "
        'exec: "nosuch": executable file not found in $PATH'
    )
    assert runtime_log.message_of("plain\n\n") == "plain"
    assert runtime_log.message_of("") == ""


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("executable file `x` not found in $PATH: No such file or directory", NOT_FOUND),
        ("open executable: No such file or directory", NOT_FOUND),
        ('exec: "x": executable file not found in $PATH', NOT_FOUND),
        ("open executable: Permission denied", PERMISSION_DENIED),
        ("open executable: Operation not permitted", PERMISSION_DENIED),
        ('exec: "/etc": is a directory: permission denied', PERMISSION_DENIED),
        ("exec container process `/x`: Exec format error", PERMISSION_DENIED),
        ("mount `x` to `/y`: No such file or directory", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_what_kept_a_command_from_running(message: str, code: int) -> None:
    assert runtime_log.code_of(message) == code


def test_addresses() -> None:
    assert network.parse_cidr("10.0.0.2/30") == (bytes([10, 0, 0, 2]), 30)
    assert network.parse_cidr("10.0.0.2") == (bytes([10, 0, 0, 2]), 32)
    address = socket.inet_pton(socket.AF_INET6, "2001:db8::2")
    assert network.parse_cidr("2001:db8::2/64") == (address, 64)
    for bad in ("10.0.0.2/33", "10.0.0.2/", "10.0.0.2/x", "10.0.0", "", "::1/129", "/24"):
        with pytest.raises(RpcError):
            network.parse_cidr(bad)


def test_files_for_containers() -> None:
    hello = agent_pb.HelloRequest(
        hostname="vm1",
        interfaces=[agent_pb.Interface(name="eth0", addresses=["10.0.0.2/30"])],
        dns_servers=["10.0.0.1", "10.0.0.9"],
        dns_search=["a.test", "b.test"],
    )
    made = network.container_files(hello)
    assert made["/etc/resolv.conf"] == (
        b"nameserver 10.0.0.1\nnameserver 10.0.0.9\nsearch a.test b.test\n"
    )
    assert made["/etc/hostname"] == b"vm1\n"
    assert made["/etc/hosts"].endswith(b"10.0.0.2\tvm1\n")
    quiet = network.container_files(agent_pb.HelloRequest())
    assert set(quiet) == {"/etc/hosts"}


def test_requests_are_what_the_kernel_expects() -> None:
    request = netlink.add_address(3, bytes([10, 0, 0, 2]), 30)
    size, kind, flags = struct.unpack_from("=IHH", request)
    assert (size, kind) == (len(request), netlink.RTM_NEWADDR)
    assert flags & 5 == 5  # request, with an answer
    assert struct.unpack_from("=BBBBi", request, 16) == (socket.AF_INET, 30, 0, 0, 3)
    assert netlink.attribute(3, b"abcde") == struct.pack("=HH", 9, 3) + b"abcde\0\0\0"
    route = netlink.add_route(3, bytes(16), 0, socket.inet_pton(socket.AF_INET6, "2001:db8::1"))
    assert route[16] == socket.AF_INET6


def test_links_of_this_host_are_read() -> None:
    link = netlink.Netlink()
    try:
        found = link.links()
    finally:
        link.close()
    assert found["00:00:00:00:00:00"] == (socket.if_nametoindex("lo"), "lo")
