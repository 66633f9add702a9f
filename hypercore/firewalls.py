"""Other firewalls on the host, which may drop what guests send: seen, and opened when asked to.

nftables asks every table, so ours can refuse but not allow. docker, ufw and hand-written rulesets
set the policy of a forward chain to drop. Where that chain is iptables', two rules for our TAPs
open it; isolation does not depend on them, ours refuses before. Nothing here runs at spawn but
`closed`, one or two listings.
"""

import errno
import shutil
import subprocess
from dataclasses import dataclass

from hypercore import nft, ruleset
from hypercore.errors import Unavailable
from hypercore.netlink import attrs, each_attr

TAPS = "hc+"
"""our TAPs as iptables writes it"""
_PREFIX = b"hc"
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
_TOOLS = {2: "iptables", 10: "ip6tables"}
_USER_CHAIN = "DOCKER-USER"
"""docker's, for the rules of others: it goes before its own and stays when docker starts anew"""
_FORWARD_HOOK, _DROP = 2, b"\0\0\0\0"
_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Closed:
    """A forward chain that drops what no rule of it allows."""

    family: int
    table: str
    chain: str
    user_chain: str = ""

    def __str__(self) -> str:
        return f"table {_FAMILIES[self.family]} {self.table} chain {self.chain}"

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """What opens it; empty where that is not iptables' and must be written into its file."""
        tool = _TOOLS.get(self.family)
        if tool is None or (self.table, self.chain) != ("filter", "FORWARD"):
            return ()
        chain = self.user_chain or self.chain
        return tuple(
            (tool, "-w", "-I", chain, direction, TAPS, "-j", "ACCEPT")
            for direction in ("-i", "-o")
        )

    @property
    def remedy(self) -> str:
        if self.commands:
            return "hypercore doctor --fix, or: " + " && ".join(map(" ".join, self.commands))
        return (
            f'add to {self}: iifname "hc*" accept; oifname "hc*" accept'
            " (in the host's own ruleset, such as /etc/nftables.conf)"
        )


def dropping() -> list[Closed]:
    """Forward chains of others that drop what no rule of theirs allows."""
    chains = nft.chains()
    found = []
    for chain in chains:
        if chain.family not in _FAMILIES or chain.table == ruleset.NAME:
            continue
        if chain.hook != _FORWARD_HOOK or chain.policy != _DROP:
            continue
        beside = {
            each.name
            for each in chains
            if (each.family, each.table) == (chain.family, chain.table)
        }
        user_chain = _USER_CHAIN if _USER_CHAIN in beside else ""
        found.append(Closed(chain.family, chain.table, chain.name, user_chain))
    return found


def closed() -> list[Closed]:
    """Those of them that keep guests of mode nat from forwarding."""
    return [each for each in dropping() if not _lets_taps_pass(each)]


def open_for_taps(wanted: Closed) -> None:
    """Add the two rules.

    Raises:
        Unavailable: iptables is missing or refuses.
    """
    for command in wanted.commands:
        path = shutil.which(command[0], path="/usr/sbin:/sbin:/usr/bin:/bin")
        if path is None:
            raise Unavailable(f"{wanted} is to be opened by {command[0]}, which is not installed")
        done = subprocess.run(
            (path, *command[1:]), capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
        if done.returncode != 0:
            raise Unavailable(f"{' '.join(command)}: {done.stderr.strip()}")


def bridged_frames_are_filtered() -> bool:
    """Whether frames inside a bridge go through these chains too (br_netfilter)."""
    try:
        with open("/proc/sys/net/bridge/bridge-nf-call-iptables") as switch:
            return switch.read().strip() == "1"
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.EACCES):
            raise
        return False


def _lets_taps_pass(wanted: Closed) -> bool:
    """Whether rules accept what comes from our TAPs, and what goes to them."""
    return any(
        _ways(wanted.family, wanted.table, name) == {nft.IIFNAME, nft.OIFNAME}
        for name in (wanted.chain, wanted.user_chain)
        if name
    )


def _ways(family: int, table: str, chain: str) -> set[int]:
    """By which of IIFNAME and OIFNAME the chain's rules know our TAPs and accept."""
    ways = set()
    for rule in nft.rules(family, table, chain):
        keys, accepts, ours = set(), False, False
        for _, expression in each_attr(rule):
            name, values = attrs(expression)[1].rstrip(b"\0"), attrs(expression).get(2, b"")
            if name == b"meta":
                keys.add(int.from_bytes(attrs(values).get(2, b""), "big"))
            elif name == b"cmp":
                ours |= attrs(attrs(values).get(3, b"")).get(1, b"") == _PREFIX
            elif name == b"immediate":
                verdict = attrs(attrs(values).get(2, b"")).get(2, b"")
                accepts |= attrs(verdict).get(1) == b"\0\0\0\1"
        if ours and accepts:
            ways |= keys & {nft.IIFNAME, nft.OIFNAME}
    return ways
