"""What all verbs share: settings, running the engine with orderly interruption, errors, output."""

import json
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hypercore.cli import signals
from hypercore.errors import HypercoreError
from hypercore.privilege import require_root

if TYPE_CHECKING:
    from hypercore.config import HostConfig
    from hypercore.engine import Engine

T = TypeVar("T")

FORMATS = ("table", "json")
USAGE_EXIT_CODE = 64
INTERNAL_EXIT_CODE = 125


@dataclass(frozen=True, slots=True)
class Settings:
    """The global flags."""

    namespace: str
    address: str
    output_format: str
    debug: bool


def format_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--format` after the verb; the global one serves too."""
    return click.option(
        "--format", "output_format", type=click.Choice(FORMATS), help="How to print."
    )(function)


def wants_json(settings: Settings, output_format: str | None) -> bool:
    return (output_format or settings.output_format) == "json"


def host_config(settings: Settings) -> "HostConfig":
    """The host's configuration with the global flags applied."""
    from dataclasses import replace
    from pathlib import Path

    from hypercore.config import load

    environ = None
    if settings.namespace:
        import os

        environ = {**os.environ, "HYPERCORE_NAMESPACE": settings.namespace}
    config = load(environ=environ)
    if settings.address:
        address = settings.address.removeprefix("unix://")
        config = replace(config, containerd_socket=Path(address))
    return config


def with_engine(settings: Settings, work: "Callable[[Engine], Coroutine[Any, Any, T]]") -> T:
    """Run `work` with an open engine; its notices go to stderr.

    Raises:
        Interrupted: see signals.run_async.
    """
    require_root()
    config = host_config(settings)

    async def opened() -> T:
        from hypercore.engine import Engine

        async with Engine(config, notice=notice) as engine:
            return await work(engine)

    return signals.run_async(opened)


def notice(line: str) -> None:
    """A line for the user that is not the result."""
    print(_printable(line), file=sys.stderr, flush=True)


def report(exc: BaseException, *, debug: bool) -> int:
    """Print what went wrong in one line, with a hint if there is one; the exit code."""
    message, hint, code = _described(exc)
    if debug and not isinstance(exc, click.exceptions.Exit):
        import traceback

        traceback.print_exception(exc)
    if message:
        print(f"hypercore: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    detail = getattr(exc, "detail", "")
    if detail and isinstance(exc, HypercoreError):
        print(_printable(detail.rstrip("\n")), file=sys.stderr)
    return code


def _described(exc: BaseException) -> tuple[str, str, int]:
    if isinstance(exc, HypercoreError):
        return _one_line(exc.message), _one_line(exc.hint), exc.exit_code
    if isinstance(exc, click.exceptions.Exit):
        return "", "", exc.exit_code
    if isinstance(exc, click.UsageError):
        path = exc.ctx.command_path if exc.ctx else "hypercore"
        return _one_line(exc.format_message()), f"see `{path} --help`", USAGE_EXIT_CODE
    if isinstance(exc, click.ClickException):
        return _one_line(exc.format_message()), "", USAGE_EXIT_CODE
    if isinstance(exc, signals.Interrupted):
        return str(exc), "", exc.exit_code
    if isinstance(exc, KeyboardInterrupt | click.Abort):
        return "interrupted", "", 130
    return (
        f"internal error: {type(exc).__name__}: {_one_line(str(exc))}",
        "run it again with --debug before the verb, and report what it prints",
        INTERNAL_EXIT_CODE,
    )


def _one_line(text: str) -> str:
    return _printable(" ".join(text.split("\n")).strip())


def _printable(text: str) -> str:
    """Consoles and agents of guests are quoted in errors: no control character may come through
    to the user's terminal.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, default=str))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns padded to their widest cell, as docker prints them."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("   ".join(cells).rstrip())


def for_each(wanted: Sequence[str], failures: Sequence[BaseException | None]) -> None:
    """Print the ids that went well; report all failures but the last, which is raised."""
    failed = []
    for text, failure in zip(wanted, failures, strict=True):
        if failure is None:
            print(text)
        else:
            failed.append(failure)
    for failure in failed[:-1]:
        report(failure, debug=False)
    if failed:
        raise failed[-1]
