"""One process of a task as containerd sees it: state, exit, and the encoded answers about it.

Knows nothing of guests and streams; task.py moves it from state to state.
"""

import asyncio
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from hypercore.errors import StateError
from hypercore.proto.agent_pb import Stdio
from hypercore.proto.containerd_types_pb import TaskStatus
from hypercore.proto.task_pb import DeleteResponse, StateResponse, WaitResponse
from hypercore.shim.events import timestamp
from hypercore.shim.streams import Input, ProcessIO
from hypercore.shim.uris import Ends

KILLED = 137
"""Exit status of a process whose microVM died: as if by SIGKILL."""


class State(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


_MOVES = {
    State.CREATED: (State.RUNNING, State.STOPPED),
    State.RUNNING: (State.PAUSED, State.STOPPED),
    State.PAUSED: (State.RUNNING, State.STOPPED),
    State.STOPPED: (),
}
_STATUS = {
    State.CREATED: TaskStatus.CREATED,
    State.RUNNING: TaskStatus.RUNNING,
    State.PAUSED: TaskStatus.PAUSED,
    State.STOPPED: TaskStatus.STOPPED,
}


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended."""

    status: int
    unix_ns: int
    missing_bytes: int = 0
    """output that the guest counted and the host never got"""
    reason: str = ""
    """why, when the microVM died instead of the process"""
    oom_killed: bool = False

    @classmethod
    def now(cls, status: int, reason: str = "") -> "Exit":
        return cls(status, time.time_ns(), reason=reason)


class ExecClient(Protocol):
    """Who attached to an exec before its start."""

    ends: Ends

    def join_stdin(self, stdin: Input) -> None: ...


class Process:
    """A container's init (empty `exec_id`) or an exec."""

    def __init__(
        self,
        container_id: str,
        exec_id: str,
        bundle: str,
        uris: tuple[str, str, str],
        terminal: bool,
    ) -> None:
        self.container_id = container_id
        self.exec_id = exec_id
        self.bundle = bundle
        self.uris = uris
        """stdin, stdout, stderr as containerd gave them; empty: none"""
        self.terminal = terminal
        self.size = (0, 0)
        """rows and columns asked for before the start"""
        self.state = State.CREATED
        self.io: ProcessIO | None = None
        self.stdio = Stdio()
        """the streams as the agent knows them"""
        self.client: ExecClient | None = None
        self.spec_json = b""
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.starting: asyncio.Future[None] | None = None
        """set while Start is under way: the exit is told after it"""
        self._pid = 0
        self._reply: bytes | None = None

    @property
    def name(self) -> str:
        return self.exec_id or self.container_id

    @property
    def pid(self) -> int:
        return self._pid

    @pid.setter
    def pid(self, value: int) -> None:
        self._pid = value
        self._reply = None

    @property
    def exit(self) -> Exit | None:
        return self.exited.result() if self.exited.done() else None

    def advance(self, state: State) -> None:
        """Move to `state`. Raises StateError naming both states."""
        if state not in _MOVES[self.state]:
            raise StateError(f"process {self.name} is {self.state}, it cannot become {state}")
        self.state = state
        self._reply = None

    def end(self, exit: Exit) -> None:
        """It has ended; all Wait calls are answered."""
        self.advance(State.STOPPED)
        self.exited.set_result(exit)

    def require(self, *states: State) -> None:
        """Raise StateError unless in one of `states`."""
        if self.state not in states:
            wanted = " or ".join(states)
            raise StateError(f"process {self.name} is {self.state}, not {wanted}")

    def state_reply(self) -> bytes:
        """The encoded answer to State, kept until something changes: containerd asks often."""
        if self._reply is None:
            exit = self.exit
            self._reply = StateResponse(
                id=self.name,
                bundle=self.bundle,
                pid=self._pid,
                status=_STATUS[self.state],
                stdin=self.uris[0],
                stdout=self.uris[1],
                stderr=self.uris[2],
                terminal=self.terminal,
                exit_status=exit.status if exit else 0,
                exited_at=timestamp(exit.unix_ns if exit else 0),
                exec_id=self.exec_id,
            ).encode()
        return self._reply

    def delete_reply(self) -> DeleteResponse:
        exit = self.exit
        return DeleteResponse(
            pid=self._pid,
            exit_status=exit.status if exit else 0,
            exited_at=timestamp(exit.unix_ns if exit else 0),
        )

    async def wait(self) -> WaitResponse:
        exit = await asyncio.shield(self.exited)
        return WaitResponse(exit_status=exit.status, exited_at=timestamp(exit.unix_ns))
