"""What users of the library say → requests."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hypercore.proto import hypercore_pb as pb

CHUNK_BYTES = 256 * 1024
Input = bytes | Path | Iterable[bytes] | AsyncIterable[bytes]
"""Bytes to send: all at once, a file, or pieces"""


def spawn_request(
    ref: str,
    args: Sequence[str],
    *,
    name: str,
    description: str,
    provider: str,
    cores: int | None,
    memory: int | None,
    interface: str,
    network: str,
    ports: Sequence[str],
    command: Sequence[str],
    env: Mapping[str, str],
    workdir: str,
    user: str,
    tty: bool,
    stdin: bool,
    remove: bool,
    hac: str,
    idempotency_key: str,
) -> pb.SpawnRequest:
    return pb.SpawnRequest(
        spacecore=pb.Spacecore(name=name, description=description),
        hardware=pb.Hardware(ref=ref, cores=cores, memory=memory, interface=interface),
        vm=pb.VM(provider=provider),
        network=pb.Network(mode=network, ports=list(ports)),
        workload=pb.Workload(
            command=list(command),
            args=list(args),
            env=[f"{key}={value}" for key, value in env.items()],
            workdir=workdir,
            user=user,
            tty=tty,
        ),
        hac=hac,
        stdin=stdin,
        remove=remove,
        idempotency_key=idempotency_key,
    )


async def chunks_of(data: Input) -> AsyncIterator[bytes]:
    """`data` in pieces that fit into a message."""
    pieces: Any
    if isinstance(data, bytes):
        pieces = _async_pieces([data])
    elif isinstance(data, Path):
        pieces = _file_pieces(data)
    elif isinstance(data, AsyncIterable):
        pieces = data
    else:
        pieces = _async_pieces(data)
    async for piece in pieces:
        for start in range(0, len(piece), CHUNK_BYTES):
            yield piece[start : start + CHUNK_BYTES]


async def _async_pieces(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def _file_pieces(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while piece := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield piece
