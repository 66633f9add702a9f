"""The few rtnetlink requests the guest needs: links, addresses, routes, neighbours.

Builds and sends; decides nothing. Formats: rtnetlink(7), linux/rtnetlink.h.
"""

import _socket
import _struct
import posix

RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWNEIGH = 16, 18, 20, 24, 28
_NLM_REQUEST, _NLM_ACK, _NLM_DUMP = 1, 4, 0x300
_NLM_REPLACE_CREATE = 0x100 | 0x400
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT = 0x80
_SCOPE_LINK = 253
_IFF_UP = 1
_IFA_F_NODAD = 2
_RTNH_F_ONLINK = 4
_TABLE_MAIN, _PROTO_STATIC, _TYPE_UNICAST = 254, 4, 1


def attribute(kind, value):
    """One attribute, padded."""
    size = 4 + len(value)
    return _struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def message(kind, flags, body):
    """One request."""
    return _struct.pack("=IHHII", 16 + len(body), kind, _NLM_REQUEST | flags, 1, 0) + body


def start_link(index):
    """Request: set a link up."""
    body = _struct.pack("=BxHiII", 0, 0, index, _IFF_UP, _IFF_UP)
    return message(RTM_NEWLINK, _NLM_ACK, body)


def change_link(index, name, mtu):
    """Request: rename a link (the kernel refuses when it is up), set its MTU; "" and 0 do not."""
    body = _struct.pack("=BxHiII", 0, 0, index, 0, 0)
    if name:
        body += attribute(_IFLA_IFNAME, name.encode() + b"\0")
    if mtu:
        body += attribute(_IFLA_MTU, _struct.pack("=I", mtu))
    return message(RTM_NEWLINK, _NLM_ACK, body)


def add_address(index, address, prefix):
    """Request: give a link an address (packed bytes)."""
    family = _family(address)
    flags = _IFA_F_NODAD if family == _socket.AF_INET6 else 0
    body = _struct.pack("=BBBBi", family, prefix, flags, 0, index)
    body += attribute(_IFA_LOCAL, address) + attribute(_IFA_ADDRESS, address)
    return message(RTM_NEWADDR, _NLM_ACK | _NLM_REPLACE_CREATE, body)


def add_route(index, destination, prefix, gateway):
    """Request: a route; its gateway need not be in the link's own subnet, b"" is none at all."""
    family = _family(destination)
    scope = 0 if gateway or family != _socket.AF_INET else _SCOPE_LINK
    flags = _RTNH_F_ONLINK if gateway else 0
    body = _struct.pack(
        "=BBBBBBBBI",
        family, prefix, 0, 0, _TABLE_MAIN, _PROTO_STATIC, scope, _TYPE_UNICAST, flags,
    )  # fmt: skip
    if prefix:
        body += attribute(_RTA_DST, destination)
    if gateway:
        body += attribute(_RTA_GATEWAY, gateway)
    body += attribute(_RTA_OIF, _struct.pack("=i", index))
    return message(RTM_NEWROUTE, _NLM_ACK | _NLM_REPLACE_CREATE, body)


def add_neighbour(index, address, mac):
    """Request: a neighbour that is known for good."""
    body = _struct.pack("=BxxxiHBB", _family(address), index, _NUD_PERMANENT, 0, 0)
    body += attribute(_NDA_DST, address) + attribute(_NDA_LLADDR, mac)
    return message(RTM_NEWNEIGH, _NLM_ACK | _NLM_REPLACE_CREATE, body)


def _family(address):
    return _socket.AF_INET if len(address) == 4 else _socket.AF_INET6


class Netlink:
    """A NETLINK_ROUTE socket; the kernel answers each request before send returns."""

    def __init__(self):
        kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC
        self._sock = _socket.socket(_socket.AF_NETLINK, kind, 0)

    def close(self):
        self._sock.close()

    def request(self, data, doing):
        """Send one request; OSError names what we were `doing`."""
        self._sock.send(data)
        reply = self._sock.recv(65536)
        error = -_struct.unpack_from("=i", reply, 16)[0]
        if error:
            raise OSError(error, posix.strerror(error), doing)

    def links(self):
        """All links as {MAC: (index, name)}."""
        body = _struct.pack("=BxHiII", 0, 0, 0, 0, 0)
        self._sock.send(message(RTM_GETLINK, _NLM_DUMP, body))
        found = {}
        while True:
            data = self._sock.recv(1 << 18)
            while len(data) >= 16:
                size, kind = _struct.unpack_from("=IH", data)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    return found
                index = _struct.unpack_from("=i", data, 20)[0]
                mac = _find_attribute(data[32:size], _IFLA_ADDRESS)
                name = _find_attribute(data[32:size], _IFLA_IFNAME)
                if mac:
                    found[mac.hex(":")] = (index, name.rstrip(b"\0").decode())
                data = data[(size + 3) & ~3 :]


def _find_attribute(data, wanted):
    while len(data) >= 4:
        size, kind = _struct.unpack_from("=HH", data)
        if size < 4:
            return b""
        if kind == wanted:
            return data[4:size]
        data = data[(size + 3) & ~3 :]
    return b""
