"""The one exception that a handler raises on purpose; it becomes the ttrpc status of its call."""

UNKNOWN = 2
INVALID_ARGUMENT = 3
NOT_FOUND = 5
ALREADY_EXISTS = 6
PERMISSION_DENIED = 7
FAILED_PRECONDITION = 9
INTERNAL = 13
UNIMPLEMENTED = 12

MAX_MESSAGE = 4096
"""Characters; a runtime's log may hold more, the host takes 64 KiB a reply."""


class RpcError(Exception):
    """A status code of google/rpc/code.proto and a sentence for the user."""

    def __init__(self, code, message):
        Exception.__init__(self, message)
        self.code = code
        self.message = message[:MAX_MESSAGE]


def from_os_error(exc, doing):
    """The RpcError for an OSError met while `doing` something."""
    what = f" {exc.filename}" if exc.filename else ""
    return RpcError(UNKNOWN, f"{doing}{what}: {exc.strerror}")
