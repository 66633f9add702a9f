"""Calls to containerd's tasks. Errors are containerd's or the shim's, by their gRPC code."""

import json
from collections.abc import Mapping, Sequence
from typing import Any as AnyValue

from hypercore.containerd.client import CALL_TIMEOUT_S, Client
from hypercore.errors import InvalidArgument
from hypercore.proto.containerd_tasks_pb import (
    CloseIORequest,
    CreateTaskRequest,
    CreateTaskResponse,
    DeleteProcessRequest,
    DeleteResponse,
    DeleteTaskRequest,
    ExecProcessRequest,
    GetRequest,
    GetResponse,
    KillRequest,
    ListPidsRequest,
    ListPidsResponse,
    ListTasksRequest,
    ListTasksResponse,
    MetricsRequest,
    MetricsResponse,
    PauseTaskRequest,
    ResizePtyRequest,
    ResumeTaskRequest,
    StartRequest,
    StartResponse,
    Tasks,
    UpdateTaskRequest,
    WaitRequest,
    WaitResponse,
)
from hypercore.proto.containerd_types_pb import Metric, Process
from hypercore.proto.types_pb import Any, Empty, Mount

PROCESS_TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


async def create(
    client: Client,
    container_id: str,
    rootfs: Sequence[Mount],
    *,
    stdin: str = "",
    stdout: str = "",
    stderr: str = "",
    terminal: bool = False,
    options: Any | None = None,
    timeout_s: float,
) -> int:
    """Start the container's shim and have it make the task; returns the pid it reports.

    Args:
        stdin: URI of the stream, as stdout and stderr; empty: none.
        timeout_s: must leave time for a microVM to boot.
    """
    request = CreateTaskRequest(
        container_id=container_id,
        rootfs=list(rootfs),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        terminal=terminal,
        options=options,
    )
    reply = await client.unary(Tasks, "Create", request, CreateTaskResponse, timeout_s=timeout_s)
    return reply.pid


async def start(
    client: Client, container_id: str, exec_id: str = "", *, timeout_s: float = CALL_TIMEOUT_S
) -> int:
    """Run what `create` or `add_exec` prepared; returns the pid the shim reports."""
    request = StartRequest(container_id=container_id, exec_id=exec_id)
    reply = await client.unary(Tasks, "Start", request, StartResponse, timeout_s=timeout_s)
    return reply.pid


async def wait(
    client: Client, container_id: str, exec_id: str = "", *, timeout_s: float | None = None
) -> WaitResponse:
    """The exit record, once the process has ended; also for one that ended before."""
    request = WaitRequest(container_id=container_id, exec_id=exec_id)
    return await client.unary(Tasks, "Wait", request, WaitResponse, timeout_s=timeout_s)


async def kill(
    client: Client, container_id: str, signal: int, exec_id: str = "", *, everything: bool = False
) -> None:
    """Send a signal; `everything`: to all processes of the container. NotFound once it ended."""
    request = KillRequest(
        container_id=container_id, exec_id=exec_id, signal=signal, all=everything
    )
    await client.unary(Tasks, "Kill", request, Empty)


async def delete(
    client: Client, container_id: str, exec_id: str = "", *, timeout_s: float = CALL_TIMEOUT_S
) -> DeleteResponse:
    """Forget an ended task or exec and return its exit record; StateError while it runs."""
    if exec_id:
        request = DeleteProcessRequest(container_id=container_id, exec_id=exec_id)
        return await client.unary(
            Tasks, "DeleteProcess", request, DeleteResponse, timeout_s=timeout_s
        )
    return await client.unary(
        Tasks,
        "Delete",
        DeleteTaskRequest(container_id=container_id),
        DeleteResponse,
        timeout_s=timeout_s,
    )


async def get(client: Client, container_id: str, exec_id: str = "") -> Process:
    """State of a task or exec; NotFound if there is none."""
    request = GetRequest(container_id=container_id, exec_id=exec_id)
    reply = await client.unary(Tasks, "Get", request, GetResponse)
    return reply.process or Process(container_id=container_id)


async def list_all(client: Client) -> list[Process]:
    return (await client.unary(Tasks, "List", ListTasksRequest(), ListTasksResponse)).tasks


async def add_exec(
    client: Client,
    container_id: str,
    exec_id: str,
    process: Mapping[str, AnyValue],
    *,
    stdin: str = "",
    stdout: str = "",
    stderr: str = "",
    terminal: bool = False,
) -> None:
    """Prepare one more process in a running container; `start` runs it.

    Args:
        process: OCI process object.
    """
    if not exec_id:
        raise InvalidArgument("an exec needs an id")
    value = json.dumps(process, separators=(",", ":")).encode()
    request = ExecProcessRequest(
        container_id=container_id,
        exec_id=exec_id,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        terminal=terminal,
        spec=Any(type_url=PROCESS_TYPE_URL, value=value),
    )
    await client.unary(Tasks, "Exec", request, Empty)


async def resize(
    client: Client, container_id: str, exec_id: str = "", *, columns: int, rows: int
) -> None:
    request = ResizePtyRequest(
        container_id=container_id, exec_id=exec_id, width=columns, height=rows
    )
    await client.unary(Tasks, "ResizePty", request, Empty)


async def close_stdin(client: Client, container_id: str, exec_id: str = "") -> None:
    request = CloseIORequest(container_id=container_id, exec_id=exec_id, stdin=True)
    await client.unary(Tasks, "CloseIO", request, Empty)


async def pause(client: Client, container_id: str) -> None:
    await client.unary(Tasks, "Pause", PauseTaskRequest(container_id=container_id), Empty)


async def resume(client: Client, container_id: str) -> None:
    await client.unary(Tasks, "Resume", ResumeTaskRequest(container_id=container_id), Empty)


async def pids(client: Client, container_id: str) -> list[int]:
    request = ListPidsRequest(container_id=container_id)
    reply = await client.unary(Tasks, "ListPids", request, ListPidsResponse)
    return [process.pid for process in reply.processes]


async def metrics(client: Client, container_id: str) -> list[Metric]:
    request = MetricsRequest(filters=[f"id=={container_id}"])
    return (await client.unary(Tasks, "Metrics", request, MetricsResponse)).metrics


async def update(client: Client, container_id: str, resources: Mapping[str, AnyValue]) -> None:
    """Change limits of a running task; `resources` is an OCI LinuxResources object."""
    value = json.dumps(resources, separators=(",", ":")).encode()
    request = UpdateTaskRequest(
        container_id=container_id, resources=Any(type_url=RESOURCES_TYPE_URL, value=value)
    )
    await client.unary(Tasks, "Update", request, Empty)
