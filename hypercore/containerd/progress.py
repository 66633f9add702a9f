"""How far a pull, a load or an unpacking is."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One step's present state; a step is done when `done_bytes` equals `total_bytes`."""

    step: str
    """resolve, download, exists (need not be downloaded), load or unpack"""
    name: str
    """the image for resolve, else a layer's digest"""
    done_bytes: int = 0
    total_bytes: int = 0


ProgressCallback = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """For callers that do not want to know."""
