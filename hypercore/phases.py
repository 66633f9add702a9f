"""What of a spawn's time is hypercore's own: not the VMM's, the guest's, nor containerd's."""

from collections.abc import Mapping

_OWN = ("probe", "network", "disks", "root disks")
"""Phases of the shim server in which neither VMM nor guest does anything."""
_OUTSIDE_START = ("total", "root disks", "create", "start")
"""What the shim server adds to MicroVM.start's own phases, whose sum is less than their total."""


def ours(
    engine_ms: Mapping[str, float], waited_ms: float, shim_ms: Mapping[str, float]
) -> dict[str, float]:
    """Milliseconds of the engine and of the shim server that are hypercore's own work.

    Args:
        engine_ms: the engine's phases.
        waited_ms: what of them the engine waited for containerd.
        shim_ms: the shim server's phases; empty if they are not known.
    """
    engine = sum(engine_ms.values()) - waited_ms
    found = {"engine": round(max(engine, 0.0), 3)}
    if "total" in shim_ms:
        others = (
            value
            for phase, value in shim_ms.items()
            if phase not in _OWN and phase not in _OUTSIDE_START
        )
        shim = shim_ms["total"] - sum(others) + shim_ms.get("root disks", 0.0)
        found["shim"] = round(max(shim, 0.0), 3)
        found["total"] = round(found["engine"] + found["shim"], 3)
    return found
