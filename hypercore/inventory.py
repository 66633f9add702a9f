"""What microVMs there are, by containerd's records: listing them, and finding one by what a user
types. Changes nothing.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from hypercore.errors import InvalidArgument, NotFound
from hypercore.spec import ANNOTATION_PREFIX

if TYPE_CHECKING:
    from hypercore.containerd.client import Client
    from hypercore.proto.containerd_containers_pb import Container
    from hypercore.proto.containerd_types_pb import Process
    from hypercore.proto.types_pb import Timestamp

OWNER = "engine"
RUNTIMES = ("io.containerd.hypercore.v1", "hypercore.example")
MAX_LABEL_BYTES = 4096  # containerd's limit for key and value together

LABEL_OWNER = ANNOTATION_PREFIX + "owner"
LABEL_NAME = ANNOTATION_PREFIX + "name"
LABEL_DESCRIPTION = ANNOTATION_PREFIX + "description"
LABEL_PROVIDER = ANNOTATION_PREFIX + "provider"
LABEL_COMMAND = ANNOTATION_PREFIX + "command"
LABEL_REMOVE = ANNOTATION_PREFIX + "rm"
"""also an annotation: the shim server acts on it (shim/remover.py)"""
LABEL_TTY = ANNOTATION_PREFIX + "tty"
LABEL_STDIN = ANNOTATION_PREFIX + "stdin"
LABEL_PORTS = ANNOTATION_PREFIX + "ports"
LABEL_STOP_SIGNAL = ANNOTATION_PREFIX + "stop-signal"


class State(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"
    """the task ended and its exit code is known"""
    STOPPED = "stopped"
    """no task: its host was rebooted or its shim died"""


ALIVE = (State.CREATED, State.RUNNING, State.PAUSED)
_STATES = {1: State.CREATED, 2: State.RUNNING, 3: State.EXITED, 4: State.PAUSED, 5: State.PAUSED}


@dataclass(frozen=True, slots=True)
class Record:
    """One microVM of containerd's namespace."""

    microvm_id: str
    image: str
    state: State
    created_at: float
    """seconds since the epoch"""
    name: str = ""
    description: str = ""
    provider: str = ""
    command: str = ""
    tty: bool = False
    stdin: bool = True
    """has a stdin to attach to"""
    owned: bool = True
    """made by our engine, not by another client of containerd"""
    remove: bool = False
    """is to be removed once it has ended"""
    stop_signal: str = ""
    ports: tuple[str, ...] = ()
    """published, as network_spec.parse_port reads them"""
    pid: int = 0
    exit_code: int | None = None
    exited_at: float = 0.0

    @property
    def status(self) -> str:
        """One phrase as in docker's ps."""
        if self.state is State.EXITED:
            return f"Exited ({self.exit_code}) {age(self.exited_at)} ago"
        if self.state is State.RUNNING:
            return f"Up {age(self.created_at)}"
        if self.state is State.PAUSED:
            return f"Up {age(self.created_at)} (Paused)"
        return self.state.capitalize()


async def list_all(client: "Client") -> list[Record]:
    """All microVMs, the newest first."""
    from hypercore.containerd import containers, tasks

    filters = [f"runtime.name=={name}" for name in RUNTIMES]
    found, running = await asyncio.gather(
        containers.list_all(client, *filters), tasks.list_all(client)
    )
    by_id = {task.container_id or task.id: task for task in running}
    records = [_record(container, by_id.get(container.id)) for container in found]
    return sorted(records, key=lambda record: record.created_at, reverse=True)


async def get(client: "Client", microvm_id: str) -> Record | None:
    """The microVM with exactly this id; None when there is none, or none of ours."""
    from hypercore.containerd import containers, tasks

    found = await asyncio.gather(
        containers.get(client, microvm_id), tasks.get(client, microvm_id), return_exceptions=True
    )
    container, task = found
    for failure in found:
        if isinstance(failure, BaseException) and not isinstance(failure, NotFound):
            raise failure
    if isinstance(container, BaseException):
        return None
    if container.runtime is None or container.runtime.name not in RUNTIMES:
        return None
    return _record(container, None if isinstance(task, BaseException) else task)


async def find(client: "Client", wanted: str) -> Record:
    """The microVM with this id, id prefix or name.

    Raises:
        NotFound: there is none.
        InvalidArgument: several match; the message lists them.
    """
    return select(await list_all(client), wanted)


def select(records: Sequence[Record], wanted: str) -> Record:
    """As `find`, among `records`. A whole id wins over a name, a name over a prefix."""
    if not wanted:
        raise InvalidArgument("an empty string is no microVM id")
    for matches in (
        [record for record in records if record.microvm_id == wanted],
        [record for record in records if record.name == wanted],
        [record for record in records if record.microvm_id.startswith(wanted)],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            listing = ", ".join(_described(record) for record in matches[:8])
            more = f" and {len(matches) - 8} more" if len(matches) > 8 else ""
            raise InvalidArgument(
                f"{wanted!r} is ambiguous: {listing}{more}", hint="use more of the id"
            )
    raise NotFound(f"no microVM {wanted!r}", hint="`hypercore ps -a` lists all")


def _described(record: Record) -> str:
    return f"{record.microvm_id[:12]} ({record.name or record.image}, {record.state})"


def state_of(task: "Process | None") -> State:
    return _STATES.get(task.status, State.STOPPED) if task else State.STOPPED


def _record(container: "Container", task: "Process | None") -> Record:
    labels: Mapping[str, str] = container.labels
    state = state_of(task)
    ended = task is not None and state is State.EXITED
    return Record(
        microvm_id=container.id,
        image=container.image,
        state=state,
        created_at=seconds(container.created_at),
        name=labels.get(LABEL_NAME, ""),
        description=labels.get(LABEL_DESCRIPTION, ""),
        provider=labels.get(LABEL_PROVIDER, ""),
        command=labels.get(LABEL_COMMAND, ""),
        tty=labels.get(LABEL_TTY) == "true",
        stdin=labels.get(LABEL_STDIN) != "false",
        owned=labels.get(LABEL_OWNER) == OWNER,
        remove=labels.get(LABEL_REMOVE) == "true",
        stop_signal=labels.get(LABEL_STOP_SIGNAL, ""),
        ports=tuple(part for part in labels.get(LABEL_PORTS, "").split(",") if part),
        pid=task.pid if task else 0,
        exit_code=task.exit_status if task and ended else None,
        exited_at=seconds(task.exited_at) if task and ended else 0.0,
    )


def labels_for(
    *, name: str, description: str, provider: str, command: str, tty: bool, stdin: bool,
    remove: bool,
    stop_signal: str, ports: str = "",
) -> dict[str, str]:  # fmt: skip
    """The labels `_record` reads, those with a value, cut to what containerd takes."""
    values = {
        LABEL_OWNER: OWNER,
        LABEL_NAME: name,
        LABEL_DESCRIPTION: description,
        LABEL_PROVIDER: provider,
        LABEL_COMMAND: command,
        LABEL_TTY: "true" if tty else "",
        LABEL_STDIN: "" if stdin else "false",
        LABEL_REMOVE: "true" if remove else "",
        LABEL_STOP_SIGNAL: stop_signal,
        LABEL_PORTS: ports,
    }
    return {
        key: value.encode()[: MAX_LABEL_BYTES - len(key)].decode(errors="ignore")
        for key, value in values.items()
        if value
    }


def seconds(timestamp: "Timestamp | None") -> float:
    """Seconds since the epoch; 0 for no time, which Go writes as the year 1."""
    if timestamp is None or timestamp.seconds < 0:
        return 0.0
    return timestamp.seconds + timestamp.nanos / 1e9


def age(since: float, now: float | None = None) -> str:
    """How long ago, in docker's words: "About a minute", "3 hours"."""
    passed = max(0, int((time.time() if now is None else now) - since))
    minutes, hours = passed // 60, (passed + 1800) // 3600
    if passed < 1:
        return "Less than a second"
    if passed < 60:
        return f"{passed} second{'s' if passed != 1 else ''}"
    if minutes == 1:
        return "About a minute"
    if minutes < 46:
        return f"{minutes} minutes"
    if hours <= 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    days = passed // 86400
    if days < 14:
        return f"{days} days"
    if days < 61:
        return f"{days // 7} weeks"
    return f"{days // 30} months" if days < 730 else f"{days // 365} years"
