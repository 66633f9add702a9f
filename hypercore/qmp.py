"""One QMP command to a QEMU, over its control socket. No events, no long-lived connection.

Format: https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

import asyncio
import json
from pathlib import Path

from hypercore.errors import DeadlineExceeded, Unavailable, VmmError

MAX_LINE_BYTES = 64 * 1024


async def execute(socket_path: Path, command: str, deadline: float) -> object:
    """Run `command` and return QEMU's answer, by `deadline` of the loop's clock.

    Raises:
        Unavailable: QEMU does not listen, or ended before it answered.
        DeadlineExceeded: it did not answer in time.
        VmmError: it refused; carries its own words.
    """
    try:
        async with asyncio.timeout_at(deadline):
            reader, writer = await asyncio.open_unix_connection(
                str(socket_path), limit=MAX_LINE_BYTES
            )
            try:
                await _answer(reader)  # greeting
                await _call(reader, writer, "qmp_capabilities")
                return await _call(reader, writer, command)
            finally:
                writer.close()
    except TimeoutError as exc:
        raise DeadlineExceeded(
            f"QEMU did not answer {command!r} on {socket_path} in time"
        ) from exc
    except (OSError, EOFError, ValueError) as exc:
        raise Unavailable(f"QEMU does not answer {command!r} on {socket_path}: {exc}") from exc


async def _call(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, command: str
) -> object:
    writer.write(json.dumps({"execute": command}).encode() + b"\n")
    await writer.drain()
    while True:
        answer = await _answer(reader)
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            raise VmmError(f"QEMU refused {command!r}: {answer['error']}")


async def _answer(reader: asyncio.StreamReader) -> dict[str, object]:
    line = await reader.readline()
    if not line:
        raise EOFError("the connection ended")
    answer = json.loads(line)
    if not isinstance(answer, dict):
        raise ValueError(f"no object: {line[:80]!r}")
    return answer
