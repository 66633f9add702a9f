"""`hypercore debug`: why a microVM is as it is, also after its death."""

import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from hypercore.cli.common import format_option, print_json, wants_json, with_engine

if TYPE_CHECKING:
    from pathlib import Path

    from hypercore.engine import Engine

LAST_LINES = 20


@click.command(name="debug", short_help="Command lines, console, VMM log and timings.")
@format_option
@click.argument("wanted", metavar="ID")
@click.pass_context
def debug_command(ctx: click.Context, wanted: str, output_format: str | None) -> None:
    """Print the exact VMM command line, phase times, and the ends of console and VMM log."""

    async def work(engine: "Engine") -> dict[str, Any]:
        from hypercore import logs

        where = await engine.find_paths(wanted)
        exit_status = logs.exit_record(where)
        return {
            "id": where.microvm_id,
            "argv": _read_argv(where.vmm_argv),
            "processes": _lines(where.processes),
            "timings_ms": logs.timings(where),
            "exit_code": exit_status.exit_code if exit_status else None,
            "exit_reason": exit_status.reason if exit_status else "",
            "console": _lines(where.console_log)[-LAST_LINES:],
            "vmm_log": _lines(where.vmm_log)[-LAST_LINES:],
        }

    found = with_engine(ctx.obj, work)
    if wants_json(ctx.obj, output_format):
        print_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    print(f"microVM {found['id']}")
    for role, argv in found["argv"].items():
        print(f"\n{role}:\n  {shlex.join(argv)}")
    for title, lines in (
        ("processes (role, pid, start time)", found["processes"]),
        ("console", found["console"]),
        ("VMM log", found["vmm_log"]),
    ):
        print(f"\n{title}:")
        for line in lines:
            print(f"  {line}")
    print("\ntimings (ms):")
    for room, phases in found["timings_ms"].items():
        for phase, value in phases.items():
            print(f"  {room:8} {phase:20} {value:10.1f}")
    if found["exit_code"] is not None:
        print(f"\nexit: {found['exit_code']} {found['exit_reason']}".rstrip())


def _read_argv(path: "Path") -> dict[str, list[str]]:
    try:
        document: dict[str, list[str]] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return document


def _lines(path: "Path") -> list[str]:
    """The lines of a log a guest may have written: without what a terminal would obey."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return []
    return ["".join(c if c.isprintable() or c == "\t" else "?" for c in line)
            for line in text.splitlines()]  # fmt: skip
