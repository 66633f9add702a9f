"""Typed calls to the agent of one guest, over its control connection. Each has a deadline.

`wait`, `copy` and `next_connection` may last; they end with the connection, which microvm.py
closes when the VMM is gone.
The agent is not trusted: a reply is bounded here, and read by a codec that bounds the rest.
"""

import socket
import time
from typing import TypeVar

from hypercore.errors import Unavailable
from hypercore.proto import agent_pb, types_pb
from hypercore.wire import ttrpc
from hypercore.wire.codec import Message

SERVICE = "hypercore.agent.v1.Agent"
PROTOCOL_VERSION = 1
MAX_REPLY_BYTES = 64 * 1024

QUICK_S = 10.0
"""Calls that start no process in the guest."""
START_S = 60.0
"""Calls that wait for the container runtime, or for disks: under emulation beside a busy host."""

M = TypeVar("M", bound=Message)


class AgentClient:
    """The agent at the other end of one connection.

    Every method raises Unavailable when the guest is gone, DeadlineExceeded when it does not
    answer, and the agent's own error otherwise.
    """

    def __init__(self, client: ttrpc.Client) -> None:
        self._client = client
        self.closed = client.closed
        """done once the connection has ended"""

    @classmethod
    async def over(cls, connection: socket.socket) -> "AgentClient":
        """Take over the connected socket."""
        return cls(await ttrpc.Client.over(connection, max_length=MAX_REPLY_BYTES))

    def close(self) -> None:
        """End the connection and every call under way. Idempotent."""
        self._client.abort()

    async def hello(self, request: agent_pb.HelloRequest) -> agent_pb.HelloResponse:
        """The first call. Fills in the protocol version and the host's time.

        Raises:
            Unavailable: the agent speaks another version of the protocol.
        """
        request.version = PROTOCOL_VERSION
        request.unix_ns = time.time_ns()
        answer = await self._request("Hello", request, agent_pb.HelloResponse, QUICK_S)
        if answer.version != PROTOCOL_VERSION:
            raise Unavailable(
                f"the agent {answer.agent_version!r} speaks version {answer.version} of the "
                f"protocol, not {PROTOCOL_VERSION}",
                hint="run `hypercore guest build`, or leave out `drive` in hac.toml",
            )
        return answer

    async def set_clock(self) -> None:
        """Give the guest the host's time."""
        request = agent_pb.SetClockRequest(unix_ns=time.time_ns())
        await self._request("SetClock", request, types_pb.Empty, QUICK_S)

    async def ping(self) -> None:
        """Whether it answers; changes nothing."""
        await self._request("SetClock", agent_pb.SetClockRequest(), types_pb.Empty, QUICK_S)

    async def create(self, request: agent_pb.CreateRequest) -> int:
        """Mount the root disks and create the container; returns the init process's guest pid."""
        return (await self._request("Create", request, agent_pb.ProcessResponse, START_S)).pid

    async def start(self, container_id: str, exec_id: str = "") -> int:
        request = agent_pb.ProcessRequest(container_id=container_id, exec_id=exec_id)
        return (await self._request("Start", request, agent_pb.ProcessResponse, START_S)).pid

    async def exec(self, request: agent_pb.ExecRequest) -> int:
        """Start one more process in a container; returns its guest pid."""
        return (await self._request("Exec", request, agent_pb.ProcessResponse, START_S)).pid

    async def wait(self, container_id: str, exec_id: str = "") -> agent_pb.WaitResponse:
        """Wait for the end of a process, without a deadline."""
        request = agent_pb.ProcessRequest(container_id=container_id, exec_id=exec_id)
        return await self._request("Wait", request, agent_pb.WaitResponse, None)

    async def kill(
        self, container_id: str, exec_id: str = "", *, signal: int, everyone: bool = False
    ) -> None:
        """Signal a process, or every process of the container."""
        request = agent_pb.KillRequest(
            container_id=container_id, exec_id=exec_id, signal=signal, all=everyone
        )
        await self._request("Kill", request, types_pb.Empty, QUICK_S)

    async def close_io(self, container_id: str, exec_id: str, stdin_bytes: int) -> None:
        """End a process's stdin once it was given `stdin_bytes` in all."""
        request = agent_pb.CloseIORequest(
            container_id=container_id, exec_id=exec_id, stdin_bytes=stdin_bytes
        )
        await self._request("CloseIO", request, types_pb.Empty, QUICK_S)

    async def resize_pty(self, container_id: str, exec_id: str, rows: int, columns: int) -> None:
        request = agent_pb.ResizePtyRequest(
            container_id=container_id, exec_id=exec_id, rows=rows, columns=columns
        )
        await self._request("ResizePty", request, types_pb.Empty, QUICK_S)

    async def pids(self, container_id: str) -> list[int]:
        """Guest pids of the container's processes."""
        request = agent_pb.ProcessRequest(container_id=container_id)
        return (await self._request("Pids", request, agent_pb.PidsResponse, QUICK_S)).pids

    async def stats(self, container_id: str) -> agent_pb.StatsResponse:
        request = agent_pb.ProcessRequest(container_id=container_id)
        return await self._request("Stats", request, agent_pb.StatsResponse, QUICK_S)

    async def update(self, container_id: str, resources_json: bytes) -> None:
        """Change the container's limits; takes OCI LinuxResources."""
        request = agent_pb.UpdateRequest(container_id=container_id, resources_json=resources_json)
        await self._request("Update", request, types_pb.Empty, QUICK_S)

    async def pause(self, container_id: str) -> None:
        """Freeze the container's processes; the guest itself runs on."""
        request = agent_pb.ProcessRequest(container_id=container_id)
        await self._request("Pause", request, types_pb.Empty, QUICK_S)

    async def resume(self, container_id: str) -> None:
        request = agent_pb.ProcessRequest(container_id=container_id)
        await self._request("Resume", request, types_pb.Empty, QUICK_S)

    async def delete(self, container_id: str, exec_id: str = "") -> None:
        """Forget an ended process; for a container also delete it and unmount its root."""
        request = agent_pb.ProcessRequest(container_id=container_id, exec_id=exec_id)
        await self._request("Delete", request, types_pb.Empty, START_S)

    async def copy(self, request: agent_pb.CopyRequest) -> None:
        """Copy files; ends with the stream that the request names, so without a deadline."""
        await self._request("Copy", request, types_pb.Empty, None)

    async def next_connection(self, container_id: str) -> agent_pb.ConnectionResponse:
        """Wait for a connection to a forwarded socket, without a deadline."""
        request = agent_pb.ProcessRequest(container_id=container_id)
        return await self._request("NextConnection", request, agent_pb.ConnectionResponse, None)

    async def power_off(self) -> None:
        """Sync, unmount and turn the VM off; returns before it is off."""
        await self._request("PowerOff", types_pb.Empty(), types_pb.Empty, QUICK_S)

    async def _request(
        self, method: str, request: Message, reply: type[M], timeout_s: float | None
    ) -> M:
        return await self._client.request(SERVICE, method, request, reply, timeout_s=timeout_s)
