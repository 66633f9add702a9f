"""The registry of providers, by the name a user gives. Loading one imports only that one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hypercore.errors import HypercoreError, InvalidArgument, Unavailable

if TYPE_CHECKING:
    from hypercore.config import HostConfig
    from hypercore.providers.base import Probe, Provider

_CLASSES = {
    "firecracker": "hypercore.providers.firecracker:FirecrackerProvider",
    "cloud-hypervisor": "hypercore.providers.cloud_hypervisor:CloudHypervisorProvider",
    "qemu": "hypercore.providers.qemu:QemuProvider",
}
"""In the order in which they are tried when the user names none."""

NAMES = tuple(_CLASSES)


def load(name: str) -> Provider:
    """The provider called `name`.

    Raises:
        InvalidArgument: there is none of that name.
    """
    if name not in _CLASSES:
        raise InvalidArgument(f"unknown provider {name!r}", hint="known ones: " + ", ".join(NAMES))
    module, _, cls = _CLASSES[name].partition(":")
    provider: Provider = getattr(importlib.import_module(module), cls)()
    return provider


def choose(config: HostConfig, name: str = "") -> tuple[Provider, Probe]:
    """The provider called `name`, or the first whose probe passes. Blocks as Provider.probe.

    Raises:
        Unavailable: the named one, or every one, does not run here.
    """
    if name:
        provider = load(name)
        return provider, provider.probe(config)
    problems: list[HypercoreError] = []
    for candidate in NAMES:
        provider = load(candidate)
        try:
            return provider, provider.probe(config)
        except Unavailable as exc:
            problems.append(exc)
    raise Unavailable(
        "no provider runs guests here: "
        + "; ".join(f"{n}: {p}" for n, p in zip(NAMES, problems, strict=True)),
        hint=problems[-1].hint,
    )
