"""`hypercore start, stop, kill, wait, rm, cleanup`: what changes the state of microVMs."""

import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import click

from hypercore.cli.common import Settings, for_each, notice, with_engine
from hypercore.errors import HypercoreError, InvalidArgument

if TYPE_CHECKING:
    from hypercore.engine import Engine

ids = click.argument("wanted", nargs=-1, required=True, metavar="ID...")


def _on_each(
    settings: Settings,
    wanted: Sequence[str],
    action: "Callable[[Engine, str], Coroutine[Any, Any, Any]]",
) -> None:
    """Do `action` to each at once, print the ids that went well, report the others."""

    async def one(engine: "Engine", text: str) -> HypercoreError | None:
        try:
            await action(engine, text)
        except HypercoreError as exc:
            return exc
        return None

    async def work(engine: "Engine") -> list[HypercoreError | None]:
        import asyncio

        return await asyncio.gather(*(one(engine, text) for text in wanted))

    for_each(wanted, with_engine(settings, work))


@click.command(name="start", short_help="Start microVMs that have ended.")
@ids
@click.pass_context
def start_command(ctx: click.Context, wanted: tuple[str, ...]) -> None:
    """Start microVMs that have ended, with the disks they had."""
    _on_each(ctx.obj, wanted, lambda engine, text: engine.start(text))


@click.command(name="stop", short_help="Ask microVMs to end, then kill them.")
@click.option("-t", "--time", "grace_s", type=click.FloatRange(0), default=10.0, metavar="SECONDS",
              show_default=True, help="Kill what has not ended after this.")  # fmt: skip
@click.option("-s", "--signal", "name", metavar="SIGNAL", help="Ask by this one instead.")
@ids
@click.pass_context
def stop_command(
    ctx: click.Context, wanted: tuple[str, ...], grace_s: float, name: str | None
) -> None:
    """Ask microVMs to end by their stop signal (SIGTERM unless the image says), then kill them."""
    from hypercore.signal_names import signal_number

    number = signal_number(name) if name else 0
    _on_each(ctx.obj, wanted, lambda engine, text: engine.stop(text, grace_s, signal=number))


@click.command(name="kill", short_help="Send a signal.")
@click.option("-s", "--signal", "name", default="KILL", metavar="SIGNAL", show_default=True,
              help="Name or number.")  # fmt: skip
@ids
@click.pass_context
def kill_command(ctx: click.Context, wanted: tuple[str, ...], name: str) -> None:
    """Send a signal to microVMs' init processes."""
    from hypercore.signal_names import signal_number

    number = signal_number(name)
    _on_each(ctx.obj, wanted, lambda engine, text: engine.kill(text, number))


@click.command(name="wait", short_help="Wait for the end, print exit codes.")
@ids
@click.pass_context
def wait_command(ctx: click.Context, wanted: tuple[str, ...]) -> None:
    """Wait until microVMs have ended and print their exit codes, one a line."""

    async def work(engine: "Engine") -> None:
        for text in wanted:
            print((await engine.wait(text)).exit_code, flush=True)

    with_engine(ctx.obj, work)


@click.command(name="rm", short_help="Remove ended microVMs with disk and logs.")
@click.option("-f", "--force", is_flag=True, help="Kill running ones first.")
@ids
@click.pass_context
def rm_command(ctx: click.Context, wanted: tuple[str, ...], force: bool) -> None:
    """Remove microVMs that have ended, with their disks and logs."""
    _on_each(ctx.obj, wanted, lambda engine, text: engine.remove(text, force=force))


@click.command(name="cleanup", short_help="Reclaim what is left behind.")
@click.option("--all", "everything", is_flag=True, help="All microVMs, also those that run.")
@click.option("-y", "--yes", is_flag=True, help="With --all: do not ask.")
@click.argument("wanted", nargs=-1, metavar="[ID...]")
@click.pass_context
def cleanup_command(
    ctx: click.Context, wanted: tuple[str, ...], everything: bool, yes: bool
) -> None:
    """Reclaim what crashes have left: processes, devices, disks, snapshots, records.

    Without an ID: of microVMs whose shim died, and whatever belongs to no microVM. With IDs:
    those microVMs, whatever their state. With --all: every microVM.
    """
    if everything and wanted:
        raise InvalidArgument("cleanup takes IDs or --all, not both")
    if everything and not yes and sys.stdin.isatty():
        click.confirm("remove all microVMs, also those that run?", abort=True, err=True)

    async def work(engine: "Engine") -> Sequence[str]:
        return await engine.cleanup(wanted, everything=everything)

    reclaimed = with_engine(ctx.obj, work)
    for line in reclaimed:
        print(line)
    if not reclaimed:
        notice("nothing to reclaim")
