"""Rootfs mounts that are layers and a recipe → which of them are lower, and which is the upper.

What the erofs snapshotter of containerd ≥ 2.2 hands to a runtime that asks for it (info.py):
images of layers, an ext4 image to write to, and an overlay or bind whose options name the images
before it by templates, `{{ mount 1 }}`. Pure: opens no file.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hypercore.errors import InvalidArgument
from hypercore.proto.types_pb import Mount

_TEMPLATE = re.compile(r"\{\{ *(?:mount (\d+)|overlay (\d+) (\d+)) *\}\}")
_MKDIR = "X-containerd.mkdir.path="
_HARMLESS = frozenset(
    {"ro", "rw", "rbind", "bind", "index=off", "metacopy=off", "redirect_dir=off"}
)
"""Options of the recipe that change nothing here."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The mounts of a root: `lower` as in overlayfs's lowerdir, the topmost first."""

    lower: tuple[Mount, ...]
    upper: Mount | None = None


def parse(mounts: Sequence[Mount]) -> Layers | None:
    """The layers in `mounts`; None when there is no recipe for them.

    Raises:
        InvalidArgument: a recipe with something in it that the guest cannot do; names it.
    """
    recipe = mounts[-1] if mounts else None
    if recipe is None or not recipe.type.startswith("format/"):
        if len(mounts) == 1 and mounts[0].type == "erofs":
            return Layers((mounts[0],))
        return None
    images = mounts[:-1]
    kind = recipe.type.rpartition("/")[2]
    if kind == "overlay":
        layers = _overlay(recipe, images)
    elif kind == "bind":
        layers = Layers(tuple(_expand(recipe.source, images)))
    else:
        raise InvalidArgument(f"rootfs: a mount of type {recipe.type} is not supported")
    for mount in layers.lower:
        if mount.type != "erofs":
            raise InvalidArgument(f"rootfs: the layer {mount.source} is {mount.type}, not erofs")
    return layers


def _overlay(recipe: Mount, images: Sequence[Mount]) -> Layers:
    lower: list[Mount] = []
    upper: Mount | None = None
    work: Mount | None = None
    for option in recipe.options:
        name, _, value = option.partition("=")
        if name == "lowerdir":
            for part in value.split(":"):
                lower += _expand(part, images)
        elif name == "upperdir":
            upper = _directory(option, value, "/upper", images)
        elif name == "workdir":
            work = _directory(option, value, "/work", images)
        elif not option.startswith(_MKDIR) and option not in _HARMLESS:
            raise InvalidArgument(f"rootfs: the overlay option {option} is not supported")
    if not lower or work is not upper:
        raise InvalidArgument("rootfs: an overlay without lowerdir, or with half an upper layer")
    if upper is not None and upper.type != "ext4":
        raise InvalidArgument(f"rootfs: the upper layer {upper.source} is {upper.type}, not ext4")
    return Layers(tuple(lower), upper)


def _directory(option: str, value: str, suffix: str, images: Sequence[Mount]) -> Mount:
    """The image whose directory `suffix` is meant; the agent uses no others."""
    if not value.endswith(suffix) or not _TEMPLATE.fullmatch(value.removesuffix(suffix)):
        raise InvalidArgument(
            f"rootfs: {option}: the upper layer must be an image",
            hint="set `default_size` in the configuration of the erofs snapshotter",
        )
    (image,) = _expand(value.removesuffix(suffix), images)
    return image


def _expand(text: str, images: Sequence[Mount]) -> list[Mount]:
    found = _TEMPLATE.fullmatch(text)
    if found is None:
        raise InvalidArgument(f"rootfs: {text!r} names no image")
    single, first, last = (int(n) if n is not None else -1 for n in found.groups())
    if single >= 0:
        first = last = single
    step = 1 if first <= last else -1
    numbers = range(first, last + step, step)
    if max(first, last) >= len(images):
        raise InvalidArgument(f"rootfs: {text!r}: there are {len(images)} images")
    return [images[number] for number in numbers]
