"""The command line: parse, call the engine once, print. One module per group of verbs.

Verbs' modules are imported when they are used, and they import the engine when they run: help and
`spec check` load neither grpc nor asyncio.
"""

import importlib
import sys
from collections.abc import Sequence

import click

from hypercore.cli.common import FORMATS, Settings, report

_VERBS = {
    "spawn": "spawn",
    "list": "listing",
    "logs": "streams",
    "attach": "streams",
    "exec": "streams",
    "cp": "copy",
    "start": "lifecycle",
    "stop": "lifecycle",
    "kill": "lifecycle",
    "wait": "lifecycle",
    "rm": "lifecycle",
    "cleanup": "lifecycle",
    "inspect": "listing",
    "debug": "debug",
    "pull": "images",
    "images": "images",
    "image": "images",
    "spec": "spec",
    "network": "networks",
    "doctor": "doctor",
    "setup": "host",
    "guest": "host",
    "containerd": "host",
    "serve": "serve",
    "token": "token",
    "version": "host",
}
"""Verb → module of this package, in the order of the help."""

_ALIASES = {"ps": "list", "run": "spawn"}


class _Verbs(click.Group):
    """A group that imports a verb's module when it is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = _ALIASES.get(cmd_name, cmd_name)
        if name not in _VERBS:
            return None
        module = importlib.import_module(f"hypercore.cli.{_VERBS[name]}")
        command: click.Command = getattr(module, f"{name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            from hypercore.tomlfile import nearest

            known = nearest(name, (*_VERBS, *_ALIASES))
            raise click.UsageError(f"no verb {name!r}" + (f"; {known}" if known else ""), ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--namespace", metavar="NAME", help="containerd namespace; default: hypercore.")
@click.option("--address", metavar="SOCKET", help="containerd's socket.")
@click.option("--format", "output_format", type=click.Choice(FORMATS), help="How to print.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error, and debug messages.")
@click.pass_context
def root(
    ctx: click.Context,
    namespace: str | None,
    address: str | None,
    output_format: str | None,
    debug: bool,
) -> None:
    """OCI images in microVMs, through containerd."""
    ctx.obj = Settings(namespace or "", address or "", output_format or "table", debug)


def run(args: Sequence[str]) -> int:
    """Run one command line; the exit code."""
    verb = next((n for n, arg in enumerate(args) if arg in _VERBS or arg in _ALIASES), len(args))
    debug = "--debug" in args[:verb]
    try:
        code = root.main(list(args), prog_name="hypercore", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has seen enough; leave nothing for the interpreter to flush.
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (Exception, KeyboardInterrupt) as exc:
        return report(exc, debug=debug)
    return code if isinstance(code, int) else 0
