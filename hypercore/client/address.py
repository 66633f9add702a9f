"""Where a client goes: one text for the scheme, the place and, by its scheme, the protocol.

    unix:///run/hypercore/api.sock        HTTP, the default
    https://host:8443
    grpc+unix:///run/hypercore/grpc.sock
    grpcs://host:8444
    local:                                no daemon: an engine in this process, as root

http:// and grpc:// are for loopback addresses, since tokens must not travel in the clear.
"""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hypercore import paths
from hypercore.errors import InvalidArgument

ADDRESS_VARIABLE = "HYPERCORE_ADDRESS"
TOKEN_VARIABLE = "HYPERCORE_TOKEN"
_PORTS = {"https": 443, "http": 80, "grpcs": 443, "grpc": 80}


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address, and who calls."""

    protocol: str
    """http, grpc or local"""
    path: Path | None = None
    """of the unix socket"""
    host: str = ""
    port: int = 0
    secure: bool = False
    token: str = ""
    ca: Path | None = None
    """whose certificate the server must have; None: those the host trusts"""
    certificate: Path | None = None
    """ours"""
    key: Path | None = None

    @property
    def host_port(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(
    text: str | None,
    *,
    token: str | None = None,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
) -> Address:
    """The address in `text`, or HYPERCORE_ADDRESS, or the default unix socket.

    Raises:
        InvalidArgument: it is none, or would send a token in the clear.
    """
    text = text or os.environ.get(ADDRESS_VARIABLE) or f"unix://{paths.api_socket()}"
    token = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
    if "\r" in token or "\n" in token:
        raise InvalidArgument("a token is one line of text")
    if bool(certificate) != bool(key):
        raise InvalidArgument("certificate and key go together")
    if text == "local:":
        return Address("local")
    if text.startswith("/"):
        text = f"unix://{text}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as exc:
        raise InvalidArgument(f"{text!r} is no address: {exc}", hint=_HINT) from exc
    if parts.scheme in ("unix", "grpc+unix"):
        if parts.netloc or not parts.path:
            raise InvalidArgument(f"{text!r}: a unix socket needs an absolute path", hint=_HINT)
        protocol = "grpc" if parts.scheme == "grpc+unix" else "http"
        return Address(protocol, path=Path(parts.path), token=token)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise InvalidArgument(f"{text!r} is no address of hypercore", hint=_HINT)
    if parts.path not in ("", "/") or parts.query or parts.username:
        raise InvalidArgument(f"{text!r}: an address is a scheme, a host and a port", hint=_HINT)
    secure = parts.scheme in ("https", "grpcs")
    if not secure and not _is_loopback(parts.hostname):
        raise InvalidArgument(
            f"{text!r}: {parts.scheme}:// is for this machine only",
            hint=f"use {parts.scheme}s://, or tokens travel in the clear",
        )
    return Address(
        protocol="grpc" if parts.scheme.startswith("grpc") else "http",
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        secure=secure,
        token=token,
        ca=ca,
        certificate=certificate,
        key=key,
    )


_HINT = "for example unix:///run/hypercore/api.sock, https://host:8443 or grpcs://host:8444"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
