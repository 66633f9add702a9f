"""Opening the streams of one process: the guest's connections joined with the host's ends."""

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from hypercore.config import HostConfig
from hypercore.microvm import MicroVM
from hypercore.paths import MicroVMPaths
from hypercore.proto.agent_pb import Stdio
from hypercore.shim import uris
from hypercore.shim.host import Host
from hypercore.shim.process import Process
from hypercore.shim.streams import Input, Output, ProcessIO, SegmentedLog
from hypercore.shim.uris import Ends
from hypercore.spec import STDIO_URI

TOKEN_BYTES = 16


async def open_io(
    process: Process, microvm: MicroVM, host: Host, on_stdin_end: Callable[[int], object]
) -> ProcessIO:
    """Open what `process.uris` ask for; sets `process.stdio` for the agent.

    An init's `hypercore://` output goes to its log. An exec's goes to the client that attached
    before; without one it is counted and dropped.

    Raises:
        HypercoreError: a URI cannot be opened, or the guest does not take a stream.
    """
    with contextlib.ExitStack() as undo:
        ends = await _ends(process, host)
        undo.callback(ends.close)
        tokens = [secrets.token_bytes(TOKEN_BYTES) if uri else b"" for uri in process.uris]
        connections: dict[str, int] = {}
        undo.callback(_close_all, connections)
        for name, token in zip(("stdin", "stdout", "stderr"), tokens, strict=True):
            if token:
                connections[name] = await microvm.open_stream(token)
        process.stdio = Stdio(
            terminal=process.terminal,
            stdin_token=tokens[0],
            stdout_token=tokens[1],
            stderr_token=tokens[2],
            rows=process.size[0],
            columns=process.size[1],
        )
        files = MicroVMPaths(microvm.spec.microvm_id)
        io = ProcessIO()
        undo.callback(io.close)
        for name, uri, path in (
            ("stdout", process.uris[1], files.stdout_log),
            ("stderr", process.uris[2], files.stderr_log),
        ):
            if name in connections:
                kept = uri == STDIO_URI and not process.exec_id
                output = Output(
                    host.hub,
                    connections.pop(name),
                    target_fd=ends.take(name),
                    log=segmented_log(path, host.config) if kept else None,
                )
                setattr(io, name, output)
        if "stdin" in connections:
            io.stdin = Input(host.hub, connections.pop("stdin"), on_stdin_end)
            _feed(io.stdin, process, ends)
        undo.pop_all()
    return io


async def _ends(process: Process, host: Host) -> Ends:
    if process.client is not None:
        return process.client.ends
    return await uris.open_ends(process.uris, process.container_id, host.namespace)


def _feed(stdin: Input, process: Process, ends: Ends) -> None:
    if ends.stdin < 0:
        return
    if process.client is not None:
        process.client.join_stdin(stdin)
    else:
        stdin.add_fifo(ends.take("stdin"), ends.take("stdin_keeper"))


def segmented_log(path: Path, config: HostConfig) -> SegmentedLog:
    return SegmentedLog(path, config.log_limit_mib * 1024 * 1024, config.log_segments)


def _close_all(connections: dict[str, int]) -> None:
    for fd in connections.values():
        os.close(fd)
