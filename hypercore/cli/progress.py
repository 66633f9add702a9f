"""How far a pull or load is, on stderr: live lines on a terminal, else one line a step."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypercore.containerd.progress import Progress

REDRAW_S = 0.1


@contextmanager
def shown() -> Iterator[Callable[["Progress"], None]]:
    """A progress callback; leaving the block ends the display."""
    if not sys.stderr.isatty():
        yield _plain()
        return
    display = _Live()
    try:
        yield display.update
    finally:
        display.finish()


def _plain() -> Callable[["Progress"], None]:
    told: set[tuple[str, str]] = set()

    def update(progress: "Progress") -> None:
        key = (progress.step, progress.name)
        if key in told or progress.done_bytes < progress.total_bytes:
            return
        told.add(key)
        size = f" {size_text(progress.total_bytes)}" if progress.total_bytes else ""
        print(f"{progress.step} {short(progress.name)}{size}", file=sys.stderr, flush=True)

    return update


class _Live:
    """One line per step, redrawn in place."""

    def __init__(self) -> None:
        self._steps: dict[str, Progress] = {}
        self._drawn = 0
        self._last = 0.0

    def update(self, progress: "Progress") -> None:
        self._steps[progress.name] = progress
        now = time.monotonic()
        if now - self._last >= REDRAW_S:
            self._last = now
            self._draw()

    def finish(self) -> None:
        if self._steps:
            self._draw()

    def _draw(self) -> None:
        columns, rows = os.get_terminal_size(2)
        lines = [_line(progress)[: columns - 1] for progress in self._steps.values()]
        lines = lines[-max(1, rows - 1) :]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        text = "".join(f"\x1b[2K{line}\n" for line in lines)
        sys.stderr.write(up + text)
        sys.stderr.flush()
        self._drawn = len(lines)


def _line(progress: "Progress") -> str:
    if not progress.total_bytes:
        return f"{short(progress.name)}: {progress.step}"
    done, total = progress.done_bytes, progress.total_bytes
    if done >= total:
        return f"{short(progress.name)}: {progress.step} {size_text(total)}"
    percent = 100 * done // total
    return (
        f"{short(progress.name)}: {progress.step} {size_text(done)}/{size_text(total)} {percent}%"
    )


def short(name: str) -> str:
    return name.removeprefix("sha256:")[:12] if name.startswith("sha256:") else name


def size_text(size_bytes: int) -> str:
    """A size as docker prints it: decimal units, three digits."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g}{unit}"
        size /= 1000
    return f"{size:.3g}TB"
