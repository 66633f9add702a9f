"""The log files of a microVM, read: whole, from the tail, or as bytes for a client.

Written by the shim server, which renames a full `stdout.log` to `stdout.log.1` and so on; the
highest number is the oldest. Following a running task is the stdio socket's business.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from hypercore.attach import ExitStatus
from hypercore.errors import Unavailable, from_os_error
from hypercore.paths import MicroVMPaths

CHUNK_BYTES = 64 * 1024
_ROTATIONS = 1000
"""A log that rotates while it is opened is opened again, but not for ever."""


def segments(path: Path) -> list[Path]:
    """The existing files of a log, the oldest first."""
    numbered = []
    for candidate in path.parent.glob(f"{path.name}.*"):
        suffix = candidate.name.removeprefix(f"{path.name}.")
        if suffix.isdecimal():
            numbered.append((int(suffix), candidate))
    found = [candidate for _number, candidate in sorted(numbered, reverse=True)]
    return [*found, path] if path.exists() else found


@contextmanager
def _opened(path: Path) -> Iterator[list[BinaryIO]]:
    """The files of a log as of one moment, the oldest first.

    A rotation renames all of them: whoever opened them one by one would read a segment twice, or
    miss one. What was opened counts only if the names still lead to the same files afterwards.
    """
    for _ in range(_ROTATIONS):
        with ExitStack() as stack:
            files: list[BinaryIO] = []
            try:
                found = segments(path)
                files += (stack.enter_context(open(segment, "rb")) for segment in found)
                unchanged = segments(path) == found and all(
                    os.path.samestat(os.fstat(file.fileno()), segment.stat())
                    for file, segment in zip(files, found, strict=True)
                )
            except FileNotFoundError:
                unchanged = False
            except OSError as exc:
                raise from_os_error(exc, f"read {path}") from exc
            if unchanged:
                yield files
                return
    raise Unavailable(f"{path} rotates faster than it can be read", hint="try again")


def chunks(path: Path, skip_bytes: int = 0) -> Iterator[bytes]:
    """The bytes of a log from its `skip_bytes`th on."""
    with _opened(path) as files:
        yield from _chunks(path, files, skip_bytes)


def tail(path: Path, lines: int) -> Iterator[bytes]:
    """The last `lines` lines of a log."""
    with _opened(path) as files:
        yield from _chunks(path, files, _tail_offset(files, lines))


def tail_offset(path: Path, lines: int) -> int:
    """Where the last `lines` lines of a log begin, as a number of bytes from its start."""
    with _opened(path) as files:
        return _tail_offset(files, lines)


def _chunks(path: Path, files: Sequence[BinaryIO], skip_bytes: int) -> Iterator[bytes]:
    try:
        for file in files:
            size = os.fstat(file.fileno()).st_size
            if skip_bytes >= size:
                skip_bytes -= size
                continue
            file.seek(skip_bytes)
            skip_bytes = 0
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as exc:
        raise from_os_error(exc, f"read {path}") from exc


def _tail_offset(files: Sequence[BinaryIO], lines: int) -> int:
    total = sum(os.fstat(file.fileno()).st_size for file in files)
    if lines <= 0:
        return total
    wanted = lines
    end = total
    for file in reversed(files):
        position = segment_end = os.fstat(file.fileno()).st_size
        while position > 0:
            start = max(0, position - CHUNK_BYTES)
            file.seek(start)
            chunk = file.read(position - start)
            stop = len(chunk)
            while (found := chunk.rfind(b"\n", 0, stop)) >= 0:
                offset = end - segment_end + start + found
                if offset != total - 1:  # the newline that ends the last line is none between
                    wanted -= 1
                    if wanted == 0:
                        return offset + 1
                stop = found
            position = start
        end -= segment_end
    return 0


def copy(path: Path, fd: int, lines: int | None = None) -> None:
    """Write a log, or its last `lines` lines, to `fd`, blocking; a reader that went away ends it
    quietly.
    """
    for chunk in chunks(path) if lines is None else tail(path, lines):
        view = memoryview(chunk)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BrokenPipeError:
                return


def exit_record(where: MicroVMPaths) -> ExitStatus | None:
    """How the task ended, from the shim server's record; None when there is none."""
    try:
        record = json.loads(where.exit_record.read_bytes())
        return ExitStatus(
            int(record["exit_status"]),
            int(record.get("missing_bytes") or 0),
            str(record.get("reason") or ""),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def timings(where: MicroVMPaths) -> dict[str, dict[str, float]]:
    """Milliseconds by phase, under "shim", as the shim server wrote them; empty if it did not."""
    try:
        document = json.loads(where.timings.read_bytes())
        return {"shim": {str(phase): float(value) for phase, value in document.items()}}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        return {}
