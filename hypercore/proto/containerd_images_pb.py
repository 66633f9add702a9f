"""Generated from containerd_images.proto by scripts/protogen.py; do not edit."""

from hypercore.proto import containerd_types_pb, types_pb
from hypercore.wire.codec import (
    BOOL,
    BYTES,
    DOUBLE,
    INT,
    MAP,
    MESSAGE,
    OPTIONAL,
    REPEATED,
    SINGULAR,
    STRING,
    UINT,
    Field,
    Message,
)


class Image(Message):
    __slots__ = (
        "name",
        "labels",
        "target",
        "created_at",
        "updated_at",
    )
    FIELDS = (
        Field(1, "name", STRING),
        Field(2, "labels", STRING, MAP),
        Field(3, "target", MESSAGE, OPTIONAL, containerd_types_pb.Descriptor),
        Field(7, "created_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
        Field(8, "updated_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
    )


class GetImageRequest(Message):
    __slots__ = (
        "name",
    )
    FIELDS = (
        Field(1, "name", STRING),
    )


class GetImageResponse(Message):
    __slots__ = (
        "image",
    )
    FIELDS = (
        Field(1, "image", MESSAGE, OPTIONAL, Image),
    )


class ListImagesRequest(Message):
    __slots__ = (
        "filters",
    )
    FIELDS = (
        Field(1, "filters", STRING, REPEATED),
    )


class ListImagesResponse(Message):
    __slots__ = (
        "images",
    )
    FIELDS = (
        Field(1, "images", MESSAGE, REPEATED, Image),
    )


class CreateImageRequest(Message):
    __slots__ = (
        "image",
    )
    FIELDS = (
        Field(1, "image", MESSAGE, OPTIONAL, Image),
    )


class CreateImageResponse(Message):
    __slots__ = (
        "image",
    )
    FIELDS = (
        Field(1, "image", MESSAGE, OPTIONAL, Image),
    )


class UpdateImageRequest(Message):
    __slots__ = (
        "image",
        "update_mask",
    )
    FIELDS = (
        Field(1, "image", MESSAGE, OPTIONAL, Image),
        Field(2, "update_mask", MESSAGE, OPTIONAL, containerd_types_pb.FieldMask),
    )


class UpdateImageResponse(Message):
    __slots__ = (
        "image",
    )
    FIELDS = (
        Field(1, "image", MESSAGE, OPTIONAL, Image),
    )


class DeleteImageRequest(Message):
    __slots__ = (
        "name",
        "sync",
    )
    FIELDS = (
        Field(1, "name", STRING),
        Field(2, "sync", BOOL),
    )


class Images:
    NAME = "containerd.services.images.v1.Images"
    METHODS = {
        "Get": (GetImageRequest, GetImageResponse),
        "List": (ListImagesRequest, ListImagesResponse),
        "Create": (CreateImageRequest, CreateImageResponse),
        "Update": (UpdateImageRequest, UpdateImageResponse),
        "Delete": (DeleteImageRequest, types_pb.Empty),
    }
