"""Image references, read as docker reads them: `alpine` is docker.io/library/alpine:latest.

Grammar: https://github.com/distribution/reference. Imports nothing heavy: `spec check` uses it.
"""

import re
from dataclasses import dataclass

from hypercore.errors import InvalidArgument

_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?"
)
_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """A whole image reference; `str` gives its canonical form."""

    host: str
    """registry, with its port"""
    repository: str
    tag: str
    """empty only when there is a digest"""
    digest: str = ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.host}/{self.repository}{tag}{digest}"


def parse(text: str) -> Reference:
    """The reference that `text` means, completed as docker does.

    Raises:
        InvalidArgument: it is none; the message names the part that is wrong.
    """

    def fail(problem: str, hint: str = "") -> InvalidArgument:
        return InvalidArgument(
            f"image reference {text!r}: {problem}",
            hint=hint or 'write it like "alpine:3.20" or "registry.example/team/app:1.0"',
        )

    rest, _, digest = text.partition("@")
    if not rest:
        raise fail("has no name")
    if "@" in text and not _DIGEST.fullmatch(digest):
        raise fail(f"{digest!r} is no digest: sha256: and 64 hexadecimal digits")
    tag = ""
    head, colon, tail = rest.rpartition(":")
    if colon and "/" not in tail:
        rest, tag = head, tail
        if not _TAG.fullmatch(tag):
            raise fail(f"{tag!r} is no tag")
    first, slash, repository = rest.partition("/")
    if not slash or not (any(c in first for c in ".:[") or first == "localhost"):
        first, repository = "docker.io", rest
    if first in ("index.docker.io", "registry-1.docker.io"):
        first = "docker.io"
    if not _HOST.fullmatch(first):
        raise fail(f"{first!r} is no registry host")
    if not _REPOSITORY.fullmatch(repository):
        lower = repository.lower()
        hint = f"names are lower case: {lower}" if _REPOSITORY.fullmatch(lower) else ""
        raise fail(f"{repository!r} is no repository name", hint)
    if first == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    if len(first) + 1 + len(repository) > _LONGEST_NAME:
        raise fail(f"is longer than {_LONGEST_NAME} characters")
    return Reference(first, repository, tag if tag or digest else "latest", digest)


def resolve_ref(text: str) -> str:
    """The canonical form of an image reference, under which containerd stores the image."""
    return str(parse(text))


def is_loopback(host: str) -> bool:
    """Whether a registry host (with or without port) is this machine: plain HTTP is safe then."""
    import ipaddress

    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
