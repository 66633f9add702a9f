# Generated from containerd_namespaces.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import types_pb
from hypercore.wire.codec import Message

class Namespace(Message):
    name: str
    labels: dict[str, str]
    def __init__(
        self,
        *,
        name: str = ...,
        labels: dict[str, str] = ...,
    ) -> None: ...

class ListNamespacesRequest(Message):
    filter: str
    def __init__(
        self,
        *,
        filter: str = ...,
    ) -> None: ...

class ListNamespacesResponse(Message):
    namespaces: list[Namespace]
    def __init__(
        self,
        *,
        namespaces: list[Namespace] = ...,
    ) -> None: ...

class CreateNamespaceRequest(Message):
    namespace: Namespace | None
    def __init__(
        self,
        *,
        namespace: Namespace | None = ...,
    ) -> None: ...

class CreateNamespaceResponse(Message):
    namespace: Namespace | None
    def __init__(
        self,
        *,
        namespace: Namespace | None = ...,
    ) -> None: ...

class DeleteNamespaceRequest(Message):
    name: str
    def __init__(
        self,
        *,
        name: str = ...,
    ) -> None: ...

class Namespaces:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
