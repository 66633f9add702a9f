"""What all tasks of a shim server share."""

from dataclasses import dataclass
from pathlib import Path

from hypercore.config import HostConfig
from hypercore.shim.events import Publisher
from hypercore.shim.streams import StreamHub


@dataclass(frozen=True, slots=True)
class Host:
    namespace: str
    """of containerd; a server has one"""
    containerd_address: str
    config: HostConfig
    hub: StreamHub
    publisher: Publisher
    stdio_socket: Path
