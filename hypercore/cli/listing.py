"""`hypercore list` (`ps`) and `inspect`."""

import time
from typing import TYPE_CHECKING, Any

import click

from hypercore.cli.common import format_option, print_json, print_table, wants_json, with_engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypercore.engine import Engine
    from hypercore.inventory import Record

COMMAND_WIDTH = 24


@click.command(name="list", short_help="List microVMs (also: ps).")
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that do not run.")
@click.option("-q", "--quiet", is_flag=True, help="Only ids.")
@click.option("--no-trunc", is_flag=True, help="Whole ids and commands.")
@format_option
@click.pass_context
def list_command(
    ctx: click.Context, everything: bool, quiet: bool, no_trunc: bool, output_format: str | None
) -> None:
    """List the microVMs that run."""
    from hypercore.inventory import ALIVE

    async def work(engine: "Engine") -> "Sequence[Record]":
        return await engine.list()

    records = [r for r in with_engine(ctx.obj, work) if everything or r.state in ALIVE]
    if quiet:
        for record in records:
            print(record.microvm_id)
    elif wants_json(ctx.obj, output_format):
        print_json([_as_json(record) for record in records])
    else:
        _print(records, whole=no_trunc)


def _print(records: "Sequence[Record]", *, whole: bool) -> None:
    from hypercore.inventory import age

    now = time.time()
    rows = [
        (
            record.microvm_id if whole else record.microvm_id[:12],
            record.image if whole else record.image.removeprefix("docker.io/library/"),
            f'"{record.command if whole else _cut(record.command)}"',
            f"{age(record.created_at, now)} ago",
            record.status,
            record.provider,
            ", ".join(record.ports),
            record.name,
        )
        for record in records
    ]
    print_table(("ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PROVIDER", "PORTS", "NAME"), rows)


def _cut(text: str) -> str:
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= COMMAND_WIDTH else text[: COMMAND_WIDTH - 1] + "…"


def _as_json(record: "Record") -> dict[str, Any]:
    return {
        "id": record.microvm_id,
        "name": record.name,
        "description": record.description,
        "image": record.image,
        "command": record.command,
        "provider": record.provider,
        "ports": list(record.ports),
        "state": str(record.state),
        "status": record.status,
        "exit_code": record.exit_code,
        "pid": record.pid,
        "created_at": record.created_at,
        "exited_at": record.exited_at or None,
        "tty": record.tty,
    }


@click.command(name="inspect", short_help="All that is known of microVMs, as JSON.")
@click.argument("wanted", nargs=-1, required=True, metavar="ID...")
@click.pass_context
def inspect_command(ctx: click.Context, wanted: tuple[str, ...]) -> None:
    """Print all that is known of microVMs, as a JSON list."""

    async def work(engine: "Engine") -> list[dict[str, Any]]:
        return [await engine.inspect(text) for text in wanted]

    print_json(with_engine(ctx.obj, work))
