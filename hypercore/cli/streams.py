"""`hypercore logs, attach, exec`: what goes into and comes out of microVMs."""

import os
from typing import TYPE_CHECKING, Any

import click

from hypercore.cli.common import notice, with_engine

if TYPE_CHECKING:
    from hypercore.engine import Engine
    from hypercore.inventory import Record


@click.command(name="logs", short_help="Print what a microVM has printed.")
@click.option("-f", "--follow", is_flag=True, help="Go on until its end.")
@click.option("-n", "--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines.")
@click.option("--source", type=click.Choice(("task", "console", "vmm")), default="task",
              show_default=True, help="The task, the guest's console, or the VMM.")  # fmt: skip
@click.argument("wanted", metavar="ID")
@click.pass_context
def logs_command(
    ctx: click.Context, wanted: str, follow: bool, tail: int | None, source: str
) -> None:
    """Print what a microVM has printed: its stdout on stdout, its stderr on stderr."""
    if follow and source != "task":
        raise click.UsageError(f"--follow is for the task's output, not for --source {source}")

    async def work(engine: "Engine") -> None:
        record = await engine.find(wanted)
        if follow:
            await _follow(engine, record, tail)
        else:
            await _print_logs(engine, record, tail, source)

    with_engine(ctx.obj, work)


async def _print_logs(engine: "Engine", record: "Record", tail: int | None, source: str) -> None:
    import asyncio

    from hypercore import logs

    for path, fd in engine.log_files(record, source):
        await asyncio.to_thread(logs.copy, path, fd, tail)


async def _follow(engine: "Engine", record: "Record", tail: int | None) -> None:
    """Replay the log and go on; with `tail`, the bytes before the last lines are left out."""
    from hypercore import logs
    from hypercore.cli import terminal

    skip_bytes = {
        fd: logs.tail_offset(path, tail) if tail is not None else 0
        for path, fd in engine.log_files(record, "task")
    }

    def attach(*fds: int | None) -> Any:
        return engine.attach(record, *fds)

    await terminal.join(attach, terminal.Local(stdin=False, tty=record.tty), skip_bytes=skip_bytes)


@click.command(name="attach", short_help="Join a microVM's stdin and output.")
@click.option("--no-logs", is_flag=True, help="Begin with what is printed from now on.")
@click.option("--no-stdin", is_flag=True, help="Do not pass stdin.")
@click.option("--sig-proxy/--no-sig-proxy", default=True, show_default=True,
              help="Pass signals to the task; else they end attach alone.")  # fmt: skip
@click.option("--detach-keys", metavar="KEYS", help="On a terminal; default: ctrl-p,ctrl-q.")
@click.argument("wanted", metavar="ID")
@click.pass_context
def attach_command(
    ctx: click.Context,
    wanted: str,
    no_logs: bool,
    no_stdin: bool,
    sig_proxy: bool,
    detach_keys: str | None,
) -> int:
    """Join a microVM's stdin and output; any number of clients may.

    Begins with all it has printed so far. Ends with the task, and with its exit code.
    """
    from hypercore.cli import signals, terminal
    from hypercore.cli.spawn import exit_code

    keys = terminal.parse_detach_keys(
        terminal.DEFAULT_DETACH_KEYS if detach_keys is None else detach_keys
    )

    async def work(engine: "Engine") -> int:
        record = await engine.find(wanted)
        interrupts: list[int] = []
        leave = terminal.Leave()

        async def on_signal(signum: int) -> None:
            if signum in signals.ENDING:
                interrupts.append(signum)
                if len(interrupts) == 3:
                    leave.now()
                    return
                if len(interrupts) == 1 and os.isatty(2):
                    notice("passed to the task; twice more to detach")
            await engine.signal(record, signum)

        def attach(*fds: int | None) -> Any:
            return engine.attach(record, *fds, replay=not no_logs)

        local = terminal.Local(
            stdin=not no_stdin and terminal.has_stdin(), tty=record.tty, detach_keys=keys
        )
        try:
            status = await terminal.join(
                attach, local, on_signal=on_signal if sig_proxy else None, leave=leave
            )
        except terminal.Detached:
            notice(f"detached from {record.microvm_id}")
            return signals.exit_code_of(interrupts[0]) if interrupts else 0
        return exit_code(status)

    return with_engine(ctx.obj, work)


@click.command(
    name="exec",
    short_help="Run a command in a microVM.",
    context_settings={"allow_interspersed_args": False},
)
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Leave it running; its output is dropped.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Environment variable.")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="User.")
@click.option("--detach-keys", metavar="KEYS", help="With -t; default: ctrl-p,ctrl-q.")
@click.argument("wanted", metavar="ID")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="CMD...")
@click.pass_context
def exec_command(
    ctx: click.Context,
    wanted: str,
    command: tuple[str, ...],
    interactive: bool,
    tty: bool,
    detach: bool,
    env: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    detach_keys: str | None,
) -> int:
    """Run a command in a running microVM; its exit code is ours."""
    from hypercore.cli import terminal
    from hypercore.cli.spawn import checked_user, checked_workdir, environment, exit_code

    if detach and (interactive or tty):
        raise click.UsageError("--detach goes without -i and -t: nobody is there to talk to")
    terminal.require_terminal(interactive, tty)
    keys = terminal.parse_detach_keys(
        terminal.DEFAULT_DETACH_KEYS if detach_keys is None else detach_keys
    )
    args = command[1:] if command[0] == "--" and len(command) > 1 else command
    stdin = interactive and terminal.has_stdin()

    async def work(engine: "Engine") -> int:
        record = await engine.find(wanted)
        process = engine.exec(
            record,
            args,
            env=environment(env),
            workdir=checked_workdir(workdir),
            user=checked_user(user),
            stdin=stdin,
            tty=tty,
        )
        async with process as prepared:
            if detach:
                await prepared.start()
                prepared.leave_running()
                return 0
            local = terminal.Local(stdin=stdin, tty=tty, detach_keys=keys)
            try:
                status = await terminal.join(prepared.attach, local, begin=prepared.start)
            except terminal.Detached:
                prepared.leave_running()
                notice("detached")
                return 0
        return exit_code(status)

    return with_engine(ctx.obj, work)
