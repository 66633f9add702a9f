"""Who may call from afar: tokens and client certificates, with a scope each.

Only digests are kept. A token is 256 random bits, so that a plain SHA-256 hides it: there is
nothing to guess. The file is read again when it has changed: what is removed works no more.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hypercore.api import Scope
from hypercore.errors import (
    AlreadyExists,
    HypercoreError,
    InvalidArgument,
    NotFound,
    Unauthenticated,
    from_os_error,
)
from hypercore.serve.callers import Caller

PREFIX = "hct_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Grant:
    """One who may call."""

    name: str
    scope: Scope
    created_at: float
    sha256: str = ""
    """of the token; empty for a certificate's"""
    certificate: str = ""
    """common name, or an alternative one, of a client certificate"""
    expires_at: float = 0.0
    """0: never"""


class Grants:
    """The grants in a file; `denied` counts whom they refuse."""

    def __init__(self, path: Path, denied: "Counter[str] | None" = None) -> None:
        self._path = path
        self._denied = Counter[str]() if denied is None else denied
        self._stamp: tuple[int, int, int] | None = None
        self._grants: tuple[Grant, ...] = ()

    def all(self) -> Sequence[Grant]:
        """Raises HypercoreError when the file is not readable or not ours."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            self._stamp, self._grants = None, ()
            return ()
        except OSError as exc:
            raise from_os_error(exc, f"read {self._path}") from exc
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp != self._stamp:
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o077:
                raise HypercoreError(
                    f"{self._path} can be changed or read by others",
                    hint=f"chown root {self._path}; chmod 600 {self._path}",
                )
            self._grants = _parse(self._path)
            self._stamp = stamp
        return self._grants

    def caller(self, token: str, certificate_names: Sequence[str]) -> Caller:
        """Who presents this token, or a certificate with these names.

        Raises:
            Unauthenticated: nobody we know.
        """
        digest = hashlib.sha256(token.encode()).hexdigest() if token else ""
        for grant in self.all():
            by_token = digest and hmac.compare_digest(grant.sha256, digest)
            by_name = grant.certificate and grant.certificate in certificate_names
            if not by_token and not (by_name and not token):
                continue
            if grant.expires_at and grant.expires_at < time.time():
                self._denied["expired"] += 1
                raise Unauthenticated(
                    f"the token {grant.name} has expired",
                    hint="`hypercore token create` makes a new one",
                )
            return Caller(grant.name, grant.scope, local=False)
        self._denied["unknown token" if token else "no token"] += 1
        raise Unauthenticated(
            "no such token" if token else "no token, and no certificate that is known here",
            hint="send `Authorization: Bearer TOKEN`; `hypercore token create` makes one",
        )

    def create(
        self, name: str, scope: Scope, *, certificate: str = "", expires_at: float = 0.0
    ) -> str:
        """Let one more call; returns the token, which is kept nowhere, or "" for a certificate.

        Raises:
            AlreadyExists: the name is taken.
        """
        if not _NAME.fullmatch(name):
            raise InvalidArgument(
                f"{name!r} is no name of a token: letters, digits and _ . -, at most 64"
            )
        grants = self.all()
        if any(grant.name == name for grant in grants):
            raise AlreadyExists(
                f"there is a token {name}", hint=f"`hypercore token rm {name}` removes it"
            )
        token = "" if certificate else PREFIX + secrets.token_urlsafe(32)
        digest = hashlib.sha256(token.encode()).hexdigest() if token else ""
        grant = Grant(name, scope, time.time(), digest, certificate, expires_at)
        self._write([*grants, grant])
        return token

    def remove(self, name: str) -> None:
        grants = self.all()
        kept = [grant for grant in grants if grant.name != name]
        if len(kept) == len(grants):
            raise NotFound(f"no token {name!r}", hint="`hypercore token list` lists all")
        self._write(kept)

    def _write(self, grants: Sequence[Grant]) -> None:
        new = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "w") as file:
                json.dump([asdict(grant) for grant in grants], file, indent=1)
                file.flush()
                os.fsync(fd)
            new.rename(self._path)
        except OSError as exc:
            raise from_os_error(exc, f"write {self._path}") from exc


def _parse(path: Path) -> tuple[Grant, ...]:
    try:
        return tuple(
            Grant(
                name=str(item["name"]),
                scope=Scope(item["scope"]),
                created_at=float(item["created_at"]),
                sha256=str(item["sha256"]),
                certificate=str(item["certificate"]),
                expires_at=float(item["expires_at"]),
            )
            for item in json.loads(path.read_bytes())
        )
    except OSError as exc:
        raise from_os_error(exc, f"read {path}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise HypercoreError(
            f"{path} is broken: {exc}", hint="remove it, make tokens anew"
        ) from exc
