"""Why a command could not be run in a guest, out of what the container runtime said."""

import re

from hypercore.errors import HypercoreError, TaskError

# crun and runc: `executable file `x` not found in $PATH`, `open executable: No such file …`,
# `exec: "x": stat x: no such file or directory`, `exec /x: permission denied`.
_EXEC = r"(?:executable|exec)\b.*"
_NOT_FOUND = re.compile(_EXEC + r"(?:not found|no such file or directory)", re.IGNORECASE)
_NOT_EXECUTABLE = re.compile(
    _EXEC + r"(?:permission denied|operation not permitted|exec format error|is a directory)",
    re.IGNORECASE,
)


def from_start(exc: HypercoreError) -> HypercoreError:
    """`exc` as TaskError with docker's exit code, if it is about the command; else itself."""
    if isinstance(exc, TaskError):
        return exc
    text = exc.message.removeprefix("containerd: ")
    if _NOT_FOUND.search(text):
        return TaskError(text, hint="is it in the image? see the image's PATH", exit_code=127)
    if _NOT_EXECUTABLE.search(text):
        return TaskError(text, hint="the file is there but cannot be executed", exit_code=126)
    return exc
