"""`hypercore doctor`: what this host lacks."""

import click

from hypercore.cli.common import format_option, host_config, print_json, print_table, wants_json
from hypercore.privilege import require_root

MISSING_EXIT_CODE = 69
"""as errors.Unavailable"""


@click.command(name="doctor", short_help="Tell what this host lacks, and mend it.")
@click.option("--fix", is_flag=True, help="Mend what can be mended, then look again.")
@format_option
@click.pass_context
def doctor_command(ctx: click.Context, fix: bool, output_format: str | None) -> int:
    """Name what is missing on this host, and the remedy. Exits with 69 if something is."""
    require_root()
    config = host_config(ctx.obj)
    from hypercore import doctor
    from hypercore.cli import signals

    def say(line: str) -> None:
        print(line, flush=True)

    found = signals.run_async(lambda: doctor.examine(config))
    if fix:
        signals.run_async(lambda: doctor.mend(config, found, say))
        found = signals.run_async(lambda: doctor.examine(config))
    if wants_json(ctx.obj, output_format):
        print_json(
            [
                {"name": d.name, "level": d.level, "found": d.text, "remedy": d.remedy}
                for d in found
            ]
        )
    else:
        print_table(("CHECK", "STATE", "FOUND"), [(d.name, d.level, d.text) for d in found])
        for each in found:
            if each.remedy:
                print(f"\n{each.name}: {each.remedy}")
    missing = any(each.level is doctor.Level.MISSING for each in found)
    return MISSING_EXIT_CODE if missing else 0
