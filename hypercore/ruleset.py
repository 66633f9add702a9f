"""What our nftables tables say: rules that never name a VM, and sets whose elements the VMs are.

The rules look at the interface group of our TAPs and at the sets. They are installed once per host
in one atomic batch that leaves the elements of running VMs alone; a VM adds and removes only its
elements. What they mean for guests is in docs/networking.md. Beside each rule stands what
`nft list table inet hypercore` shows for it. Policy only: how it gets into the kernel is nft.py's.
"""

import ipaddress

from hypercore.nft import (
    ACCEPT,
    BRIDGE,
    CT_STATE,
    CT_STATUS,
    DROP,
    FORWARD,
    IIFGROUP,
    IIFNAME,
    IIFTYPE,
    INET,
    INPUT,
    L4PROTO,
    LINK,
    MASQUERADE,
    NETWORK,
    NFPROTO,
    OIFGROUP,
    OIFNAME,
    OUTPUT,
    POSTROUTING,
    PREROUTING,
    PROTOCOL,
    REGISTER,
    REJECT,
    RETURN,
    TRANSPORT,
    Chain,
    Rule,
    Set,
    Table,
    address_type,
    come_from,
    ct,
    equals,
    host_u32,
    in_set,
    jump,
    lead_to,
    look_up,
    masked,
    meta,
    payload,
    priority,
    set_mark_by,
    set_priority_by,
)

NAME = "hypercore"
ROUTED_GROUP, BRIDGED_GROUP = 0x4843, 0x4844
"""interface groups ("HC" and the next) of the TAPs that the rules of either table look at"""


def _addresses(*texts: str) -> tuple[bytes, ...]:
    return tuple(ipaddress.ip_address(each).packed for each in texts)


def _set(name: str, *fields: str, constants: tuple[bytes, ...] = ()) -> Set:
    return Set(INET, NAME, name, fields, constants)


def _map(name: str, *fields: str, to: tuple[str, ...]) -> Set:
    return Set(INET, NAME, name, fields, data=to)


def _ranges(name: str, *fields: str) -> Set:
    return Set(INET, NAME, name, fields, intervals=True)


GUESTS4 = _set("guests4", "ifname", "ether_addr", "ipv4_addr")
GUESTS6 = _set("guests6", "ifname", "ether_addr", "ipv6_addr")
"""who may send: a frame from a TAP has to have this MAC and this address"""
EXITS4 = _set("exits4", "ipv4_addr", "ifname")
EXITS6 = _set("exits6", "ipv6_addr", "ifname")
"""out of which interface a guest's address may go, and is masqueraded"""
RESOLVERS4 = _set("resolvers4", "ifname", "ipv4_addr")
RESOLVERS6 = _set("resolvers6", "ifname", "ipv6_addr")
"""a guest's DNS servers: open on port 53 even where the address is otherwise closed"""
LOCAL_RESOLVERS = _map("local_resolvers", "ifname", "ipv4_addr", to=("ipv4_addr",))
"""an address of the host's at which a guest finds the DNS server on the host's loopback"""
MARKS = _map("marks", "ifname", to=("mark",))
"""TAPs whose traffic takes another way than the host's own: which one (policy_route.py)"""
PORTS4 = _map("ports4", "inet_proto", "inet_service", to=("ipv4_addr", "inet_service"))
PORTS6 = _map("ports6", "inet_proto", "inet_service", to=("ipv6_addr", "inet_service"))
"""ports published on all addresses of the host: to whom"""
BOUND4 = _map(
    *("bound4", "ipv4_addr", "inet_proto", "inet_service"), to=("ipv4_addr", "inet_service")
)
BOUND6 = _map(
    *("bound6", "ipv6_addr", "inet_proto", "inet_service"), to=("ipv6_addr", "inet_service")
)
"""ports published on one address"""
HOST_USERS = _set("host_users", "ifname")
"""TAPs whose guests may use the host's services"""
NETWORKS = _map("networks", "ifname", to=("classid",))
"""TAPs in a network by name: its number (network_names.py), which a packet carries as its
priority while it is looked at. nft cannot print a rule that compares what two maps say."""
MEMBERS = _set("members", "classid", "ifname")
"""network's number and TAP: who can be reached by the others of that network"""
RESTRICTED = _set("restricted", "ifname")
"""TAPs whose guests may only reach what is in"""
EGRESS4, EGRESS6 = (
    _ranges("egress4", "ifname", "ipv4_addr"),
    _ranges("egress6", "ifname", "ipv6_addr"),
)
UPLOADS, DOWNLOADS = _set("uploads", "ifname"), _set("downloads", "ifname")
"""TAPs whose guests send, or are sent to, no faster than the element's limit"""
FIXED4 = Set(BRIDGE, NAME, "fixed4", ("ifname",))
FIXED6 = Set(BRIDGE, NAME, "fixed6", ("ifname",))
"""bridged TAPs whose guests have known addresses, and send from no others:"""
OWNERS4 = Set(BRIDGE, NAME, "owners4", ("ifname", "ipv4_addr"))
OWNERS6 = Set(BRIDGE, NAME, "owners6", ("ifname", "ipv6_addr"))
BRIDGED_UPLOADS = Set(BRIDGE, NAME, "uploads", ("ifname",))
BRIDGED_DOWNLOADS = Set(BRIDGE, NAME, "downloads", ("ifname",))
SENDERS = Set(BRIDGE, NAME, "senders", ("ifname", "ether_addr"))
"""the MAC that a frame from a bridged TAP has to have"""

# Where clouds hand out credentials, besides 169.254.0.0/16: Alibaba, Azure's wire server, Oracle;
# over IPv6 AWS and Google.
_METADATA4 = _set(
    "metadata4",
    "ipv4_addr",
    constants=_addresses("100.100.100.200", "168.63.129.16", "192.0.0.192"),
)
_METADATA6 = _set("metadata6", "ipv6_addr", constants=_addresses("fd00:ec2::254", "fd20:ce::254"))

_ESTABLISHED, _RELATED, _DST_NAT = 2, 4, 0x20
_UDP, _TCP, _ICMP, _ICMPV6 = 17, 6, 1, 58


def _protocol(number: int) -> Rule:
    return meta(L4PROTO), equals(bytes([number]))


def _icmp(protocol: int, kind: int) -> Rule:
    return (*_protocol(protocol), payload(TRANSPORT, 0, 1), equals(bytes([kind])))


def _ct(key: int, bits: int) -> Rule:
    """One of these bits of the connection's state or status is set."""
    return ct(key), masked(host_u32(bits)), equals(bytes(4), negate=True)


_IPV4: Rule = (meta(NFPROTO), equals(b"\x02"))
_IPV6: Rule = (meta(NFPROTO), equals(b"\x0a"))
_FROM_GUEST: Rule = (meta(IIFGROUP), equals(host_u32(ROUTED_GROUP)))
_TO_GUEST: Rule = (meta(OIFGROUP), equals(host_u32(ROUTED_GROUP)))
_REPLY = _ct(CT_STATE, _ESTABLISHED | _RELATED)
_PUBLISHED = _ct(CT_STATUS, _DST_NAT)
_TO_DNS: Rule = (payload(TRANSPORT, 2, 2), equals(b"\0\x35"))
_FROM_DHCP_SERVER: Rule = (payload(TRANSPORT, 0, 2), equals(b"\0\x43"))

# Keys of the sets, as registers one after another. An interface name takes four of them, a MAC
# two, an IPv4 address one, an IPv6 address four.
_ETHERNET: Rule = (meta(IIFTYPE), equals(b"\x01\0"))
_SENDER: Rule = (meta(IIFNAME), payload(LINK, 6, 6, REGISTER + 4))
_SOURCE4: Rule = (*_ETHERNET, *_SENDER, payload(NETWORK, 12, 4, REGISTER + 6))
_SOURCE6: Rule = (*_ETHERNET, *_SENDER, payload(NETWORK, 8, 16, REGISTER + 6))
_EXIT4: Rule = (payload(NETWORK, 12, 4), meta(OIFNAME, REGISTER + 1))
_EXIT6: Rule = (payload(NETWORK, 8, 16), meta(OIFNAME, REGISTER + 4))
_ASKS4: Rule = (meta(IIFNAME), payload(NETWORK, 16, 4, REGISTER + 4))
_ASKS6: Rule = (meta(IIFNAME), payload(NETWORK, 24, 16, REGISTER + 4))
_TARGET4: Rule = (payload(NETWORK, 16, 4),)
_TARGET6: Rule = (payload(NETWORK, 24, 16),)

# { udp, tcp } dport 53 iifname . ip daddr @resolvers4 accept, and the same for IPv6
_DNS_ALLOWED: tuple[Rule, ...] = tuple(
    (*_protocol(protocol), *_TO_DNS, *resolver, ACCEPT)
    for resolver in (
        (*_IPV4, *_ASKS4, in_set("resolvers4")),
        (*_IPV6, *_ASKS6, in_set("resolvers6")),
    )
    for protocol in (_UDP, _TCP)
)

_FROM: Rule = (meta(IIFNAME),)
_FROM_LOOPBACK4: Rule = (*(payload(NETWORK, 12, 4), masked(b"\xff\0\0\0"), equals(b"\x7f\0\0\0")),)
_LOOPBACK6 = bytes(15) + b"\1"
_TO_LOOPBACK: Rule = (*_IPV4, *_TARGET4, masked(b"\xff\0\0\0"), equals(b"\x7f\0\0\0"))

_SOURCE = Chain(
    "source",
    (
        # ip daddr 127.0.0.0/8 drop: some TAPs route it (route_localnet)
        (*_TO_LOOPBACK, DROP),
        # iifname . ether saddr . ip saddr @guests4 return
        (*_IPV4, *_SOURCE4, in_set("guests4"), RETURN),
        (*_IPV6, *_SOURCE6, in_set("guests6"), RETURN),
        (DROP,),
    ),
)

_TO_HOST = Chain(
    "to_host",
    (
        # ct state established,related accept
        (*_REPLY, ACCEPT),
        # icmp type echo-request accept
        (*_IPV4, *_icmp(_ICMP, 8), ACCEPT),
        # icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert } accept
        *((*_IPV6, *_icmp(_ICMPV6, kind), ACCEPT) for kind in (128, 135, 136)),
        *_DNS_ALLOWED,
        # ct status dnat accept: led to the resolver on the host's loopback
        (*_PUBLISHED, ACCEPT),
        (*_FROM, in_set("host_users"), ACCEPT),
        # reject with icmpx admin-prohibited
        (REJECT,),
    ),
)

_EGRESS = Chain(
    "egress",
    (
        # iifname . ip daddr @egress4 return
        (*_IPV4, *_ASKS4, in_set("egress4"), RETURN),
        (*_IPV6, *_ASKS6, in_set("egress6"), RETURN),
        (REJECT,),
    ),
)

_FROM_GUEST_CHAIN = Chain(
    "from_guest",
    (
        (*_REPLY, ACCEPT),
        # meta priority set iifname map @networks
        (*_FROM, set_priority_by("networks")),
        # meta priority . oifname @members accept
        (priority(), meta(OIFNAME, REGISTER + 1), in_set("members"), ACCEPT),
        # ct status dnat: to a published port of another guest
        (*_PUBLISHED, *_FROM, in_set("restricted"), REJECT),
        (*_PUBLISHED, ACCEPT),
        # ip saddr . oifname != @exits4 reject: to another guest, or not by the spec's interface
        (*_IPV4, *_EXIT4, in_set("exits4", negate=True), REJECT),
        (*_IPV6, *_EXIT6, in_set("exits6", negate=True), REJECT),
        *_DNS_ALLOWED,
        (*_FROM, in_set("restricted"), jump("egress")),
        # ip daddr 169.254.0.0/16 reject
        (*_IPV4, *_TARGET4, masked(b"\xff\xff\0\0"), equals(b"\xa9\xfe\0\0"), REJECT),
        (*_IPV4, *_TARGET4, in_set("metadata4"), REJECT),
        (*_IPV6, *_TARGET6, in_set("metadata6"), REJECT),
        (ACCEPT,),
    ),
)

_TO_GUEST_CHAIN = Chain(
    "to_guest",
    (
        (*_REPLY, ACCEPT),
        # ct status dnat accept
        (*_PUBLISHED, ACCEPT),
        (DROP,),
    ),
)

_L4_PORT4: Rule = (meta(L4PROTO, REGISTER + 1), payload(TRANSPORT, 2, 2, REGISTER + 2))
_L4_PORT6: Rule = (meta(L4PROTO, REGISTER + 4), payload(TRANSPORT, 2, 2, REGISTER + 5))
_ANY_PORT: Rule = (
    *(address_type(), equals(host_u32(2))),  # RTN_LOCAL
    *(meta(L4PROTO), payload(TRANSPORT, 2, 2, REGISTER + 1)),
)

_PORTS_CHAIN = Chain(
    "ports",
    (
        # dnat ip to ip daddr . meta l4proto . th dport map @bound4
        (*_IPV4, *_TARGET4, *_L4_PORT4, look_up("bound4"), lead_to(2, REGISTER + 1)),
        (*_IPV6, *_TARGET6, *_L4_PORT6, look_up("bound6"), lead_to(10, REGISTER + 4)),
        # fib daddr type local dnat ip to meta l4proto . th dport map @ports4
        (*_IPV4, *_ANY_PORT, look_up("ports4"), lead_to(2, REGISTER + 1)),
        (*_IPV6, *_ANY_PORT, look_up("ports6"), lead_to(10, REGISTER + 4)),
    ),
)

_NAT = (
    _PORTS_CHAIN,
    Chain(
        "before_routing",
        (
            # { udp, tcp } dport 53 dnat ip to iifname . ip daddr map @local_resolvers
            *(
                (
                    *(*_FROM_GUEST, *_IPV4, *_protocol(protocol), *_TO_DNS),
                    *(*_ASKS4, look_up("local_resolvers"), lead_to(2, 0)),
                )
                for protocol in (_UDP, _TCP)
            ),
            # From outside nobody gets at what is published on the loopback.
            (*_TO_LOOPBACK, RETURN),
            (jump("ports"),),
        ),
        ("nat", PREROUTING, -100),
    ),
    Chain(
        "from_host",
        (
            # What has the source ::1 cannot leave the loopback: better refused than lost.
            (*_IPV6, *_TARGET6, equals(_LOOPBACK6), RETURN),
            (jump("ports"),),
        ),
        ("nat", OUTPUT, -100),
    ),
    # The resolver on the loopback sees a client on the loopback.
    Chain(
        "into_host",
        ((*_FROM_GUEST, *_TO_LOOPBACK, *come_from(2, b"\x7f\0\0\1")),),
        ("nat", INPUT, 100),
    ),
    Chain(
        "postrouting",
        (
            # ip saddr . oifname @exits4 masquerade
            (*_IPV4, *_EXIT4, in_set("exits4"), MASQUERADE),
            (*_IPV6, *_EXIT6, in_set("exits6"), MASQUERADE),
            # To a published port from the loopback, or from a guest: perhaps the very same.
            (*_TO_GUEST, *_IPV4, *_FROM_LOOPBACK4, MASQUERADE),
            (*_TO_GUEST, *_FROM_GUEST, *_PUBLISHED, MASQUERADE),
        ),
        ("nat", POSTROUTING, 100),
    ),
)

ROUTED = Table(
    INET,
    NAME,
    (
        *(GUESTS4, GUESTS6, EXITS4, EXITS6, RESOLVERS4, RESOLVERS6, LOCAL_RESOLVERS, MARKS),
        *(PORTS4, PORTS6, BOUND4, BOUND6),
        *(HOST_USERS, NETWORKS, MEMBERS, RESTRICTED, EGRESS4, EGRESS6, UPLOADS, DOWNLOADS),
        *(_METADATA4, _METADATA6),
    ),
    (
        _SOURCE,
        _TO_HOST,
        _EGRESS,
        _FROM_GUEST_CHAIN,
        _TO_GUEST_CHAIN,
        # Before connection tracking (-200): a forged frame leaves no trace there.
        Chain(
            "prerouting",
            (
                (*_FROM_GUEST, jump("source")),
                # iifname @uploads drop: with elements that are found above their rate only
                (*_FROM_GUEST, *_FROM, in_set("uploads"), DROP),
                # meta mark set iifname map @marks
                (*_FROM_GUEST, meta(IIFNAME), set_mark_by("marks")),
            ),
            ("filter", PREROUTING, -300),
        ),
        Chain("input", ((*_FROM_GUEST, jump("to_host")),), ("filter", INPUT, -10)),
        Chain(
            "forward",
            ((*_FROM_GUEST, jump("from_guest")), (*_TO_GUEST, jump("to_guest"))),
            ("filter", FORWARD, -10),
        ),
        *_NAT,
        Chain(
            "throttle",
            ((*_TO_GUEST, meta(OIFNAME), in_set("downloads"), DROP),),
            ("filter", POSTROUTING, -10),
        ),
    ),
)
"""table inet hypercore: TAPs of mode nat"""

_BRIDGED_FROM_GUEST: Rule = (meta(IIFGROUP), equals(host_u32(BRIDGED_GROUP)))

_ETHER_IPV4: Rule = (meta(PROTOCOL), equals(b"\x08\0"))
_ETHER_IPV6: Rule = (meta(PROTOCOL), equals(b"\x86\xdd"))
_ETHER_ARP: Rule = (meta(PROTOCOL), equals(b"\x08\x06"))
_LINK_LOCAL6_MASK, _LINK_LOCAL6 = b"\xff\xc0\0\0", b"\xfe\x80\0\0"

_SOURCE6_CHAIN = Chain(
    "source6",
    (
        # nd-neighbor-advert for an address that is neither link-local nor its own
        (
            *(*_icmp(_ICMPV6, 136), payload(TRANSPORT, 8, 4), masked(_LINK_LOCAL6_MASK)),
            *(equals(_LINK_LOCAL6, negate=True), meta(IIFNAME)),
            *(payload(TRANSPORT, 8, 16, REGISTER + 4), in_set("owners6", negate=True), DROP),
        ),
        # ip6 saddr { fe80::/10, :: } return
        (payload(NETWORK, 8, 4), masked(_LINK_LOCAL6_MASK), equals(_LINK_LOCAL6), RETURN),
        (payload(NETWORK, 8, 16), equals(bytes(16)), RETURN),
        # iifname . ip6 saddr @owners6 return
        (meta(IIFNAME), payload(NETWORK, 8, 16, REGISTER + 4), in_set("owners6"), RETURN),
        (DROP,),
    ),
)

BRIDGED = Table(
    BRIDGE,
    NAME,
    (SENDERS, FIXED4, FIXED6, OWNERS4, OWNERS6, BRIDGED_UPLOADS, BRIDGED_DOWNLOADS),
    (
        _SOURCE6_CHAIN,
        Chain(
            "source",
            (
                # iifname . ether saddr != @senders drop
                (*_SENDER, in_set("senders", negate=True), DROP),
                # ether type ip udp sport 67 drop: no DHCP server but the network's own
                (*_ETHER_IPV4, *_protocol(_UDP), *_FROM_DHCP_SERVER, DROP),
                # ether type ip6 icmpv6 type nd-router-advert drop
                (*_ETHER_IPV6, *_icmp(_ICMPV6, 134), DROP),
                # iifname . arp saddr ether != @senders drop
                (
                    *(*_ETHER_ARP, meta(IIFNAME), payload(NETWORK, 8, 6, REGISTER + 4)),
                    *(in_set("senders", negate=True), DROP),
                ),
                # iifname @fixed4 iifname . arp saddr ip != @owners4 drop, and so for ip saddr
                *(
                    (
                        *(*ethertype, *_FROM, in_set("fixed4"), meta(IIFNAME)),
                        *(payload(NETWORK, offset, 4, REGISTER + 4),),
                        *(in_set("owners4", negate=True), DROP),
                    )
                    for ethertype, offset in ((_ETHER_ARP, 14), (_ETHER_IPV4, 12))
                ),
                # iifname @fixed6: what it sends from, and what it answers for (ND)
                (*_ETHER_IPV6, *_FROM, in_set("fixed6"), jump("source6")),
            ),
        ),
        Chain(
            "prerouting", ((*_BRIDGED_FROM_GUEST, jump("source")),), ("filter", PREROUTING, -300)
        ),
    ),
)
"""table bridge hypercore: TAPs of mode bridge"""

TABLES = (ROUTED, BRIDGED)
VM_SETS = tuple(each for table in TABLES for each in table.sets if not each.constants)
"""sets whose elements belong to microVMs"""
