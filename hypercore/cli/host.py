"""`hypercore setup, guest build, containerd start|stop|status, version`: the host itself."""

import sys
from typing import TYPE_CHECKING

import click

from hypercore.cli.common import (
    Settings,
    format_option,
    host_config,
    notice,
    print_json,
    print_table,
    wants_json,
)
from hypercore.errors import InvalidArgument
from hypercore.privilege import require_root

if TYPE_CHECKING:
    from hypercore.containerd.daemon import Status

NOT_READY_EXIT_CODE = 69
"""as errors.Unavailable"""


@click.command(name="setup", short_help="Install what hypercore needs on this host.")
@click.option("--check", is_flag=True, help="Only report; change nothing.")
@click.option("--provider", metavar="NAME", help="Also install this VMM, of its own release.")
@click.option("--url", default="", metavar="URL",
              help="With --provider: take the release from here.")  # fmt: skip
@click.option("--sha256", default="", metavar="SUM",
              help="With --provider: what the release must have.")  # fmt: skip
@format_option
@click.pass_context
def setup_command(
    ctx: click.Context,
    check: bool,
    provider: str | None,
    url: str,
    sha256: str,
    output_format: str | None,
) -> int:
    """Install or build what hypercore needs, in its own directories. Idempotent."""
    require_root()
    config = host_config(ctx.obj)
    from hypercore import hac, host_setup
    from hypercore.cli import signals

    if (url or sha256) and not provider:
        raise InvalidArgument("--url and --sha256 go with --provider NAME")
    wish = host_setup.Wish(hac.provider_name(provider), url, sha256) if provider else None
    if not check:
        signals.run_async(lambda: host_setup.apply(config, _say, wish))
        return 0
    found = signals.run_async(lambda: host_setup.check(config, wish))
    if wants_json(ctx.obj, output_format):
        print_json([{"step": n, "ready": f.ready, "found": f.text} for n, f in found])
    else:
        rows = [(name, "ready" if f.ready else "missing", f.text) for name, f in found]
        print_table(("STEP", "STATE", "FOUND"), rows)
    return 0 if all(finding.ready for _name, finding in found) else NOT_READY_EXIT_CODE


def _say(line: str) -> None:
    print(line, flush=True)


@click.group(name="guest", short_help="Guest assets: kernel and agent.")
def guest_command() -> None:
    """Guest assets: the kernel and the drive with the agent that microVMs boot from."""


@guest_command.command(name="build", short_help="Build kernel and agent's drive.")
def build_command() -> None:
    """Build the guest assets unless they are up to date."""
    require_root()
    from hypercore import guest

    assets = guest.build(notice)
    print(f"guest assets {assets.version}: {assets.kernel_path.parent}")


@click.group(name="containerd", short_help="Our own containerd.")
def containerd_command() -> None:
    """Our own containerd; another one on this host is left alone."""


@containerd_command.command(name="start")
@click.pass_context
def start_command(ctx: click.Context) -> None:
    """Start it and wait until it serves. Idempotent."""
    require_root()
    config = host_config(ctx.obj)
    from hypercore.cli import signals
    from hypercore.containerd import daemon

    _print_status(signals.run_async(lambda: daemon.start(config)))


@containerd_command.command(name="stop")
def stop_command() -> None:
    """Stop it; microVMs live on. Idempotent."""
    require_root()
    from hypercore.cli import signals
    from hypercore.containerd import daemon

    print("stopped" if signals.run_async(daemon.stop) else "containerd was not running")


@containerd_command.command(name="status")
@click.pass_context
def status_command(ctx: click.Context) -> int:
    """Tell whether it runs; its last log lines if it does not."""
    from hypercore.containerd import daemon

    status = daemon.status()
    if status.serving:
        _print_status(status)
        return 0
    print(f"containerd does not serve {status.socket}")
    if lines := daemon.last_log_lines():
        print(lines, file=sys.stderr)
    return NOT_READY_EXIT_CODE


def _print_status(status: "Status") -> None:
    print(f"containerd runs as pid {status.pid} at {status.socket}; log: {status.log}")


@click.command(name="version", short_help="Versions of hypercore and what it uses.")
@format_option
@click.pass_context
def version_command(ctx: click.Context, output_format: str | None) -> None:
    """Print versions of hypercore and of the parts it uses."""
    versions = _versions(ctx.obj)
    if wants_json(ctx.obj, output_format):
        print_json(versions)
    else:
        print_table(("PART", "VERSION"), list(versions.items()))


def _versions(settings: Settings) -> dict[str, str]:
    import platform

    import hypercore
    from hypercore import guest
    from hypercore.errors import HypercoreError

    try:
        assets = guest.current().version
    except HypercoreError as exc:
        assets = f"none: {exc.hint}"
    return {
        "hypercore": hypercore.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "guest assets": assets,
        "containerd": _containerd_version(settings),
    }


def _containerd_version(settings: Settings) -> str:
    from hypercore.errors import HypercoreError

    config = host_config(settings)
    if not config.containerd_socket.exists():
        return f"not running at {config.containerd_socket}"

    async def ask() -> str:
        from hypercore.engine import Engine

        async with Engine(config) as engine:
            return await engine.containerd_version()

    from hypercore.cli import signals

    try:
        return signals.run_async(ask)
    except HypercoreError as exc:
        return f"unknown: {exc.message}"
