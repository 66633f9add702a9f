from os import PathLike

from hypercore._pump import Event as Event
from hypercore._pump import Pump as Pump

__all__ = ["Event", "Pump", "connect_hybrid", "connect_kernel"]

def connect_hybrid(
    uds_path: str | bytes | PathLike[str], port: int, timeout_s: float, *, cancel_fd: int = -1
) -> int: ...
def connect_kernel(cid: int, port: int, timeout_s: float, *, cancel_fd: int = -1) -> int: ...
