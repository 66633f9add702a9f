"""One request to a VMM's REST API: HTTP/1.1 with JSON over a unix socket.

Speaks as much HTTP as Firecracker and Cloud Hypervisor do: a status line, headers, and a body of
Content-Length. A connection serves one request. The shim server talks to its VMMs by this, where
an HTTP library would cost it 200 ms of imports. Answers come from a process that a guest may have
taken over, so their size is bounded.
"""

import asyncio
import json
from pathlib import Path

from hypercore.errors import DeadlineExceeded, Unavailable, VmmError

MAX_BODY_BYTES = 1024 * 1024
MAX_HEADER_BYTES = 16 * 1024


async def request(
    socket_path: Path, method: str, target: str, body: object = None, *, deadline: float
) -> object:
    """Send one request, by `deadline` of the loop's clock; returns the decoded body or None.

    Args:
        method: GET, PUT or PATCH.
        target: path of the resource, such as "/machine-config".
        body: what to send as JSON; None: nothing.

    Raises:
        VmmError: the VMM refused it; the message carries its own words.
        Unavailable: nobody listens, or the VMM ended before it answered.
        DeadlineExceeded: no answer in time.
    """
    what = f"{method} {target} on {socket_path}"
    try:
        async with asyncio.timeout_at(deadline):
            reader, writer = await asyncio.open_unix_connection(
                str(socket_path), limit=MAX_HEADER_BYTES
            )
            try:
                writer.write(render(method, target, body))
                await writer.drain()
                status, answer = await _read_answer(reader)
            finally:
                writer.close()
    except TimeoutError as exc:
        raise DeadlineExceeded(f"the VMM did not answer {what} in time") from exc
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as exc:
        raise Unavailable(f"the VMM does not answer {what}: {exc or type(exc).__name__}") from exc
    if not 200 <= status < 300:
        raise VmmError(f"the VMM refused {method} {target} ({status}): {fault(answer)}")
    if not answer:
        return None
    try:
        document: object = json.loads(answer)
    except ValueError as exc:
        raise VmmError(f"the VMM's answer to {what} is no JSON: {answer[:80]!r}") from exc
    return document


def render(method: str, target: str, body: object) -> bytes:
    """The request as bytes."""
    payload = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{method} {target} HTTP/1.1",
        "Host: localhost",
        "Accept: application/json",
        f"Content-Length: {len(payload)}",
    ]
    if payload:
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, "", ""]).encode() + payload


def fault(answer: bytes) -> str:
    """What the VMM says of an error: Firecracker in `fault_message`, others as they please."""
    text = answer.decode(errors="replace").strip()
    try:
        document = json.loads(text)
    except ValueError:
        return text or "no reason given"
    if isinstance(document, dict) and isinstance(document.get("fault_message"), str):
        return str(document["fault_message"])
    if isinstance(document, list):
        return "; ".join(str(item) for item in document)
    return text


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of the final answer, past any 100 Continue."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        status_line, *header_lines = head.decode("latin-1").split("\r\n")
        parts = status_line.split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdecimal():
            raise ValueError(f"no HTTP answer: {status_line[:80]!r}")
        if (status := int(parts[1])) >= 200:
            break
    length = 0
    for line in header_lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-length":
            if not value.strip().isdecimal() or int(value) > MAX_BODY_BYTES:
                raise ValueError(f"Content-Length {value.strip()[:40]!r}")
            length = int(value)
    return status, await reader.readexactly(length)
