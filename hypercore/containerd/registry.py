"""One repository of an OCI registry, read only: manifests and blobs, with login and retries.

Protocol: https://github.com/opencontainers/distribution-spec. What an image is, images.py and
manifest.py know.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from urllib.parse import urlsplit

from hypercore.containerd import registry_auth
from hypercore.containerd.content import CHUNK_BYTES
from hypercore.containerd.http_client import Interrupted, Response, request
from hypercore.containerd.manifest import (
    DOCUMENT_LIMIT_BYTES,
    INDEXES,
    MANIFESTS,
    digest_of,
)
from hypercore.containerd.reference import Reference, is_loopback
from hypercore.containerd.registry_auth import Credentials
from hypercore.errors import (
    HypercoreError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)

ATTEMPTS = 5
"""Tries in a row without a byte of progress."""
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 15.0
MOST_REDIRECTS = 5
_HUB = "registry-1.docker.io"


class Registry:
    """The repository that `reference` names.

    Args:
        credentials: None: docker's stored login, if there is one.
        plain_http: None: only for registries on this machine.
    """

    def __init__(
        self,
        reference: Reference,
        *,
        credentials: Credentials | None = None,
        plain_http: bool | None = None,
    ) -> None:
        self.reference = reference
        host = _HUB if reference.host == "docker.io" else reference.host
        plain = is_loopback(host) if plain_http is None else plain_http
        self._base = f"{'http' if plain else 'https'}://{host}/v2/{reference.repository}"
        self._credentials = credentials
        self._authorization = ""
        self._login = asyncio.Lock()

    async def manifest(self, name: str) -> tuple[bytes, str]:
        """A manifest or index by tag or digest, with its declared media type.

        Raises:
            NotFound: there is none.
            PermissionDenied: the registry refuses us.
            Unavailable: it does not answer.
            InvalidArgument: it sends other bytes than the digest says.
        """
        headers = {"Accept": ", ".join(sorted(INDEXES | MANIFESTS))}
        for attempt in range(ATTEMPTS):
            try:
                async with self._get(f"{self._base}/manifests/{name}", headers) as response:
                    data = await response.read(DOCUMENT_LIMIT_BYTES)
                    media_type = response.headers.get("content-type", "")
                break
            except Interrupted:
                if attempt + 1 == ATTEMPTS:
                    raise
                await _pause(attempt)
        if name.startswith("sha256:") and digest_of(data) != name:
            raise InvalidArgument(
                f"registry {self.reference.host} sends {digest_of(data)} when asked for {name}"
            )
        return data, media_type

    async def blob(
        self, digest: str, size: int, received: Callable[[int], None]
    ) -> AsyncGenerator[bytes, None]:
        """A blob's bytes, taken up again where the connection broke. Its digest is not checked.

        Args:
            received: called with the count of bytes so far.
        """
        offset = failures = 0
        while offset < size:
            before = offset
            try:
                async with aclosing(self._blob_from(digest, offset, size)) as pieces:
                    async for piece in pieces:
                        offset += len(piece)
                        received(offset)
                        yield piece
                if offset < size:
                    raise Interrupted(f"blob {digest} has {size} bytes, {offset} came")
            except Unavailable:  # it has given us the manifest, so it was there a moment ago
                failures = 1 if offset > before else failures + 1
                if failures == ATTEMPTS:
                    raise
                await _pause(failures - 1)

    async def _blob_from(self, digest: str, start: int, size: int) -> AsyncGenerator[bytes, None]:
        headers = {"Range": f"bytes={start}-"} if start else {}
        async with self._get(f"{self._base}/blobs/{digest}", headers) as response:
            skip = start if response.status == 200 else 0  # no ranges there
            left = size - start
            gathered = bytearray()
            async for piece in response.chunks():
                unwanted = min(skip, len(piece))
                skip -= unwanted
                gathered += piece[unwanted:]
                if len(gathered) > left:
                    raise InvalidArgument(f"blob {digest} is longer than its {size} bytes")
                if len(gathered) >= CHUNK_BYTES:
                    left -= len(gathered)
                    yield bytes(gathered)
                    gathered.clear()
            if gathered:
                yield bytes(gathered)

    @asynccontextmanager
    async def _get(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[Response]:
        """A successful answer to GET, after login and redirects."""
        asked_with = self._authorization
        async with self._follow(url, headers, asked_with) as response:
            if response.status != 401:
                await self._require_success(response)
                yield response
                return
            challenge = response.headers.get("www-authenticate", "")
        await self._log_in(challenge, asked_with, secure=url.startswith("https:"))
        async with self._follow(url, headers, self._authorization) as response:
            await self._require_success(response)
            yield response

    @asynccontextmanager
    async def _follow(
        self, url: str, headers: Mapping[str, str], authorization: str
    ) -> AsyncIterator[Response]:
        first = urlsplit(url)
        for _ in range(MOST_REDIRECTS + 1):
            place = urlsplit(url)
            if first.scheme == "https" and place.scheme != "https":
                raise PermissionDenied(f"registry {first.netloc} redirects to {url}: not by TLS")
            # A storage server gets no token of the registry's.
            ours = (place.scheme, place.netloc) == (first.scheme, first.netloc)
            login = {"Authorization": authorization} if authorization and ours else {}
            async with request("GET", url, {**headers, **login}) as response:
                target = response.location()
                if not target:
                    yield response
                    return
            url = target
        raise Unavailable(f"registry {first.netloc} redirects without an end")

    async def _log_in(self, challenge: str, asked_with: str, *, secure: bool) -> None:
        async with self._login:
            if self._authorization != asked_with:
                return  # another request has just done it
            host = self.reference.host
            credentials = self._credentials
            if credentials is None:
                credentials = await registry_auth.stored_credentials(host)
            self._authorization = await registry_auth.authorization(
                registry_auth.parse_challenge(challenge),
                credentials,
                host,
                f"repository:{self.reference.repository}:pull",
                secure=secure,
            )

    async def _require_success(self, response: Response) -> None:
        if response.status in (200, 206):
            return
        host = self.reference.host
        reason = _reason(await _read_some(response))
        if response.status == 404:
            raise NotFound(
                f"image {self.reference} does not exist in registry {host}{reason}",
                hint="check its name and tag",
            )
        if response.status in (401, 403):
            raise PermissionDenied(
                f"registry {host} refuses access to {self.reference.repository}{reason}",
                hint=registry_auth.login_hint(host),
            )
        if response.status == 429:
            raise Unavailable(
                f"registry {host} says we ask too often{reason}", hint="log in, or wait a while"
            )
        kind = Interrupted if response.status >= 500 else Unavailable
        raise kind(f"registry {host} answers with status {response.status}{reason}")


async def _read_some(response: Response) -> bytes:
    try:
        return await response.read(64 << 10)
    except HypercoreError:
        return b""


def _reason(data: bytes) -> str:
    """The registry's own words in an error document, as a suffix."""
    try:
        error = json.loads(data)["errors"][0]
        return f": {str(error.get('message') or error['code'])[:200]}"
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""


async def _pause(attempt: int) -> None:
    await asyncio.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 4**attempt))
