"""The log files of a microVM, read: whole, from the tail, or as bytes for a client.

Written by the shim server, which renames a full `stdout.log` to `stdout.log.1` and so on; the
highest number is the oldest. Following a running task is the stdio socket's business.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from hypercore.attach import ExitStatus
from hypercore.errors import from_os_error
from hypercore.paths import MicroVMPaths

CHUNK_BYTES = 64 * 1024


def segments(path: Path) -> list[Path]:
    """The existing files of a log, the oldest first."""
    numbered = []
    for candidate in path.parent.glob(f"{path.name}.*"):
        suffix = candidate.name.removeprefix(f"{path.name}.")
        if suffix.isdecimal():
            numbered.append((int(suffix), candidate))
    found = [candidate for _number, candidate in sorted(numbered, reverse=True)]
    return [*found, path] if path.exists() else found


def chunks(path: Path, skip_bytes: int = 0) -> Iterator[bytes]:
    """The bytes of a log from its `skip_bytes`th on."""
    for segment in segments(path):
        try:
            with open(segment, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if skip_bytes >= size:
                    skip_bytes -= size
                    continue
                file.seek(skip_bytes)
                skip_bytes = 0
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        except FileNotFoundError:
            continue  # rotated away meanwhile
        except OSError as exc:
            raise from_os_error(exc, f"read {segment}") from exc


def tail_offset(path: Path, lines: int) -> int:
    """Where the last `lines` lines of a log begin, as a number of bytes from its start."""
    files = segments(path)
    total = sum(segment.stat().st_size for segment in files)
    if lines <= 0:
        return total
    wanted = lines
    end = total
    for segment in reversed(files):
        with open(segment, "rb") as file:
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


def copy(path: Path, fd: int, skip_bytes: int = 0) -> None:
    """Write a log to `fd`, blocking; a reader that went away ends it quietly."""
    for chunk in chunks(path, skip_bytes):
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
