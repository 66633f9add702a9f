"""What the agent is told to create: the task's disks, config.json, streams, files and sockets."""

import json
from collections.abc import Callable

from hypercore.microvm import MicroVM
from hypercore.proto import agent_pb
from hypercore.shim import guest_spec
from hypercore.shim.guest_spec import GuestSpec
from hypercore.spec import Disk, RootDisks


def render(
    container_id: str,
    guest: GuestSpec,
    disks: RootDisks,
    microvm: MicroVM,
    *,
    stdio: agent_pb.Stdio,
    sockets: list[agent_pb.ForwardedSocket],
) -> agent_pb.CreateRequest:
    """The request for a container in a microVM that runs with `disks`."""
    attachment = microvm.attachment
    files = guest_spec.network_files(guest, attachment.dns_servers, attachment.dns_search)
    serial = microvm.disk_serial
    return agent_pb.CreateRequest(
        container_id=container_id,
        root_disks=agent_pb.RootDisks(
            read_only=[
                _disk(disk, serial, part)
                for disk in disks.read_only
                for part in disk.parts or [(0, 0)]
            ],
            writable=_disk(disks.writable, serial) if disks.writable else None,
        ),
        config_json=json.dumps(guest.config).encode(),
        stdio=stdio,
        files=list(files),
        binds=_disk(disks.binds, serial) if disks.binds else None,
        sockets=sockets,
    )


def _disk(
    given: Disk, serial: Callable[[Disk], str], part: tuple[int, int] = (0, 0)
) -> agent_pb.RootDisk:
    return agent_pb.RootDisk(
        serial=serial(given),
        fs_type=given.fs_type,
        writable=not given.read_only,
        offset_bytes=part[0],
        size_bytes=part[1],
    )
