"""What a container runtime's log says: its last error, and docker's 127 and 126 told apart."""

from agent.errors import NOT_FOUND, PERMISSION_DENIED, UNKNOWN

_NOT_FOUND = ("no such file or directory", "not found")
_DENIED = (
    "permission denied",
    "operation not permitted",  # crun, for a directory
    "exec format error",
    "is a directory",
)


def message_of(log):
    """The last error in a runtime's log: crun writes plain text, runc logfmt."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if not lines:
        return ""
    line = lines[-1]
    _, found, message = line.partition('msg="')
    if found:
        return message.rpartition('"')[0].replace('\\"', '"')
    # crun: "2026-11-24T15:00:00.000000Z: message"
    head, found, message = line.partition("Z: ")
    if found and head[:4].isdigit():
        return message
    return line


def code_of(message):
    """NOT_FOUND or PERMISSION_DENIED when the command could not be run for that reason."""
    text = message.lower()
    if "exec" in text:
        if any(sign in text for sign in _DENIED):
            return PERMISSION_DENIED
        if any(sign in text for sign in _NOT_FOUND):
            return NOT_FOUND
    return UNKNOWN
