"""Calls to containerd's store of containers: what to run, not what runs (that is tasks.py)."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any as AnyValue

from hypercore.containerd.client import Client
from hypercore.errors import NotFound
from hypercore.proto.containerd_containers_pb import (
    Container,
    Container_Runtime,
    Containers,
    CreateContainerRequest,
    CreateContainerResponse,
    DeleteContainerRequest,
    GetContainerRequest,
    GetContainerResponse,
    ListContainersRequest,
    ListContainersResponse,
    UpdateContainerRequest,
    UpdateContainerResponse,
)
from hypercore.proto.containerd_types_pb import FieldMask
from hypercore.proto.types_pb import Any, Empty

RUNTIME = "io.containerd.hypercore.v1"
SPEC_TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


async def create(
    client: Client,
    container_id: str,
    *,
    image: str,
    spec: Mapping[str, AnyValue],
    snapshotter: str,
    snapshot_key: str,
    labels: Mapping[str, str] | None = None,
    runtime: str = RUNTIME,
) -> Container:
    """Record a container; its snapshot is safe from the collector from then on.

    Args:
        spec: OCI config.json.
    """
    container = Container(
        id=container_id,
        labels=dict(labels or {}),
        image=image,
        runtime=Container_Runtime(name=runtime),
        spec=Any(type_url=SPEC_TYPE_URL, value=json.dumps(spec, separators=(",", ":")).encode()),
        snapshotter=snapshotter,
        snapshot_key=snapshot_key,
    )
    request = CreateContainerRequest(container=container)
    reply = await client.unary(Containers, "Create", request, CreateContainerResponse)
    return reply.container or container


async def get(client: Client, container_id: str) -> Container:
    """The container; NotFound if there is none."""
    request = GetContainerRequest(id=container_id)
    reply = await client.unary(Containers, "Get", request, GetContainerResponse)
    return reply.container or Container(id=container_id)


async def list_all(client: Client, *filters: str) -> list[Container]:
    """Containers that pass any of the filters (containerd's syntax); none given: all."""
    request = ListContainersRequest(filters=list(filters))
    return (await client.unary(Containers, "List", request, ListContainersResponse)).containers


async def set_labels(client: Client, container_id: str, labels: Mapping[str, str]) -> None:
    """Set these labels and leave the others; an empty value removes one."""
    request = UpdateContainerRequest(
        container=Container(id=container_id, labels=dict(labels)),
        update_mask=FieldMask(paths=_label_paths(labels)),
    )
    await client.unary(Containers, "Update", request, UpdateContainerResponse)


async def delete(client: Client, container_id: str) -> None:
    """Forget the container; idempotent. Its task must be gone, its snapshot stays."""
    with suppress(NotFound):
        await client.unary(Containers, "Delete", DeleteContainerRequest(id=container_id), Empty)


def spec_of(container: Container) -> dict[str, AnyValue]:
    """The container's OCI config.json."""
    document: dict[str, AnyValue] = json.loads(container.spec.value) if container.spec else {}
    return document


def _label_paths(labels: Mapping[str, str]) -> list[str]:
    return [f"labels.{key}" for key in labels]
