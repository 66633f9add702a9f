from collections.abc import Iterable

def create(
    name: bytes,
    *,
    group: int,
    alias: bytes = b"",
    owner: int = -1,
    persist: bool = False,
    mtu: int = 0,
    mac: bytes = b"",
    address4: bytes = b"",
    prefix4: int = 32,
    address6: bytes = b"",
    prefix6: int = 128,
    neighbour_mac: bytes = b"",
    neighbour4: bytes = b"",
    neighbour6: bytes = b"",
    master: int = 0,
    redirect_to: int = 0,
    netns_fd: int = -1,
    existing: int = 0,
    route_localnet: bool = False,
) -> tuple[int, int]: ...
def new_netns() -> int: ...
def packet_socket(name: bytes, *, netns_fd: int) -> int: ...
def delete(ifindex: int, *, netns_fd: int = -1) -> bool: ...
def delete_group(group: int, *, netns_fd: int = -1) -> bool: ...
def set_group(ifindexes: Iterable[int], group: int, *, netns_fd: int = -1) -> None: ...
def nft_update(
    family: int,
    table: bytes,
    ops: list[tuple[bool, bytes, bytes, bytes | None, bytes]],
    *,
    userdata: bytes = b"",
) -> None: ...
def transact(
    protocol: int,
    request: bytes | bytearray,
    *,
    dump: bool = False,
    netns_fd: int = -1,
) -> bytes: ...
def close_idle() -> None: ...
