"""The API's messages ↔ what the engine and the library speak of: Record, ExitStatus, Spawned."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hypercore.attach import ExitStatus
from hypercore.inventory import Record, State
from hypercore.proto import hypercore_pb as pb


def microvm(record: Record, cls: type[pb.MicroVM] = pb.MicroVM) -> pb.MicroVM:
    return cls(
        id=record.microvm_id,
        name=record.name,
        description=record.description,
        image=record.image,
        provider=record.provider,
        state=str(record.state),
        command=record.command,
        tty=record.tty,
        stdin=record.stdin,
        owned=record.owned,
        remove=record.remove,
        stop_signal=record.stop_signal,
        pid=record.pid,
        exit_code=record.exit_code,
        created_at=record.created_at,
        exited_at=record.exited_at,
    )


def record(message: pb.MicroVM) -> Record:
    return Record(
        microvm_id=message.id,
        image=message.image,
        state=State(message.state),
        created_at=message.created_at,
        name=message.name,
        description=message.description,
        provider=message.provider,
        command=message.command,
        tty=message.tty,
        stdin=message.stdin,
        owned=message.owned,
        remove=message.remove,
        stop_signal=message.stop_signal,
        pid=message.pid,
        exit_code=message.exit_code,
        exited_at=message.exited_at,
    )


def exit_message(status: ExitStatus) -> pb.ExitStatus:
    return pb.ExitStatus(
        exit_code=status.exit_code, missing_bytes=status.missing_bytes, reason=status.reason
    )


def exit_status(message: pb.ExitStatus) -> ExitStatus:
    return ExitStatus(message.exit_code, message.missing_bytes, message.reason)


@dataclass(frozen=True, slots=True)
class SpawnResult:
    """A microVM that has just been made."""

    record: Record
    timings_ms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """by room (engine, shim) and phase"""
    notices: tuple[str, ...] = ()
    """what was chosen for the caller"""
    replayed: bool = False
    """made by an earlier call with the same idempotency key"""


def spawn_result(message: pb.SpawnResponse) -> SpawnResult:
    assert message.microvm is not None
    timings = {"engine": message.engine_ms, "shim": message.shim_ms}
    return SpawnResult(record(message.microvm), timings, tuple(message.notices), message.replayed)
