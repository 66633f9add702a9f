from typing import final

REQUEST: int
RESPONSE: int
DATA: int
REMOTE_CLOSED: int
REMOTE_OPEN: int
NO_DATA: int
MAX_LENGTH: int

@final
class Parser:
    max_length: int
    def __init__(self, max_length: int = ...) -> None: ...
    def feed(self, data: bytes) -> list[tuple[int, int, int, bytes | None]]: ...

def decode_request(body: bytes) -> tuple[bytes, bytes, int, tuple[tuple[bytes, bytes], ...]]: ...
def decode_response(body: bytes) -> tuple[int, str, bytes]: ...
def encode_frame(stream_id: int, type: int, flags: int, body: bytes) -> bytes: ...
def encode_response(stream_id: int, payload: bytes) -> bytes: ...
def encode_error(stream_id: int, code: int, message: str) -> bytes: ...
def encode_request(
    stream_id: int,
    flags: int,
    service: bytes,
    method: bytes,
    payload: bytes,
    timeout_ns: int = ...,
    metadata: tuple[tuple[bytes, bytes], ...] = ...,
) -> bytes: ...
