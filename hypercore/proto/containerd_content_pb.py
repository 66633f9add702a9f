"""Generated from containerd_content.proto by scripts/protogen.py; do not edit."""

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


class WriteAction:
    STAT = 0
    WRITE = 1
    COMMIT = 2


class Info(Message):
    __slots__ = (
        "digest",
        "size",
        "created_at",
        "updated_at",
        "labels",
    )
    FIELDS = (
        Field(1, "digest", STRING),
        Field(2, "size", INT),
        Field(3, "created_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
        Field(4, "updated_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
        Field(5, "labels", STRING, MAP),
    )


class InfoRequest(Message):
    __slots__ = (
        "digest",
    )
    FIELDS = (
        Field(1, "digest", STRING),
    )


class InfoResponse(Message):
    __slots__ = (
        "info",
    )
    FIELDS = (
        Field(1, "info", MESSAGE, OPTIONAL, Info),
    )


class UpdateRequest(Message):
    __slots__ = (
        "info",
        "update_mask",
    )
    FIELDS = (
        Field(1, "info", MESSAGE, OPTIONAL, Info),
        Field(2, "update_mask", MESSAGE, OPTIONAL, containerd_types_pb.FieldMask),
    )


class UpdateResponse(Message):
    __slots__ = (
        "info",
    )
    FIELDS = (
        Field(1, "info", MESSAGE, OPTIONAL, Info),
    )


class ListContentRequest(Message):
    __slots__ = (
        "filters",
    )
    FIELDS = (
        Field(1, "filters", STRING, REPEATED),
    )


class ListContentResponse(Message):
    __slots__ = (
        "info",
    )
    FIELDS = (
        Field(1, "info", MESSAGE, REPEATED, Info),
    )


class DeleteContentRequest(Message):
    __slots__ = (
        "digest",
    )
    FIELDS = (
        Field(1, "digest", STRING),
    )


class ReadContentRequest(Message):
    __slots__ = (
        "digest",
        "offset",
        "size",
    )
    FIELDS = (
        Field(1, "digest", STRING),
        Field(2, "offset", INT),
        Field(3, "size", INT),
    )


class ReadContentResponse(Message):
    __slots__ = (
        "offset",
        "data",
    )
    FIELDS = (
        Field(1, "offset", INT),
        Field(2, "data", BYTES),
    )


class Status(Message):
    __slots__ = (
        "started_at",
        "updated_at",
        "ref",
        "offset",
        "total",
        "expected",
    )
    FIELDS = (
        Field(1, "started_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
        Field(2, "updated_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
        Field(3, "ref", STRING),
        Field(4, "offset", INT),
        Field(5, "total", INT),
        Field(6, "expected", STRING),
    )


class ListStatusesRequest(Message):
    __slots__ = (
        "filters",
    )
    FIELDS = (
        Field(1, "filters", STRING, REPEATED),
    )


class ListStatusesResponse(Message):
    __slots__ = (
        "statuses",
    )
    FIELDS = (
        Field(1, "statuses", MESSAGE, REPEATED, Status),
    )


class WriteContentRequest(Message):
    __slots__ = (
        "action",
        "ref",
        "total",
        "expected",
        "offset",
        "data",
        "labels",
    )
    FIELDS = (
        Field(1, "action", UINT),
        Field(2, "ref", STRING),
        Field(3, "total", INT),
        Field(4, "expected", STRING),
        Field(5, "offset", INT),
        Field(6, "data", BYTES),
        Field(7, "labels", STRING, MAP),
    )


class WriteContentResponse(Message):
    __slots__ = (
        "action",
        "started_at",
        "updated_at",
        "offset",
        "total",
        "digest",
    )
    FIELDS = (
        Field(1, "action", UINT),
        Field(2, "started_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
        Field(3, "updated_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
        Field(4, "offset", INT),
        Field(5, "total", INT),
        Field(6, "digest", STRING),
    )


class AbortRequest(Message):
    __slots__ = (
        "ref",
    )
    FIELDS = (
        Field(1, "ref", STRING),
    )


class Content:
    NAME = "containerd.services.content.v1.Content"
    METHODS = {
        "Info": (InfoRequest, InfoResponse),
        "Update": (UpdateRequest, UpdateResponse),
        "List": (ListContentRequest, ListContentResponse),
        "Delete": (DeleteContentRequest, types_pb.Empty),
        "Read": (ReadContentRequest, ReadContentResponse),
        "ListStatuses": (ListStatusesRequest, ListStatusesResponse),
        "Write": (WriteContentRequest, WriteContentResponse),
        "Abort": (AbortRequest, types_pb.Empty),
    }
