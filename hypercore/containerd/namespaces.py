"""containerd's namespaces: their names."""

from hypercore.containerd.client import Client
from hypercore.proto.containerd_namespaces_pb import (
    ListNamespacesRequest,
    ListNamespacesResponse,
    Namespaces,
)


async def list_names(client: Client) -> list[str]:
    reply = await client.unary(Namespaces, "List", ListNamespacesRequest(), ListNamespacesResponse)
    return [namespace.name for namespace in reply.namespaces]
