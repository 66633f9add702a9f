"""The library: `Client` and `AsyncClient`, over HTTP, gRPC, or an engine in this process.

with Client() as client, client.spawn("alpine") as vm:
    print(vm.run("uname -r").stdout)
"""

from hypercore.client.async_client import AsyncClient
from hypercore.client.process import AsyncProcess
from hypercore.client.results import (
    CheckStep,
    FileInfo,
    HostInfo,
    ImageInfo,
    Output,
    RunResult,
)
from hypercore.client.sync import VM, Client, Files, Process
from hypercore.client.vm import AsyncFiles, AsyncVM

__all__ = [
    "VM",
    "AsyncClient",
    "AsyncFiles",
    "AsyncProcess",
    "AsyncVM",
    "CheckStep",
    "Client",
    "FileInfo",
    "Files",
    "HostInfo",
    "ImageInfo",
    "Output",
    "Process",
    "RunResult",
]
