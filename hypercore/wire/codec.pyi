# Types of codec.py, which carries none itself: a guest should not load annotations.
from typing import ClassVar, Final, Literal, Self

from typing_extensions import Buffer

STRING: Final = 0
BYTES: Final = 1
BOOL: Final = 2
UINT: Final = 3
INT: Final = 4
DOUBLE: Final = 5
MESSAGE: Final = 6

SINGULAR: Final = 0
OPTIONAL: Final = 1
REPEATED: Final = 2
MAP: Final = 3

MAX_DEPTH: int

_Kind = Literal[0, 1, 2, 3, 4, 5, 6]
_Label = Literal[0, 1, 2, 3]

class DecodeError(ValueError): ...

def encode_varint(out: bytearray, value: int) -> None: ...
def decode_varint(data: bytes | bytearray | memoryview, offset: int) -> tuple[int, int]: ...

class Field:
    key: bytes
    kind: _Kind
    label: _Label
    message: type[Message] | None
    name: str
    number: int
    def __init__(
        self,
        number: int,
        name: str,
        kind: _Kind,
        label: _Label = 0,
        message: type[Message] | None = None,
    ) -> None: ...
    def default(self) -> object: ...

class Message:
    FIELDS: ClassVar[tuple[Field, ...]]
    BY_NUMBER: ClassVar[dict[int, Field]]
    def __init__(self, **values: object) -> None: ...
    def __init_subclass__(cls) -> None: ...
    def __eq__(self, other: object) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]
    def encode(self) -> bytes: ...
    @classmethod
    def decode(cls, data: Buffer, depth: int = 0) -> Self: ...
