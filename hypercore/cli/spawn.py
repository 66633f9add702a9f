"""`hypercore spawn`: an image in a new microVM, in the background or as `docker run` does."""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hypercore.cli import network
from hypercore.cli.common import (
    Settings,
    format_option,
    notice,
    print_json,
    print_table,
    wants_json,
    with_engine,
)
from hypercore.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from hypercore.attach import ExitStatus
    from hypercore.engine import Engine, Spawned
    from hypercore.spec import SpawnSpec

INTERRUPT_GRACE_S = 10.0
"""After Ctrl-C a task in the foreground gets this long to end by itself."""


class _SpawnCommand(click.Command):
    """`spawn REF CMD…` and `spawn -- CMD…`, which takes the image from hac.toml."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        values, _rest, _order = self.make_parser(ctx).parse_args(list(args))
        positional = values.get("arguments")
        before = len(args) - (len(positional) if isinstance(positional, tuple) else 0)
        ctx.meta["no_ref"] = before > 0 and args[before - 1] == "--"
        return super().parse_args(ctx, args)


@click.command(
    cls=_SpawnCommand,
    name="spawn",
    context_settings={"allow_interspersed_args": False},
    short_help="Run an image in a new microVM.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[REF] [CMD...]")
@click.option("--hac", "hac_file", metavar="FILE", help="Workload file; default: ./hac.toml.")
@click.option("--provider", metavar="NAME", help="firecracker, cloud-hypervisor or qemu.")
@click.option("--name", metavar="NAME", help="Name of the microVM; must be free.")
@click.option("--rm", "remove", is_flag=True, help="Remove it once it has ended.")
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Run in the background, even with --rm -i -t.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Environment variable.")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="User.")
@click.option("--detach-keys", metavar="KEYS", help="With -t; default: ctrl-p,ctrl-q.")
@network.options
@click.option("--timings", is_flag=True, help="Print how long each phase took, on stderr.")
@click.option("--no-jail", is_flag=True, help="Do not confine the VMM; for debugging only.")
@format_option
@click.pass_context
def spawn_command(
    ctx: click.Context,
    arguments: tuple[str, ...],
    hac_file: str | None,
    provider: str | None,
    name: str | None,
    remove: bool,
    interactive: bool,
    tty: bool,
    detach: bool,
    env: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    detach_keys: str | None,
    timings: bool,
    no_jail: bool,
    output_format: str | None,
) -> int:
    """Run an image in a new microVM.

    The image is REF, or `ref` of hac.toml; CMD replaces the image's command. In the background
    the id is printed; with --rm, -i or -t it runs in the foreground, as `docker run` does.
    """
    from hypercore.cli import terminal
    from hypercore.privilege import require_root

    require_root()
    spec = _spec(arguments, hac_file, no_ref=ctx.meta["no_ref"])
    spec = _overridden(spec, provider, name, tty, env, workdir, user)
    spec = network.overridden(ctx, spec)
    foreground = (remove or interactive or tty) and not detach
    if foreground:
        terminal.require_terminal(interactive, spec.workload.tty)
    keys = terminal.parse_detach_keys(
        terminal.DEFAULT_DETACH_KEYS if detach_keys is None else detach_keys
    )
    if no_jail:
        notice("warning: --no-jail runs the VMM as root and unconfined")
    settings: Settings = ctx.obj
    as_json = wants_json(settings, output_format)

    def resolved(microvm_id: str, spec: "SpawnSpec") -> None:
        if not foreground and not as_json:
            stream = sys.stdout if sys.stdout.isatty() else sys.stderr
            line = f"Creating VM '{microvm_id}' with config {_summary(spec)}"
            print(line, file=stream, flush=True)

    async def work(engine: "Engine") -> int:
        from hypercore.cli.progress import shown

        stdin = interactive and terminal.has_stdin()
        with shown() as progress:
            spawned = await engine.spawn(
                spec,
                unique_name=bool(name),
                stdin=stdin or not foreground,
                remove=remove,
                jail=not no_jail,
                resolved=resolved,
                progress=progress,
            )
        if foreground:
            tty = spec.workload.tty
            local = terminal.Local(stdin, tty=tty, detach_keys=keys)
            return await _foreground(engine, spawned, local, remove=remove, timings=timings)
        phases = engine.timings(spawned) if timings else {}
        if as_json:
            print_json({"id": spawned.microvm_id} | ({"timings_ms": phases} if timings else {}))
            return 0
        print(f"ID: {spawned.microvm_id}" if sys.stdout.isatty() else spawned.microvm_id)
        _print_timings(phases)
        return 0

    return with_engine(settings, work)


def _spec(arguments: Sequence[str], hac_file: str | None, *, no_ref: bool) -> "SpawnSpec":
    from hypercore import hac
    from hypercore.containerd import reference
    from hypercore.spec import SpawnSpec

    ref, args = "", tuple(arguments)
    if args and not no_ref:
        ref, *rest = args
        args = tuple(rest[1:] if rest[:1] == ["--"] else rest)
        reference.parse(ref)
    path = Path(hac_file) if hac_file else hac.DEFAULT_FILE
    if hac_file or not ref or path.exists():
        if not hac_file and not path.exists():
            raise InvalidArgument(
                "no image: there is no ./hac.toml and none is named on the command line",
                hint="`hypercore spawn REF`, or `hypercore spawn --hac FILE`",
            )
        spec = hac.parse(path, ref=ref)
    else:
        spec = SpawnSpec(ref=ref)
    if args and spec.unikernel is not None:
        raise InvalidArgument(
            f"{path}: a unikernel takes no command", hint="[vm] cmdline is what it is told"
        )
    return replace(spec, workload=replace(spec.workload, args=args)) if args else spec


def _overridden(
    spec: "SpawnSpec",
    provider: str | None,
    name: str | None,
    tty: bool,
    env: Sequence[str],
    workdir: str | None,
    user: str | None,
) -> "SpawnSpec":
    """`spec` with what the flags say instead."""
    from hypercore import hac

    workload = replace(
        spec.workload,
        tty=spec.workload.tty or tty,
        env=(*spec.workload.env, *environment(env)),
        workdir=checked_workdir(workdir) or spec.workload.workdir,
        user=checked_user(user) or spec.workload.user,
    )
    if name is not None:
        check_name(name)
    if spec.unikernel is not None and workload != spec.workload:
        raise InvalidArgument("-t, -e, -w and -u are for containers: this is a unikernel")
    return replace(
        spec,
        provider=hac.provider_name(provider) if provider is not None else spec.provider,
        name=name or spec.name,
        workload=workload,
    )


def environment(items: Sequence[str]) -> list[str]:
    """`-e` options; a NAME alone takes our own value, as with docker, if there is one."""
    from hypercore.hac import env_problem

    values = []
    for item in items:
        if "=" not in item:
            if item in os.environ:
                values.append(f"{item}={os.environ[item]}")
            elif problem := env_problem(f"{item}="):
                raise InvalidArgument(f"-e {item}: {problem}")
            continue
        if problem := env_problem(item):
            raise InvalidArgument(f"-e {item}: {problem}")
        values.append(item)
    return values


def checked_workdir(workdir: str | None) -> str:
    if workdir and not workdir.startswith("/"):
        raise InvalidArgument(f"-w {workdir}: must be an absolute path in the container")
    return workdir or ""


def checked_user(user: str | None) -> str:
    from hypercore.hac import user_problem

    if user and (problem := user_problem(user)):
        raise InvalidArgument(f"-u {user}: {problem}")
    return user or ""


def check_name(name: str) -> None:
    import re

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", name):
        raise InvalidArgument(
            f"--name {name!r}: must be letters, digits and _ . -, beginning with one of the first"
        )


def _summary(spec: "SpawnSpec") -> str:
    """The resolved spec in hac.toml's words, as one line of JSON."""
    import json

    hardware = spec.hardware
    kind = "" if spec.unikernel is None else "unikernel"
    values: dict[str, Any] = {
        "name": spec.name,
        "description": spec.description,
        "provider": spec.provider,
        "kind": kind,
        "cores": hardware.cores,
        "memory": hardware.memory_mib,
        "kernel": str(hardware.kernel_path or ""),
        "drive": str(hardware.drive_path or ""),
        "ref": spec.ref,
        "network": spec.network.mode,
        "interface": spec.network.interface,
        "ports": ", ".join(map(str, spec.network.ports)),
    }
    return json.dumps({key: value for key, value in values.items() if value})


async def _foreground(
    engine: "Engine", spawned: "Spawned", local: Any, *, remove: bool, timings: bool
) -> int:
    from hypercore.cli import signals, terminal

    interrupts: list[int] = []
    output_ms: dict[str, float] = {}
    begun = time.monotonic()
    leave = remove
    try:
        record = await engine.find(spawned.microvm_id)

        async def on_signal(signum: int) -> None:
            if signum not in signals.ENDING:
                await engine.signal(record, signum)
                return
            interrupts.append(signum)
            if len(interrupts) == 1:
                await engine.signal(record, signum)
                await engine.stop(record.microvm_id, INTERRUPT_GRACE_S, signal=signum)
            else:
                await engine.signal(record, signal.SIGKILL)

        def attach(*fds: int | None) -> Any:
            return engine.attach(record, *fds)

        def first_output() -> None:
            output_ms.setdefault("first output", (time.monotonic() - begun) * 1000)

        status = await terminal.join(
            attach, local, on_signal=on_signal, on_output=first_output if timings else None
        )
    except terminal.Detached:
        leave = False
        notice(f"detached from {spawned.microvm_id}")
        return 0
    finally:
        if timings:
            _print_timings(engine.timings(spawned) | {"terminal": output_ms})
        if leave:
            with suppress(NotFound):  # the shim server removes what is left for it too long
                await engine.remove(spawned.microvm_id, force=True)
    return signals.exit_code_of(interrupts[0]) if interrupts else exit_code(status)


def exit_code(status: "ExitStatus") -> int:
    """The task's exit code; what is not normal about its end goes to stderr."""
    if status.missing_bytes:
        notice(f"warning: {status.missing_bytes} bytes of output are missing")
    if status.reason:
        notice(f"hypercore: the microVM ended before its task: {status.reason}")
    return status.exit_code


def _print_timings(timings: Mapping[str, Mapping[str, float]]) -> None:
    from contextlib import redirect_stdout

    rows = [
        (room, phase, f"{value:.1f}")
        for room, phases in timings.items()
        for phase, value in phases.items()
    ]
    if rows:
        with redirect_stdout(sys.stderr):
            print_table(("ROOM", "PHASE", "MS"), rows)
