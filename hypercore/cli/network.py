"""The network's flags of `spawn`: what they say goes before hac.toml."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hypercore.errors import InvalidArgument

if TYPE_CHECKING:
    from hypercore.spec import SpawnSpec

_FLAGS = "hypercore.network"

F = TypeVar("F", bound=Callable[..., Any])


def _kept(ctx: click.Context, param: click.Parameter, value: object) -> None:
    ctx.meta.setdefault(_FLAGS, {})[param.name] = value


def _flag(*names: str, **settings: Any) -> Callable[[F], F]:
    return click.option(*names, expose_value=False, callback=_kept, **settings)


def options(command: F) -> F:
    """Add the flags; `overridden` reads what was given."""
    for add in reversed(
        (
            _flag(
                *("-p", "--publish"),
                multiple=True,
                metavar="[[ADDR:]HOST:]PORT[/udp]",
                help="Publish a port or a range of them.",
            ),
            _flag("--network", metavar="NAME|none", help="Network by name, or none at all."),
            _flag("--interface", metavar="NIC", help="Host NIC that carries the traffic."),
            _flag("--hostname", metavar="NAME", help="Name of the guest; default: its id."),
            _flag("--allow-host", is_flag=True, help="Let the guest use the host's services."),
        )
    ):
        command = add(command)
    return command


def overridden(ctx: click.Context, spec: "SpawnSpec") -> "SpawnSpec":
    """`spec` with what the flags say."""
    from hypercore import network_spec

    flags = ctx.meta.get(_FLAGS, {})
    network = spec.network
    if flags["network"] == "none":
        network = network_spec.NetworkSpec(mode="none")
    elif flags["network"]:
        if problem := network_spec.name_problem(flags["network"]):
            raise InvalidArgument(f"--network {flags['network']}: {problem}")
        network = replace(network, name=flags["network"])
    if flags["interface"]:
        network = replace(network, interface=flags["interface"])
    if flags["allow_host"]:
        network = replace(network, allow_host=True)
    published = []
    for text in flags["publish"]:
        try:
            published.append(network_spec.parse_port(text))
        except ValueError as exc:
            raise InvalidArgument(f"-p {text}: {exc}") from exc
    network = replace(network, ports=(*network.ports, *published))
    if problem := network_spec.ports_problem(network.ports):
        raise InvalidArgument("-p: " + problem)
    for flag, given in (
        ("-p", published),
        ("--network", network.name),
        ("--allow-host", network.allow_host),
    ):
        if given and network.mode != "nat":
            raise InvalidArgument(
                f'{flag} belongs to network mode "nat", but mode is "{network.mode}"'
            )
    hostname = flags["hostname"] or spec.hostname
    if problem := network_spec.hostname_problem(hostname):
        raise InvalidArgument(f"--hostname {hostname}: {problem}")
    return replace(spec, network=network, hostname=hostname)
