"""`hypercore spec check`."""

from pathlib import Path

import click


@click.group(name="spec", short_help="Check workload files.")
def spec_command() -> None:
    """Check workload files."""


@spec_command.command(name="check", short_help="Check a hac.toml without starting anything.")
@click.argument("file", default="hac.toml", metavar="[FILE]")
def check_command(file: str) -> None:
    """Check FILE (default: ./hac.toml); needs neither root nor containerd."""
    from hypercore import hac

    spec = hac.parse(Path(file))
    hardware = spec.hardware
    what = spec.ref if spec.unikernel is None else f"unikernel {hardware.kernel_path}"
    print(f"{file}: ok: {what}, {hardware.cores} cores, {hardware.memory_mib} MiB")
