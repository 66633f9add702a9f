"""Generated from reflection.proto by scripts/protogen.py; do not edit."""

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


class ExtensionRequest(Message):
    __slots__ = (
        "containing_type",
        "extension_number",
    )
    FIELDS = (
        Field(1, "containing_type", STRING),
        Field(2, "extension_number", INT),
    )


class ServerReflectionRequest(Message):
    __slots__ = (
        "host",
        "file_by_filename",
        "file_containing_symbol",
        "file_containing_extension",
        "all_extension_numbers_of_type",
        "list_services",
    )
    FIELDS = (
        Field(1, "host", STRING),
        Field(3, "file_by_filename", STRING, OPTIONAL),
        Field(4, "file_containing_symbol", STRING, OPTIONAL),
        Field(5, "file_containing_extension", MESSAGE, OPTIONAL, ExtensionRequest),
        Field(6, "all_extension_numbers_of_type", STRING, OPTIONAL),
        Field(7, "list_services", STRING, OPTIONAL),
    )


class ErrorResponse(Message):
    __slots__ = (
        "error_code",
        "error_message",
    )
    FIELDS = (
        Field(1, "error_code", INT),
        Field(2, "error_message", STRING),
    )


class ExtensionNumberResponse(Message):
    __slots__ = (
        "base_type_name",
        "extension_number",
    )
    FIELDS = (
        Field(1, "base_type_name", STRING),
        Field(2, "extension_number", INT, REPEATED),
    )


class FileDescriptorResponse(Message):
    __slots__ = (
        "file_descriptor_proto",
    )
    FIELDS = (
        Field(1, "file_descriptor_proto", BYTES, REPEATED),
    )


class ServiceResponse(Message):
    __slots__ = (
        "name",
    )
    FIELDS = (
        Field(1, "name", STRING),
    )


class ListServiceResponse(Message):
    __slots__ = (
        "service",
    )
    FIELDS = (
        Field(1, "service", MESSAGE, REPEATED, ServiceResponse),
    )


class ServerReflectionResponse(Message):
    __slots__ = (
        "valid_host",
        "original_request",
        "file_descriptor_response",
        "all_extension_numbers_response",
        "list_services_response",
        "error_response",
    )
    FIELDS = (
        Field(1, "valid_host", STRING),
        Field(2, "original_request", MESSAGE, OPTIONAL, ServerReflectionRequest),
        Field(4, "file_descriptor_response", MESSAGE, OPTIONAL, FileDescriptorResponse),
        Field(5, "all_extension_numbers_response", MESSAGE, OPTIONAL, ExtensionNumberResponse),
        Field(6, "list_services_response", MESSAGE, OPTIONAL, ListServiceResponse),
        Field(7, "error_response", MESSAGE, OPTIONAL, ErrorResponse),
    )


class ServerReflection:
    NAME = "grpc.reflection.v1.ServerReflection"
    METHODS = {
        "ServerReflectionInfo": (ServerReflectionRequest, ServerReflectionResponse),
    }
