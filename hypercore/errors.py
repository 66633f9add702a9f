"""What can go wrong, as a caller needs to tell it apart, and its one table to exit codes.

    HypercoreError
    ├── InvalidArgument      the user's input is wrong: hac.toml, a flag, an id
    ├── NotFound             no such image, container, file, interface
    ├── AlreadyExists
    ├── StateError           not possible in the present state
    ├── Unavailable          a part we need does not answer or is not installed; try again later
    │   └── DeadlineExceeded
    ├── PermissionDenied     no root, no access to a device, a token without this right
    │   └── Unauthenticated
    ├── ResourceExhausted    disk full, no free address, no file descriptors
    ├── VmmError             the VMM or its guest failed; carries the VMM's own last words
    ├── TaskError            the command could not be started in the guest
    └── OutcomeUnknown       the connection broke: it may have happened or not

Raise with a sentence that names what, which and the value; `hint` says the way out. `retryable`
says whether the same call again may succeed and cannot do harm.
"""

import errno


class HypercoreError(Exception):
    """Base of all errors that hypercore raises on purpose.

    Args:
        message: one sentence: what went wrong, with which id, path or key, and the value.
        hint: what the user can do about it, one sentence; may be empty.
        detail: longer text for the log, such as the last lines of a console.
        field: of the request that is at fault, such as "hardware.cores"; may be empty.
    """

    exit_code = 125
    grpc_code = 13  # INTERNAL
    http_status = 500
    retryable = False

    def __init__(self, message: str, *, hint: str = "", detail: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail
        self.field = field

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.detail, self.field)


def _rebuild(
    cls: type[HypercoreError], message: str, hint: str, detail: str, field: str
) -> HypercoreError:
    return cls(message, hint=hint, detail=detail, field=field)


class InvalidArgument(HypercoreError):
    exit_code = 64
    grpc_code = 3
    http_status = 400


class NotFound(HypercoreError):
    exit_code = 66
    grpc_code = 5
    http_status = 404


class AlreadyExists(HypercoreError):
    exit_code = 73
    grpc_code = 6
    http_status = 409


class StateError(HypercoreError):
    exit_code = 70
    grpc_code = 9
    http_status = 409


class Unavailable(HypercoreError):
    exit_code = 69
    grpc_code = 14
    http_status = 503
    retryable = True


class DeadlineExceeded(Unavailable):
    exit_code = 75
    grpc_code = 4
    http_status = 504


class PermissionDenied(HypercoreError):
    exit_code = 77
    grpc_code = 7
    http_status = 403


class ResourceExhausted(HypercoreError):
    exit_code = 74
    grpc_code = 8
    http_status = 429
    retryable = True


class Unauthenticated(PermissionDenied):
    """A remote caller said not, or not credibly, who it is."""

    grpc_code = 16
    http_status = 401


class OutcomeUnknown(HypercoreError):
    """The connection broke, or a deadline passed, after a request was sent that changes something.

    Look before trying again, or send the request with an idempotency key.
    """

    exit_code = 69
    grpc_code = 2


class VmmError(HypercoreError):
    exit_code = 125
    grpc_code = 13


class TaskError(HypercoreError):
    """The container runtime in the guest could not start the command.

    `exit_code` is 127 when the command was not found, 126 when it could not be executed.
    """

    grpc_code = 2
    http_status = 422

    def __init__(
        self, message: str, *, hint: str = "", detail: str = "", exit_code: int = 125
    ) -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_task, (self.message, self.hint, self.detail, self.exit_code)


def _rebuild_task(message: str, hint: str, detail: str, exit_code: int) -> TaskError:
    return TaskError(message, hint=hint, detail=detail, exit_code=exit_code)


EXIT_CODES = {
    0: "success",
    64: "InvalidArgument: wrong input (hac.toml, flag, id)",
    66: "NotFound: no such image, container, interface or file",
    69: "Unavailable: containerd, a registry or a VMM does not answer or is not installed",
    70: "StateError: not possible in the present state",
    73: "AlreadyExists",
    74: "ResourceExhausted: disk full, no free address",
    75: "DeadlineExceeded",
    77: "PermissionDenied: root or access to a device is missing",
    125: "hypercore or the VMM failed",
    126: "the command cannot be executed in the guest",
    127: "the command was not found in the guest",
    130: "interrupted by Ctrl-C",
}
"""Exit codes of the CLI; a task's own exit code is passed through by run-like commands."""

_BY_GRPC_CODE: dict[int, type[HypercoreError]] = {
    cls.grpc_code: cls
    for cls in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        StateError,
        Unavailable,
        DeadlineExceeded,
        PermissionDenied,
        ResourceExhausted,
        Unauthenticated,
    )
}


def from_grpc_code(code: int, message: str, *, hint: str = "") -> HypercoreError:
    """The error for a gRPC or ttrpc status `code` (google/rpc/code.proto)."""
    return _BY_GRPC_CODE.get(code, HypercoreError)(message, hint=hint)


_BY_KIND: dict[str, type[HypercoreError]] = {
    cls.__name__: cls
    for cls in (*_BY_GRPC_CODE.values(), HypercoreError, OutcomeUnknown, VmmError)
}


def kind_of(exc: HypercoreError) -> str:
    """The name under which an error of ours travels; the nearest one that `from_kind` knows."""
    if isinstance(exc, TaskError):
        return TaskError.__name__
    return next(cls.__name__ for cls in type(exc).__mro__ if cls.__name__ in _BY_KIND)


def from_kind(
    kind: str,
    message: str,
    *,
    hint: str = "",
    detail: str = "",
    field: str = "",
    exit_code: int = 0,
) -> HypercoreError:
    """The error that `kind_of` named at the other end."""
    if kind == TaskError.__name__:
        return TaskError(message, hint=hint, detail=detail, exit_code=exit_code or 125)
    return _BY_KIND.get(kind, HypercoreError)(message, hint=hint, detail=detail, field=field)


def from_os_error(exc: OSError, doing: str) -> HypercoreError:
    """The error for an OSError met while `doing` something, such as "create /x/upper.ext4"."""
    message = f"cannot {doing}: {exc.strerror or exc}"
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(message, hint="free some disk space and try again")
    if exc.errno in (errno.EMFILE, errno.ENFILE):
        return ResourceExhausted(message, hint="raise the limit of open files")
    if exc.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(message, hint="run as root")
    if exc.errno == errno.ENOENT:
        return NotFound(message)
    return HypercoreError(message)
