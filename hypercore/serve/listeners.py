"""Where the daemon listens, and with what safety: decided before anything is opened."""

import grp
import ipaddress
import os
import socket
import ssl
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hypercore import paths
from hypercore.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    from_os_error,
)

BACKLOG = 1024
MODE = 0o660


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address to listen on."""

    host: str
    port: int

    @property
    def text(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of a server's identity."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    """whose certificates callers must present; None: they need none"""


@dataclass(frozen=True, slots=True)
class Settings:
    """What `hypercore serve` was told."""

    http_socket: Path
    grpc_socket: Path
    group: str = ""
    """who may open the unix sockets besides root"""
    http_tcp: Address | None = None
    grpc_tcp: Address | None = None
    tls: Tls | None = None
    plaintext: bool = False
    """TCP without TLS, on loopback alone"""

    def check(self) -> None:
        """Raises InvalidArgument for TCP that others could listen in on."""
        for address in (self.http_tcp, self.grpc_tcp):
            if address is None or self.tls is not None:
                continue
            if not self.plaintext:
                raise InvalidArgument(
                    f"{address.text}: TCP needs --tls-cert and --tls-key",
                    hint="tokens must not travel in the clear; on loopback --plaintext allows it",
                )
            if not ipaddress.ip_address(address.host).is_loopback:
                raise InvalidArgument(
                    f"{address.text}: --plaintext is for loopback addresses only",
                    hint="give --tls-cert and --tls-key",
                )


def parse_address(text: str) -> Address:
    """`1.2.3.4:443` or `[::1]:443`."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        colon = ""
    if not colon or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise InvalidArgument(
            f"{text!r} is no address to listen on", hint="for example 127.0.0.1:8443 or [::]:8443"
        )
    return Address(host, int(port))


def default_group() -> str:
    """The group hypercore where there is one, else root's."""
    try:
        return grp.getgrnam("hypercore").gr_name
    except KeyError:
        return ""


def group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid if name else 0
    except KeyError as exc:
        raise NotFound(
            f"no group {name!r} on this host", hint=f"groupadd --system {name}"
        ) from exc


def unix_listener(path: Path, gid: int) -> socket.socket:
    """A listening socket at `path` for root and the group; what a dead daemon left is replaced.

    Raises:
        AlreadyExists: somebody listens there.
    """
    free_socket_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    old_mask = os.umask(0o177)
    try:
        sock.bind(os.fspath(path))
        share_socket(path, gid)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise from_os_error(exc, f"listen at {path}") from exc
    finally:
        os.umask(old_mask)
    return sock


def share_socket(path: Path, gid: int) -> None:
    os.chown(path, 0, gid)
    path.chmod(MODE)


def free_socket_path(path: Path) -> None:
    """Remove the socket that a dead daemon left at `path`, and make its directory.

    Raises:
        AlreadyExists: somebody listens there.
        InvalidArgument: something else than a socket is there, or the path is too long.
    """
    if len(os.fsencode(path)) > paths.MAX_SOCKET_PATH:
        raise InvalidArgument(
            f"the socket path {path} is longer than {paths.MAX_SOCKET_PATH} bytes"
        )
    try:
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise InvalidArgument(f"{path} is there and is no socket", hint="remove it")
    except FileNotFoundError:
        return
    except OSError as exc:
        raise from_os_error(exc, f"look at {path}") from exc
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except OSError as exc:
            raise from_os_error(exc, f"connect to {path}") from exc
    raise AlreadyExists(
        f"somebody serves {path} already", hint="stop that daemon, or choose another path"
    )


def tcp_listener(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise from_os_error(exc, f"listen on {address.text}") from exc
    return sock


def tls_context(tls: Tls) -> ssl.SSLContext:
    """A server's TLS 1.2 or newer."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    load_identity(context, tls)
    return context


def load_identity(context: ssl.SSLContext, tls: Tls) -> None:
    """Read the files; a context in use takes them for connections from now on."""
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as exc:
        raise InvalidArgument(
            f"{tls.certificate}, {tls.key}: no certificate and its key, or no CA: {exc.reason}"
        ) from exc
    except OSError as exc:
        name = exc.filename or tls.certificate
        raise from_os_error(exc, f"read {name}") from exc
