"""What microVMs have of the network, by what is in the kernel and in our records: for people.

Works without containerd and without the shim server that made it. Changes nothing but in `prune`.
"""

import ipaddress
from dataclasses import dataclass

from hypercore import netlink, network, network_names, nft, ports, ruleset, slots, tap
from hypercore.errors import from_os_error


@dataclass(frozen=True, slots=True)
class Connection:
    """One NIC of a microVM, as the host sees it."""

    microvm_id: str
    """with the run directory behind an @, if it is another instance's"""
    tap_name: str
    slot: int
    mode: str = ""
    """empty: in another network namespace, which has its own tables"""
    addresses: tuple[str, ...] = ()
    mac: str = ""
    network: str = ""
    ports: tuple[str, ...] = ()
    allow_host: bool = False
    restricted: bool = False
    egress: tuple[str, ...] = ()
    live: bool = False
    """the TAP is there"""


def connections() -> list[Connection]:
    """All of this host's, of every instance; those by slot only, too."""
    try:
        return _connections()
    except OSError as exc:
        raise from_os_error(exc, "list TAPs and nft elements") from exc


def _connections() -> list[Connection]:
    tags = slots.holders()
    links = {link.name for link in netlink.links() if tap.is_ours(link)}
    guests: dict[str, list[tuple[str, str]]] = {}
    for of, size in ((ruleset.GUESTS4, 4), (ruleset.GUESTS6, 16)):
        for element, tag in nft.elements(of):
            name = _name(element.key)
            guests.setdefault(name, []).append((_address(element.key[24 : 24 + size]), tag))
            tags.setdefault(_slot(name), tag)
    macs = {_name(e.key): e.key[16:22].hex(":") for e, _ in nft.elements(ruleset.GUESTS4)}
    bridged = {_name(e.key): e.key[16:22].hex(":") for e, _ in nft.elements(ruleset.SENDERS)}
    numbers = network_names.names()
    names = {
        _name(e.key): numbers.get(int.from_bytes(e.data, "little"), "?")
        for e, _ in nft.elements(ruleset.NETWORKS)
    }
    host_users = {_name(e.key) for e, _ in nft.elements(ruleset.HOST_USERS)}
    restricted = {_name(e.key) for e, _ in nft.elements(ruleset.RESTRICTED)}
    egress: dict[str, list[str]] = {}
    for of in (ruleset.EGRESS4, ruleset.EGRESS6):
        for element, _ in nft.elements(of):
            span = f"{_address(element.key[16:])}-{_address(element.last[16:])}"
            egress.setdefault(_name(element.key), []).append(span)
    published: dict[str, list[str]] = {}
    for tag, port in ports.leases():
        published.setdefault(tag, []).append(str(port))
    found = []
    for slot, tag in sorted(tags.items()):
        name = tap.name_of(slot)
        mode = "nat" if name in guests else "bridge" if name in bridged else ""
        found.append(
            Connection(
                microvm_id=tag,
                tap_name=name,
                slot=slot,
                mode=mode,
                addresses=tuple(address for address, _ in guests.get(name, ())),
                mac=macs.get(name) or bridged.get(name, ""),
                network=names.get(name, ""),
                ports=tuple(dict.fromkeys(published.get(tag, ()))) if mode == "nat" else (),
                allow_host=name in host_users,
                restricted=name in restricted,
                egress=tuple(egress.get(name, ())),
                live=name in links,
            )
        )
    return found


def prune() -> list[str]:
    """Remove what belongs to no microVM that holds a slot; tells what it was.

    When no microVM of any instance is left, our tables and changed settings of the host go too:
    the next spawn makes them again.

    Raises:
        HypercoreError: something could not be removed; call again.
    """
    before = connections()
    live = set(slots.owners().values())
    stale = [each for each in before if slots.untag(each.microvm_id) not in live | {""}]
    network.reclaim_all(live)
    done = [f"{each.tap_name} of {each.microvm_id}" for each in stale]
    if not slots.holders() and not connections() and network.is_prepared():
        network.restore_host()
        done.append("nftables tables and settings of the host")
    return done


def _name(key: bytes) -> str:
    return key[:16].rstrip(b"\0").decode()


def _slot(tap_name: str) -> int:
    return int(tap_name.removeprefix("hc"))


def _address(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))
