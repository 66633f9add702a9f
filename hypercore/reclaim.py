"""Take back all that a microVM holds on this host, whoever started it and however that died.

Needs no guest, no VMM, no event loop and no memory of the start: only the state directory, the
slots and the mark on processes. Idempotent; goes on past failures and reports them together.
Standard library only, because the launcher's `delete` path loads it. What outlives a microVM on
purpose, its data directory, is not touched.
"""

import shutil
from collections.abc import Callable

from hypercore import cgroup, paths, processes, slots
from hypercore.errors import HypercoreError

KILL_TIMEOUT_S = 1.0


def reclaim(microvm_id: str) -> None:
    """Kill the microVM's processes, give back its cgroup, network, slot and run directory.

    Raises:
        HypercoreError: names every part that could not be taken back; call again.
    """
    files = paths.MicroVMPaths(microvm_id)
    failures: list[str] = []

    def attempt(what: str, step: Callable[[], None]) -> bool:
        try:
            step()
        except (OSError, HypercoreError) as exc:
            failures.append(f"{what}: {exc}")
            return False
        return True

    # What a process still running uses is not given to anybody else.
    gone = attempt("processes", lambda: _kill_processes(microvm_id))
    if gone:
        attempt("cgroup", lambda: cgroup.delete(microvm_id))
        if attempt("network", lambda: _detach_network(microvm_id)):
            attempt("slot", lambda: slots.release(microvm_id))
    if not failures and files.run.exists():
        attempt("run directory", lambda: shutil.rmtree(files.run))
    if failures:
        raise HypercoreError(
            f"microVM {microvm_id} was not reclaimed entirely: " + "; ".join(failures),
            hint=f"try again: hypercore cleanup {microvm_id}",
        )


def _kill_processes(microvm_id: str) -> None:
    recorded, more = processes.read(paths.MicroVMPaths(microvm_id).processes)
    # vhost-device-vsock and the like go after the VMM that uses them.
    victims = list(reversed(recorded))
    if more:
        known = {process.pid for process in recorded}
        victims += [p for p in processes.find_marked(microvm_id) if p.pid not in known]
    survivors = processes.kill(victims, KILL_TIMEOUT_S)
    if survivors:
        names = ", ".join(f"{p.role} (pid {p.pid})" for p in survivors)
        raise HypercoreError(f"{names} not gone {KILL_TIMEOUT_S:g} s after SIGKILL")


def _detach_network(microvm_id: str) -> None:
    from hypercore import network

    for slot, owner in slots.owners().items():
        if owner == microvm_id:
            network.detach(microvm_id, slot)
