# Generated from reflection.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.wire.codec import Message

class ExtensionRequest(Message):
    containing_type: str
    extension_number: int
    def __init__(
        self,
        *,
        containing_type: str = ...,
        extension_number: int = ...,
    ) -> None: ...

class ServerReflectionRequest(Message):
    host: str
    file_by_filename: str | None
    file_containing_symbol: str | None
    file_containing_extension: ExtensionRequest | None
    all_extension_numbers_of_type: str | None
    list_services: str | None
    def __init__(
        self,
        *,
        host: str = ...,
        file_by_filename: str | None = ...,
        file_containing_symbol: str | None = ...,
        file_containing_extension: ExtensionRequest | None = ...,
        all_extension_numbers_of_type: str | None = ...,
        list_services: str | None = ...,
    ) -> None: ...

class ErrorResponse(Message):
    error_code: int
    error_message: str
    def __init__(
        self,
        *,
        error_code: int = ...,
        error_message: str = ...,
    ) -> None: ...

class ExtensionNumberResponse(Message):
    base_type_name: str
    extension_number: list[int]
    def __init__(
        self,
        *,
        base_type_name: str = ...,
        extension_number: list[int] = ...,
    ) -> None: ...

class FileDescriptorResponse(Message):
    file_descriptor_proto: list[bytes]
    def __init__(
        self,
        *,
        file_descriptor_proto: list[bytes] = ...,
    ) -> None: ...

class ServiceResponse(Message):
    name: str
    def __init__(
        self,
        *,
        name: str = ...,
    ) -> None: ...

class ListServiceResponse(Message):
    service: list[ServiceResponse]
    def __init__(
        self,
        *,
        service: list[ServiceResponse] = ...,
    ) -> None: ...

class ServerReflectionResponse(Message):
    valid_host: str
    original_request: ServerReflectionRequest | None
    file_descriptor_response: FileDescriptorResponse | None
    all_extension_numbers_response: ExtensionNumberResponse | None
    list_services_response: ListServiceResponse | None
    error_response: ErrorResponse | None
    def __init__(
        self,
        *,
        valid_host: str = ...,
        original_request: ServerReflectionRequest | None = ...,
        file_descriptor_response: FileDescriptorResponse | None = ...,
        all_extension_numbers_response: ExtensionNumberResponse | None = ...,
        list_services_response: ListServiceResponse | None = ...,
        error_response: ErrorResponse | None = ...,
    ) -> None: ...

class ServerReflection:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
