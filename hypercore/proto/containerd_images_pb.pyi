# Generated from containerd_images.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import containerd_types_pb, types_pb
from hypercore.wire.codec import Message

class Image(Message):
    name: str
    labels: dict[str, str]
    target: containerd_types_pb.Descriptor | None
    created_at: types_pb.Timestamp | None
    updated_at: types_pb.Timestamp | None
    def __init__(
        self,
        *,
        name: str = ...,
        labels: dict[str, str] = ...,
        target: containerd_types_pb.Descriptor | None = ...,
        created_at: types_pb.Timestamp | None = ...,
        updated_at: types_pb.Timestamp | None = ...,
    ) -> None: ...

class GetImageRequest(Message):
    name: str
    def __init__(
        self,
        *,
        name: str = ...,
    ) -> None: ...

class GetImageResponse(Message):
    image: Image | None
    def __init__(
        self,
        *,
        image: Image | None = ...,
    ) -> None: ...

class ListImagesRequest(Message):
    filters: list[str]
    def __init__(
        self,
        *,
        filters: list[str] = ...,
    ) -> None: ...

class ListImagesResponse(Message):
    images: list[Image]
    def __init__(
        self,
        *,
        images: list[Image] = ...,
    ) -> None: ...

class CreateImageRequest(Message):
    image: Image | None
    def __init__(
        self,
        *,
        image: Image | None = ...,
    ) -> None: ...

class CreateImageResponse(Message):
    image: Image | None
    def __init__(
        self,
        *,
        image: Image | None = ...,
    ) -> None: ...

class UpdateImageRequest(Message):
    image: Image | None
    update_mask: containerd_types_pb.FieldMask | None
    def __init__(
        self,
        *,
        image: Image | None = ...,
        update_mask: containerd_types_pb.FieldMask | None = ...,
    ) -> None: ...

class UpdateImageResponse(Message):
    image: Image | None
    def __init__(
        self,
        *,
        image: Image | None = ...,
    ) -> None: ...

class DeleteImageRequest(Message):
    name: str
    sync: bool
    def __init__(
        self,
        *,
        name: str = ...,
        sync: bool = ...,
    ) -> None: ...

class Images:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
