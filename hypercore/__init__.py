"""hypercore: OCI images in microVMs, through containerd.

Public names are loaded when they are first used, so that importing the package costs nothing.
"""

TYPE_CHECKING = False  # typing's own costs more than all that `delete` needs

__version__ = "0.1.0"

__all__ = [
    "VM",
    "AsyncClient",
    "AsyncVM",
    "Client",
    "Engine",
    "HostConfig",
    "HypercoreError",
    "MicroVM",
    "SpawnSpec",
    "__version__",
]

_HOMES = {
    "VM": "hypercore.client",
    "AsyncClient": "hypercore.client",
    "AsyncVM": "hypercore.client",
    "Client": "hypercore.client",
    "Engine": "hypercore.engine",
    "HostConfig": "hypercore.config",
    "HypercoreError": "hypercore.errors",
    "MicroVM": "hypercore.microvm",
    "SpawnSpec": "hypercore.spec",
}

if TYPE_CHECKING:
    from hypercore.client import VM, AsyncClient, AsyncVM, Client
    from hypercore.config import HostConfig
    from hypercore.engine import Engine
    from hypercore.errors import HypercoreError
    from hypercore.microvm import MicroVM
    from hypercore.spec import SpawnSpec


def __getattr__(name: str) -> object:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'hypercore' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    return value
