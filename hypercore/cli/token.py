"""`hypercore token create|list|rm`: who may call the daemon over TCP, and do what."""

import time
from typing import TYPE_CHECKING

import click

from hypercore.cli.common import format_option, notice, print_json, print_table, wants_json
from hypercore.privilege import require_root

if TYPE_CHECKING:
    from hypercore.serve.tokens import Grants

SCOPES = ("read", "operate", "admin")


def _grants() -> "Grants":
    require_root()
    from hypercore import paths
    from hypercore.serve.tokens import Grants

    return Grants(paths.tokens_file())


@click.group(name="token", short_help="Who may call `hypercore serve` over TCP.")
def token_command() -> None:
    """Who may call `hypercore serve` over TCP. A running daemon sees changes at once."""


@token_command.command(name="create", short_help="Make a token.")
@click.option("--scope", type=click.Choice(SCOPES), default="read", show_default=True,
              help="read: look; operate: also change microVMs; admin: everything.")  # fmt: skip
@click.option(
    "--days", type=click.IntRange(1, 36500), metavar="N", help="Valid so long; else ever."
)
@click.option("--certificate", metavar="NAME", default="",
              help="No token: who has a client certificate with this name.")  # fmt: skip
@click.argument("name", metavar="NAME")
def create_command(scope: str, days: int | None, certificate: str, name: str) -> None:
    """Make a token and print it. It is not kept: only its digest is."""
    from hypercore.api import Scope

    expires_at = time.time() + days * 86400 if days else 0.0
    token = _grants().create(name, Scope(scope), certificate=certificate, expires_at=expires_at)
    if token:
        print(token)
    else:
        notice(f"certificates with the name {certificate} have scope {scope} now")


@token_command.command(name="list", short_help="List tokens.")
@format_option
@click.pass_context
def list_command(ctx: click.Context, output_format: str | None) -> None:
    """List tokens, without the tokens themselves."""
    grants = _grants().all()
    if wants_json(ctx.obj, output_format):
        print_json(
            [
                {
                    "name": grant.name,
                    "scope": str(grant.scope),
                    "certificate": grant.certificate,
                    "created_at": grant.created_at,
                    "expires_at": grant.expires_at,
                }
                for grant in grants
            ]
        )
        return
    rows = [
        (grant.name, str(grant.scope), grant.certificate, _date(grant.expires_at) or "never")
        for grant in grants
    ]
    print_table(("NAME", "SCOPE", "CERTIFICATE", "EXPIRES"), rows)


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(at)) if at else ""


@token_command.command(name="rm", short_help="Remove tokens.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def rm_command(names: tuple[str, ...]) -> None:
    """Remove tokens; they stop working at once."""
    grants = _grants()
    for name in names:
        grants.remove(name)
        print(name)
