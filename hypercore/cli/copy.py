"""`hypercore cp`: files between the host and a running microVM, by docker cp's rules."""

import os
import select
import stat
import sys
from typing import TYPE_CHECKING

import click

from hypercore.cli.common import notice, with_engine

if TYPE_CHECKING:
    from hypercore.engine import Engine

SHOWN = 10
"""Names of files left out that are told one by one."""
PIPE_BYTES = 4096
"""What a pipe that is writable takes without blocking."""


@click.command(name="cp", short_help="Copy files into or out of a running microVM.")
@click.option("-a", "--archive", is_flag=True,
              help="Keep owners and all mode bits; else files are root's, or yours.")  # fmt: skip
@click.option("-L", "--follow-link", is_flag=True, help="Copy what SRC leads to if it is a link.")
@click.option("--special-files", is_flag=True,
              help="Make device nodes and FIFOs on the host; else they are left out.")  # fmt: skip
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DEST")
@click.pass_context
def cp_command(
    ctx: click.Context,
    source: str,
    target: str,
    archive: bool,
    follow_link: bool,
    special_files: bool,
) -> None:
    """Copy files between the host and a running microVM. One of SRC and DEST is ID:PATH.

    As docker cp: a directory goes into a DEST that is one, under its own name; DIR/. copies only
    what is in it. `-` is a tar archive on stdin or stdout. PATH is absolute in the microVM.
    """
    from_id, from_path = split(source)
    to_id, to_path = split(target)
    if bool(from_id) == bool(to_id):
        raise click.UsageError("one of SRC and DEST must be ID:PATH, and the other must not")
    if source == "-" and sys.stdin.isatty():
        raise click.UsageError("stdin is a terminal, not a tar archive")
    if target == "-" and sys.stdout.isatty():
        raise click.UsageError("a tar archive is not for a terminal: redirect stdout")

    async def work(engine: "Engine") -> None:
        from hypercore import engine_copy

        record = await engine.find(from_id or to_id)
        namespace = engine.client.namespace
        if source == "-":
            await engine_copy.send_archive(
                namespace,
                record,
                engine_copy.absolute(to_path),
                lambda: _read(0),
                preserve_ownership=archive,
            )
        elif target == "-":
            path = engine_copy.absolute(from_path)
            if follow_link:
                path, _ = await engine_copy.resolve(namespace, record, path)
            await engine_copy.receive_archive(
                namespace, record, path, lambda data: _write(1, data)
            )
        elif to_id:
            await engine.copy_to(
                record, source, to_path, preserve_ownership=archive, follow=follow_link
            )
        else:
            options = engine_copy.Options(archive, special_files)
            left_out = await engine.copy_from(
                record, from_path, target, options=options, follow=follow_link
            )
            for name in left_out[:SHOWN]:
                notice(f"left out: {name} (--special-files makes it)")
            if len(left_out) > SHOWN:
                notice(f"left out: {len(left_out) - SHOWN} more")

    with_engine(ctx.obj, work)


def split(text: str) -> tuple[str, str]:
    """(ID, PATH) of an argument; no ID for a path of the host."""
    microvm_id, colon, path = text.partition(":")
    if not colon or text.startswith((".", "/")):
        return "", text
    return microvm_id, path or "/"


async def _read(fd: int) -> bytes:
    """Some bytes of stdin, whose blocking mode others may share."""
    import asyncio

    if stat.S_ISREG(os.fstat(fd).st_mode):
        return await asyncio.to_thread(os.read, fd, 32768)
    await _until(fd, select.POLLIN)
    return os.read(fd, 32768)


async def _write(fd: int, data: bytes) -> None:
    import asyncio

    view = memoryview(data)
    regular = stat.S_ISREG(os.fstat(fd).st_mode)
    while view:
        if regular:
            done = await asyncio.to_thread(os.write, fd, view)
        else:
            await _until(fd, select.POLLOUT)
            done = os.write(fd, view[:PIPE_BYTES])
        view = view[done:]


async def _until(fd: int, event: int) -> None:
    import asyncio

    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    add, remove = (
        (loop.add_reader, loop.remove_reader)
        if event == select.POLLIN
        else (loop.add_writer, loop.remove_writer)
    )
    try:
        add(fd, ready.set)
    except PermissionError:
        return  # no pipe and no socket, such as /dev/null: never blocks
    try:
        await ready.wait()
    finally:
        remove(fd)
