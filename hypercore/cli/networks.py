"""`hypercore network ls|inspect|prune`: what microVMs have of the network."""

from dataclasses import asdict

import click

from hypercore.cli.common import format_option, print_json, print_table, wants_json
from hypercore.errors import NotFound
from hypercore.privilege import require_root


@click.group(name="network", short_help="Networks of microVMs.")
def network_command() -> None:
    """Networks of microVMs. `ls` and `inspect` change nothing."""


@network_command.command(name="ls")
@format_option
@click.pass_context
def ls_command(ctx: click.Context, output_format: str | None) -> None:
    """List the NICs of all microVMs of this host, of every instance."""
    require_root()
    from hypercore import network_state

    found = network_state.connections()
    if wants_json(ctx.obj, output_format):
        print_json([asdict(each) for each in found])
        return
    rows = [
        (
            each.microvm_id,
            each.tap_name,
            each.mode or "-",
            ", ".join(each.addresses) or "-",
            each.network or "-",
            ", ".join(each.ports) or "-",
        )
        for each in found
    ]
    print_table(("MICROVM", "TAP", "MODE", "ADDRESSES", "NETWORK", "PORTS"), rows)


@network_command.command(name="inspect")
@click.argument("wanted", metavar="ID|NETWORK|TAP")
def inspect_command(wanted: str) -> None:
    """Print a microVM's NICs, or the members of a network by name, as JSON."""
    require_root()
    from hypercore import network_state

    found = network_state.connections()
    for matches in (
        [each for each in found if wanted in (each.microvm_id, each.network, each.tap_name)],
        [each for each in found if each.microvm_id.startswith(wanted)],
    ):
        if matches:
            print_json([asdict(each) for each in matches])
            return
    raise NotFound(
        f"no microVM, network or TAP {wanted!r}", hint="`hypercore network ls` lists all"
    )


@network_command.command(name="prune")
def prune_command() -> None:
    """Remove what belongs to no microVM any more, and without microVMs all of our rules."""
    require_root()
    from hypercore import network_state

    for line in network_state.prune():
        print(f"removed {line}")


@network_command.command(name="bridge")
@click.argument("name")
@click.option("--interface", required=True, metavar="NIC", help="NIC that goes into it.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
def bridge_command(name: str, interface: str, dry_run: bool) -> None:
    """Make bridge NAME of a NIC, with the host's addresses and routes; until the next reboot.

    All is taken back if a gateway that answered before does not answer after.
    """
    require_root()
    from hypercore import bridge_setup

    plan = bridge_setup.plan(name, interface)
    for line in plan.lines():
        print(line)
    if not dry_run:
        bridge_setup.make(plan)
