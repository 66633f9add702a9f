"""`AsyncVM`: one microVM, with the client's methods on it; and its files."""

import builtins
import io
import posixpath
import stat
import tarfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, Any, Self

from hypercore.api_records import SpawnResult
from hypercore.attach import ExitStatus
from hypercore.client.process import AsyncProcess
from hypercore.client.results import FileInfo, Output, RunResult
from hypercore.errors import InvalidArgument, NotFound
from hypercore.inventory import Record
from hypercore.observed import Usage

if TYPE_CHECKING:
    from hypercore.client.async_client import AsyncClient


class AsyncVM:
    """A microVM. As an async context manager it is removed at the end of the block."""

    def __init__(
        self, client: "AsyncClient", wanted: str, spawned: SpawnResult | None = None
    ) -> None:
        self.id = wanted
        """its id; what was asked for, if the client did not spawn it"""
        self.spawned = spawned
        """how it was spawned, if this client did"""
        self.files = AsyncFiles(client, wanted)
        self._client = client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.discard()

    @property
    def timings_ms(self) -> Mapping[str, Mapping[str, float]]:
        """How long the spawn's phases took, by room (engine, shim)."""
        return self.spawned.timings_ms if self.spawned else {}

    async def record(self) -> Record:
        """What it is now."""
        return await self._client.get(self.id)

    async def run(
        self,
        command: str | Sequence[str],
        *,
        input: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        workdir: str = "",
        user: str = "",
        check: bool = False,
        timeout_s: float | None = None,
    ) -> RunResult:
        """Run a command to its end; see AsyncClient.run."""
        return await self._client.run(
            self.id,
            command,
            input=input,
            env=env,
            workdir=workdir,
            user=user,
            check=check,
            timeout_s=timeout_s,
        )

    def exec(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        workdir: str = "",
        user: str = "",
        tty: bool = False,
        stdin: bool = False,
        rows: int = 0,
        columns: int = 0,
    ) -> AbstractAsyncContextManager[AsyncProcess]:
        """Run a process whose streams are in the block's hands."""
        return self._client.exec(
            self.id,
            args,
            env=env,
            workdir=workdir,
            user=user,
            tty=tty,
            stdin=stdin,
            rows=rows,
            columns=columns,
        )

    def attach(
        self, *, stdin: bool = False, replay: bool = True
    ) -> AbstractAsyncContextManager[AsyncProcess]:
        """Join the command's streams."""
        return self._client.attach(self.id, stdin=stdin, replay=replay)

    def logs(
        self, *, follow: bool = False, tail: int | None = None, source: str = "task"
    ) -> AsyncIterator[Output]:
        """What it has printed."""
        return self._client.logs(self.id, follow=follow, tail=tail, source=source)

    async def stats(self) -> Usage:
        return await self._client.stats(self.id)

    async def inspect(self) -> dict[str, Any]:
        return await self._client.inspect(self.id)

    async def wait(self, *, timeout_s: float | None = None) -> ExitStatus:
        """Wait for the end of its command."""
        return await self._client.wait(self.id, timeout_s=timeout_s)

    async def start(self) -> Record:
        return await self._client.start(self.id)

    async def stop(self, *, grace_s: float = 10.0, signal: str = "") -> Record:
        return await self._client.stop(self.id, grace_s=grace_s, signal=signal)

    async def kill(self, *, signal: str = "KILL") -> Record:
        return await self._client.kill(self.id, signal=signal)

    async def pause(self) -> Record:
        return await self._client.pause(self.id)

    async def resume(self) -> Record:
        return await self._client.resume(self.id)

    async def delete(self, *, force: bool = False) -> Record:
        """Remove it with its disk and logs; `force` kills it first."""
        return await self._client.delete(self.id, force=force)

    async def discard(self) -> None:
        """Remove it, whatever its state; nothing happens if it is gone."""
        with suppress(NotFound):
            await self.delete(force=True)


class AsyncFiles:
    """A microVM's files. Paths are absolute; whole files, in memory."""

    def __init__(self, client: "AsyncClient", wanted: str) -> None:
        self._client = client
        self._wanted = wanted

    async def read(self, path: str) -> bytes:
        """A file's bytes; a link's are its target's.

        Raises:
            NotFound: there is none.
            InvalidArgument: it is a directory.
        """
        for _hop in range(40):
            with await self._archive(path) as archive:
                entry = archive.next()
                if entry is None:
                    raise NotFound(f"no file {path} in microVM {self._wanted}")
                if entry.issym():
                    path = posixpath.join(posixpath.dirname(path), entry.linkname)
                    continue
                file = archive.extractfile(entry) if entry.isreg() else None
                if file is None:
                    raise InvalidArgument(f"{path} is no file", field="path")
                return file.read()
        raise InvalidArgument(f"{path}: too many links", field="path")

    async def read_text(self, path: str) -> str:
        return (await self.read(path)).decode()

    async def write(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Make or replace a file; its directory must be there."""
        directory, name = posixpath.split(path)
        if not name or not path.startswith("/"):
            raise InvalidArgument(f"{path!r} is no absolute path of a file", field="path")
        content = data.encode() if isinstance(data, str) else data
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.mtime = len(content), mode, int(time.time())
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(entry, io.BytesIO(content))
        await self._client.copy_to(self._wanted, directory, buffer.getvalue())

    async def list(self, path: str) -> list[FileInfo]:
        """What is in a directory, by name. Raises InvalidArgument when it is none."""
        found: builtins.list[tuple[builtins.list[str], tarfile.TarInfo]] = []
        with await self._archive(path) as archive:
            for entry in archive:
                parts = [part for part in entry.name.split("/") if part not in ("", ".")]
                if not found and len(parts) <= 1 and not entry.isdir():
                    raise InvalidArgument(f"{path} is no directory", field="path")
                found.append((parts, entry))
        # Names begin with the directory's own, "." or its last part.
        top = len(found[0][0]) if found else 0
        infos = [_info(parts[-1], entry) for parts, entry in found if len(parts) == top + 1]
        return sorted(infos, key=lambda info: info.name)

    async def _archive(self, path: str) -> tarfile.TarFile:
        data = bytearray()
        async for piece in self._client.copy_from(self._wanted, path):
            data += piece
        return tarfile.open(fileobj=io.BytesIO(bytes(data)), mode="r:")


def _info(name: str, entry: tarfile.TarInfo) -> FileInfo:
    kind = "file" if entry.isreg() else "directory" if entry.isdir() else "other"
    if entry.issym():
        kind = "link"
    return FileInfo(name, kind, entry.size, stat.S_IMODE(entry.mode))
