"""Who we are to a registry: docker's stored logins, and the tokens registries hand out for them.

Formats: https://distribution.github.io/distribution/spec/auth/, ~/.docker/config.json.
"""

import asyncio
import base64
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from hypercore.containerd.http_client import request
from hypercore.errors import InvalidArgument, PermissionDenied, Unavailable

TOKEN_LIMIT_BYTES = 1 << 20
HELPER_TIMEOUT_S = 30.0
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_PARAMETER = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A login; with an identity token, user name and password are not used."""

    username: str = ""
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r})"

    def basic(self) -> str:
        joined = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(joined).decode()}"


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a registry asks for in WWW-Authenticate."""

    scheme: str
    """basic or bearer"""
    realm: str = ""
    service: str = ""
    scope: str = ""


def parse_challenge(header: str) -> Challenge:
    scheme, _, rest = header.strip().partition(" ")
    found = {
        match[1].lower(): re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
        for match in _PARAMETER.finditer(rest)
    }
    return Challenge(
        scheme.lower(), found.get("realm", ""), found.get("service", ""), found.get("scope", "")
    )


async def stored_credentials(
    host: str, environ: Mapping[str, str] | None = None
) -> Credentials | None:
    """The login that `docker login` left for a registry; None if there is none.

    Raises:
        InvalidArgument: docker's configuration cannot be read.
        Unavailable: a credential helper it names fails.
    """
    environ = os.environ if environ is None else environ
    directory = environ.get("DOCKER_CONFIG") or str(Path(environ.get("HOME", "/root")) / ".docker")
    file = Path(directory) / "config.json"
    try:
        document = json.loads(await asyncio.to_thread(file.read_bytes))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as exc:
        raise InvalidArgument(f"{file}: cannot be read: {exc}") from exc
    if not isinstance(document, dict):
        raise InvalidArgument(f"{file}: not a JSON object")
    keys = [_DOCKER_HUB_KEY, "docker.io"] if host == "docker.io" else [host, f"https://{host}"]
    helpers = document.get("credHelpers")
    helper = next((helpers[key] for key in keys if key in helpers), "") if helpers else ""
    helper = helper or document.get("credsStore", "")
    if helper and (found := await _ask_helper(str(helper), keys[0], environ)):
        return found
    auths = document.get("auths")
    for key in keys:
        entry = auths.get(key) if isinstance(auths, dict) else None
        if isinstance(entry, dict) and (found := _entry(entry, file, key)):
            return found
    return None


def _entry(entry: Mapping[str, Any], file: Path, key: str) -> Credentials | None:
    username, password = str(entry.get("username", "")), str(entry.get("password", ""))
    if packed := entry.get("auth"):
        try:
            username, _, password = base64.b64decode(packed, validate=True).decode().partition(":")
        except ValueError as exc:
            raise InvalidArgument(f"{file}: auths.{key}.auth is not base64") from exc
    token = str(entry.get("identitytoken", ""))
    return Credentials(username, password, token) if username or token else None


async def _ask_helper(name: str, server: str, environ: Mapping[str, str]) -> Credentials | None:
    program = shutil.which(f"docker-credential-{name}", path=environ.get("PATH"))
    if not _HELPER_NAME.fullmatch(name) or program is None:
        raise Unavailable(f"docker's credential helper {name!r} is not installed")
    helper = await asyncio.create_subprocess_exec(
        program,
        "get",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(HELPER_TIMEOUT_S):
            said, _ = await helper.communicate(server.encode())
    except TimeoutError as exc:
        raise Unavailable(f"{program} does not answer") from exc
    finally:
        if helper.returncode is None:
            helper.kill()
            await helper.wait()
    if helper.returncode != 0:
        return None  # how helpers say that they know no such server
    try:
        answer = json.loads(said)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError) as exc:
        raise Unavailable(f"{program} does not answer as a credential helper does") from exc
    if username == "<token>":
        return Credentials(identity_token=secret)
    return Credentials(username, secret)


async def authorization(
    challenge: Challenge, credentials: Credentials | None, host: str, scope: str, *, secure: bool
) -> str:
    """The Authorization header that answers a challenge.

    Args:
        host: the registry, for messages.
        scope: used when the challenge names none.
        secure: the registry was asked by TLS; its realm must then be too.

    Raises:
        PermissionDenied: the registry or its token server refuses this login.
    """
    if challenge.scheme == "basic":
        if credentials is None or not credentials.username:
            raise PermissionDenied(f"registry {host} wants a login", hint=login_hint(host))
        return credentials.basic()
    if challenge.scheme != "bearer" or not challenge.realm:
        raise Unavailable(f"registry {host} wants {challenge.scheme or 'no known'} authentication")
    if secure and urlsplit(challenge.realm).scheme != "https":
        raise PermissionDenied(f"registry {host} sends us to {challenge.realm}: not by TLS")
    return f"Bearer {await _token(challenge, credentials, host, challenge.scope or scope)}"


async def _token(
    challenge: Challenge, credentials: Credentials | None, host: str, scope: str
) -> str:
    query = {"service": challenge.service, "scope": scope}
    query = {name: text for name, text in query.items() if text}
    headers = {"Accept": "application/json"}
    method, url, body = "GET", challenge.realm, b""
    if credentials is not None and credentials.identity_token:
        form = {"grant_type": "refresh_token", "client_id": "hypercore"}
        form |= {"refresh_token": credentials.identity_token, **query}
        method, body = "POST", urlencode(form).encode()
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    else:
        url += ("&" if urlsplit(url).query else "?") + urlencode(query)
        if credentials is not None:
            headers["Authorization"] = credentials.basic()
    async with request(method, url, headers, body) as response:
        data = await response.read(TOKEN_LIMIT_BYTES)
        if response.status in (400, 401, 403):
            who = f"user {credentials.username!r}" if credentials else "anonymous users"
            raise PermissionDenied(f"registry {host} refuses {who}", hint=login_hint(host))
        if response.status != 200:
            raise Unavailable(f"the token server of {host} answers with status {response.status}")
    try:
        answer = json.loads(data)
        token = answer.get("token") or answer["access_token"]
    except (ValueError, KeyError, AttributeError) as exc:
        raise Unavailable(f"the token server of {host} answers without a token") from exc
    return str(token)


def login_hint(host: str) -> str:
    where = "" if host == "docker.io" else f" {host}"
    return f"`docker login{where}` as the user who runs hypercore, or check the image's name"
