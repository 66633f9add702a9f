"""`hypercore pull, images, image load|rm`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hypercore.cli.common import (
    format_option,
    notice,
    print_json,
    print_table,
    wants_json,
    with_engine,
)
from hypercore.errors import InvalidArgument

if TYPE_CHECKING:
    from hypercore.engine import Engine
    from hypercore.proto.containerd_images_pb import Image


@click.command(name="pull", short_help="Fetch an image from its registry.")
@click.option("-u", "--user", metavar="NAME:PASSWORD", envvar="HYPERCORE_REGISTRY_USER",
              help="Login; else docker's stored one.")  # fmt: skip
@click.option("--plain-http", is_flag=True, help="Without TLS; the default on this machine.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.argument("ref", metavar="REF")
@click.pass_context
def pull_command(
    ctx: click.Context, ref: str, user: str | None, plain_http: bool, quiet: bool
) -> None:
    """Fetch an image from its registry and unpack it."""
    name, colon, password = (user or "").partition(":")
    if user and not (name and colon):
        raise InvalidArgument("--user must be NAME:PASSWORD")

    async def work(engine: "Engine") -> str:
        from hypercore.cli.progress import shown
        from hypercore.containerd import images
        from hypercore.containerd.registry_auth import Credentials

        with shown() as progress:
            image = await images.pull(
                engine.client,
                ref,
                progress=None if quiet else progress,
                auth=Credentials(name, password) if user else None,
                plain_http=True if plain_http else None,
            )
        return image.name

    print(with_engine(ctx.obj, work))


@click.command(name="images", short_help="List images.")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@format_option
@click.pass_context
def images_command(ctx: click.Context, quiet: bool, output_format: str | None) -> None:
    """List the images that are here."""

    async def work(engine: "Engine") -> "list[Image]":
        from hypercore.containerd import images

        return await images.list_all(engine.client)

    found = sorted(with_engine(ctx.obj, work), key=lambda image: image.name)
    if quiet:
        for image in found:
            print(image.name)
    elif wants_json(ctx.obj, output_format):
        print_json([_as_json(image) for image in found])
    else:
        _print(found)


def _as_json(image: "Image") -> dict[str, object]:
    from hypercore.inventory import seconds

    return {
        "ref": image.name,
        "digest": image.target.digest if image.target else "",
        "created_at": seconds(image.created_at),
    }


def _print(found: "list[Image]") -> None:
    from hypercore.inventory import age, seconds

    now = time.time()
    rows = [
        (
            image.name,
            image.target.digest.removeprefix("sha256:")[:12] if image.target else "",
            f"{age(seconds(image.created_at), now)} ago",
        )
        for image in found
    ]
    print_table(("IMAGE", "DIGEST", "CREATED"), rows)


@click.group(name="image", short_help="Load and remove images.")
def image_command() -> None:
    """Load and remove images."""


@image_command.command(name="load", short_help="Load an OCI or docker archive.")
@click.option("--name", metavar="REF", default="", help="Name it so, whatever the archive says.")
@click.argument("file", metavar="FILE")
@click.pass_context
def load_command(ctx: click.Context, file: str, name: str) -> None:
    """Load an archive, OCI's or docker's, and unpack its images."""

    async def work(engine: "Engine") -> list[str]:
        from hypercore.cli.progress import shown
        from hypercore.containerd import images

        with shown() as progress:
            return await images.load(engine.client, Path(file), name=name, progress=progress)

    for ref in with_engine(ctx.obj, work):
        print(ref)


@image_command.command(name="rm", short_help="Remove images.")
@click.argument("refs", nargs=-1, required=True, metavar="REF...")
@click.pass_context
def rm_command(ctx: click.Context, refs: tuple[str, ...]) -> None:
    """Forget names of images; their content goes when nothing else needs it."""

    async def work(engine: "Engine") -> list[str]:
        return [await engine.remove_image(ref) for ref in refs]

    for name in with_engine(ctx.obj, work):
        notice(f"removed {name}")
