"""Slots: the small number by which a running microVM gets what the host has only once.

Slot n means: uid and gid `uid_base + n` for the VMM, CID `3 + n`, TAP `hc<n>`, the n-th /30 of the
address pool. All hypercore instances of a host therefore share one directory of slots, whatever
their run directories are. A slot is a symbolic link named by its number whose target is the
holder's tag: made or refused by the kernel in one step, never half written, gone after a reboot.

Standard library only: the launcher's `delete` path loads it.
"""

import os

from hypercore import paths
from hypercore.errors import HypercoreError, ResourceExhausted, from_os_error

LIMIT = 16384
"""Slots of a host; the /30s of a /16."""

_DEFAULT_RUN_DIR = "/run/hypercore"


def tag(microvm_id: str) -> str:
    """The name under which host-wide things of a microVM are marked as ours.

    The id alone for the instance with the default run directory, `id@run_dir` for others.
    """
    run_dir = paths.run_dir_text()
    return microvm_id if run_dir == _DEFAULT_RUN_DIR else f"{microvm_id}@{run_dir}"


def untag(text: str) -> str:
    """The microVM's id if `text` is a tag of this instance, else an empty string."""
    return _untag(text, paths.run_dir_text())


def _untag(text: str, own_run_dir: str) -> str:
    microvm_id, _, run_dir = text.partition("@")
    return microvm_id if (run_dir or _DEFAULT_RUN_DIR) == own_run_dir else ""


def acquire(microvm_id: str) -> int:
    """Take the smallest free slot of the host for `microvm_id`.

    Safe against any number of processes doing the same. Not idempotent: each call takes one more.

    Raises:
        ResourceExhausted: all slots are taken.
    """
    directory = paths.slots_dir()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        taken = set(os.listdir(directory))
        for slot in range(LIMIT):
            if str(slot) in taken:
                continue
            try:
                os.symlink(tag(microvm_id), directory / str(slot))
            except FileExistsError:
                continue
            return slot
    except OSError as exc:
        raise from_os_error(exc, f"acquire a slot in {directory}") from exc
    raise ResourceExhausted(
        f"all {LIMIT} slots of this host are taken, none is left for microVM {microvm_id}",
        hint="remove microVMs that are no longer needed: hypercore cleanup",
    )


def release(microvm_id: str) -> None:
    """Give back every slot that `microvm_id` holds; fine if it holds none."""
    for slot in [number for number, owner in owners().items() if owner == microvm_id]:
        try:
            (paths.slots_dir() / str(slot)).unlink(missing_ok=True)
        except OSError as exc:
            raise from_os_error(exc, f"release slot {slot} of microVM {microvm_id}") from exc


def owners() -> dict[int, str]:
    """Slot → id of the microVM of this instance that holds it."""
    own = paths.run_dir_text()
    return {
        slot: microvm_id for slot, tag in holders().items() if (microvm_id := _untag(tag, own))
    }


def holders() -> dict[int, str]:
    """Slot → tag of its holder, of all instances."""
    directory = paths.slots_dir()
    found: dict[int, str] = {}
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return found
    place = str(directory)  # no Path per slot: with hundreds of them it shows
    for name in names:
        try:
            holder = os.readlink(f"{place}/{name}")
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise HypercoreError(
                f"{directory / name} is no link that names a slot's holder",
                hint=f"remove {directory / name}",
            ) from exc
        if name.isdecimal():
            found[int(name)] = holder
    return found
