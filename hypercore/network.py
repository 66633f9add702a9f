"""A microVM's network, by mode: attached, detached, reclaimed; and the host made ready for it.

Runs inside the shim server: synchronous, well under a millisecond per VM, no pyroute2. The modes
are nat.py, bridge.py and netns.py; docs/networking.md tells what users see of them.
"""

import errno
import os
from collections.abc import Callable, Collection

from hypercore import (
    attachment,
    bridge,
    host_settings,
    nat,
    netns,
    nft,
    policy_route,
    recent,
    ruleset,
    slots,
    tap,
)
from hypercore.attachment import Attachment
from hypercore.config import HostConfig
from hypercore.errors import InvalidArgument, NotFound, StateError, from_os_error
from hypercore.spec import NetworkSpec

__all__ = [
    "MODES",
    "TUN",
    "Attachment",
    "attach",
    "check_pool",
    "detach",
    "is_prepared",
    "prepare_host",
    "reclaim_all",
    "restore_host",
]

MODES = ("nat", "bridge", "netns", "none")

_DELETE_TRIES = 20
TUN = "/dev/net/tun"
_NO_NFTABLES = (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL, errno.ENOENT)


def prepare_host(config: HostConfig) -> None:
    """Put the rules of mode nat in place; idempotent, one netlink query when they are.

    Raises:
        NotFound: no /dev/net/tun, or a kernel without nf_tables.
        ResourceExhausted: the host itself routes to addresses of the pool.
    """
    if not os.path.exists(TUN):
        raise NotFound(f"{TUN} does not exist", hint="load its module: modprobe tun")
    _ensure(ruleset.ROUTED)
    nat.check_pool(config.network_pool)


def check_pool(config: HostConfig) -> None:
    """Raise as `prepare_host` would for a pool that the host routes to."""
    nat.check_pool(config.network_pool)


def is_prepared() -> bool:
    """Whether `prepare_host` has nothing to install; needs root as that does."""
    try:
        return os.path.exists(TUN) and nft.installed(ruleset.ROUTED)
    except OSError as exc:
        if exc.errno not in _NO_NFTABLES:
            raise from_os_error(exc, "ask for the nftables tables") from exc
        return False


def restore_host() -> None:
    """Remove our nft tables and set back what was changed on the host; idempotent.

    For the case that no microVM is left: guests that still run lose their network.
    """
    recent.forget()
    for table in ruleset.TABLES:
        nft.remove(table)
    policy_route.remove_all()
    host_settings.restore()


def attach(
    microvm_id: str,
    slot: int,
    spec: NetworkSpec,
    config: HostConfig,
    *,
    tap_owner: int = -1,
) -> Attachment:
    """Create the network of a microVM; on failure nothing of it is left.

    Args:
        tap_owner: uid of a VMM that opens its TAP by name; -1: it gets the TAP's fd.

    Raises:
        InvalidArgument: an unknown mode or interface, naming what the host has.
        ResourceExhausted: the pool is used up or clashes with a route of the host.
    """
    _check_mode(spec)
    try:
        match spec.mode:
            case "none":
                return Attachment()
            case "nat":
                pool = config.network_pool
                return _with_table(
                    ruleset.ROUTED, lambda: nat.attach(microvm_id, slot, spec, pool, tap_owner)
                )
            case "bridge":
                return _with_table(
                    ruleset.BRIDGED, lambda: bridge.attach(microvm_id, slot, spec, tap_owner)
                )
            case "netns":
                return netns.attach(microvm_id, slot, spec, tap_owner)
    except OSError as exc:
        raise from_os_error(exc, f"attach microVM {microvm_id} to the network") from exc
    raise InvalidArgument(
        f"network mode = {spec.mode!r}: unknown", hint="known ones: " + ", ".join(MODES)
    )


def _check_mode(spec: NetworkSpec) -> None:
    """Refuse what would be asked for in vain: isolation that is not there is worse than none."""
    if spec.mode not in ("bridge", "netns"):
        return
    for key, asked in (
        ("ports", bool(spec.ports)),
        ("allow_host", spec.allow_host),
        ("name", bool(spec.name)),
        ("egress", spec.egress is not None),
        ("rate_limit", bool(spec.rate_kbit) and spec.mode == "netns"),
    ):
        if asked:
            raise InvalidArgument(
                f'{key} means nothing in network mode "{spec.mode}"',
                hint='use mode = "nat", or leave it to whoever runs that network',
            )


def detach(microvm_id: str, slot: int) -> None:
    """Remove what `attach` made; needs neither guest nor VMM, fine if nothing is left."""
    tag = slots.tag(microvm_id)
    record = attachment.read_record(microvm_id)
    try:
        try:
            nft.delete(list(record.elements))
        except OSError as exc:
            # Some of them are gone, and so none was deleted: look which ones there are.
            if exc.errno != errno.ENOENT:
                raise
            _delete_elements(lambda owner: owner == tag)
        for redirect in record.redirects:
            netns.undo(redirect)
        tap.delete(microvm_id, slot)
        attachment.remove_record(microvm_id)
    except OSError as exc:
        raise from_os_error(exc, f"detach microVM {microvm_id} from the network") from exc


def reclaim_all(live_ids: Collection[str]) -> None:
    """Remove every TAP and nft element of this instance whose microVM is not in `live_ids`."""

    def is_dead(tag: str) -> bool:
        microvm_id = slots.untag(tag)
        return bool(microvm_id) and microvm_id not in live_ids

    try:
        _delete_elements(is_dead)
        tap.delete_all(is_dead)
    except OSError as exc:
        raise from_os_error(exc, "reclaim TAPs and nft elements") from exc


def _with_table(table: nft.Table, step: Callable[[], Attachment]) -> Attachment:
    """Run the step with our table in place. That it is there is remembered: if somebody has
    removed it since, adding elements fails, and then it is made anew."""
    _ensure_once(table)
    try:
        return step()
    except OSError as exc:
        if exc.errno != errno.ENOENT or nft.installed(table):
            raise
    _ensure(table)
    return step()


@recent.remembered
def _ensure_once(table: nft.Table) -> None:
    _ensure(table)


def _ensure(table: nft.Table) -> None:
    """Install a table if it is not there as it should be."""
    try:
        if not nft.installed(table):
            try:
                nft.install(table)
            except OSError as exc:
                if exc.errno != errno.EEXIST:
                    raise
                nft.replace(table)  # another version of hypercore had other sets
            _restore_elements(table)
    except OSError as exc:
        if exc.errno in _NO_NFTABLES:
            raise NotFound(
                f"the kernel refuses our nftables rules: {exc.strerror}",
                hint="load its modules: modprobe nf_tables nft_masq nft_reject_inet",
            ) from exc
        raise from_os_error(exc, f"install the nftables table {table.name}") from exc


def _restore_elements(table: nft.Table) -> None:
    """Open the table again for VMs that run: somebody may have flushed the whole ruleset, as
    restarting nftables.service does."""
    for microvm_id in slots.owners().values():
        elements = attachment.read_record(microvm_id).elements
        nft.add([each for each in elements if each.of in table.sets], slots.tag(microvm_id))


def _delete_elements(is_wanted: Callable[[str], bool]) -> None:
    """Delete the elements whose tag `is_wanted`, found by listing all."""
    for _ in range(_DELETE_TRIES):
        found = [
            element
            for wanted in ruleset.VM_SETS
            for element, tag in nft.elements(wanted)
            if is_wanted(tag)
        ]
        try:
            nft.delete(found)
        except OSError as exc:
            # Somebody else removed one of them first: the batch did nothing, look again.
            if exc.errno != errno.ENOENT:
                raise
            continue
        return
    raise StateError(
        "elements of our nftables tables keep changing while being removed",
        hint="try again: hypercore cleanup",
    )
