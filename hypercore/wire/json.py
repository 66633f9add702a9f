"""Messages as JSON, strictly: unknown names and wrong types are errors that name the field.

Names are the message's; bytes are base64. An optional field that is absent is left out, all others
are written, so that readers need no defaults.
"""

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from hypercore.errors import InvalidArgument
from hypercore.tomlfile import nearest
from hypercore.wire import codec
from hypercore.wire.codec import Field, Message

M = TypeVar("M", bound=Message)
_KINDS = {
    codec.STRING: (str, "a string"),
    codec.BYTES: (str, "a string of base64"),
    codec.BOOL: (bool, "true or false"),
    codec.UINT: (int, "a whole number, 0 or more"),
    codec.INT: (int, "a whole number"),
    codec.DOUBLE: (float, "a number"),
}
MAX_UINT = (1 << 64) - 1


def dumps(message: Message) -> str:
    """`message` as JSON text. A message that has a `json_text` of its own is taken at its word."""
    ready: str = getattr(message, "json_text", "")
    if ready:
        return ready
    return "{" + ",".join(_members(message)) + "}"


def _members(message: Message) -> list[str]:
    members = []
    for field in message.FIELDS:
        value = getattr(message, field.name)
        if value is None:
            continue
        if field.label == codec.REPEATED:
            text = "[" + ",".join([_text(field, item) for item in value]) + "]"
        elif field.label == codec.MAP:
            pairs = (f"{json.dumps(key)}:{_text(field, item)}" for key, item in value.items())
            text = "{" + ",".join(pairs) + "}"
        else:
            text = _text(field, value)
        members.append(f'"{field.name}":{text}')
    return members


def _text(field: Field, value: Any) -> str:
    if field.kind == codec.MESSAGE:
        return dumps(value)
    if field.kind == codec.BYTES:
        return '"' + base64.b64encode(value).decode() + '"'
    return json.dumps(value)


def loads(cls: type[M], text: bytes | str) -> M:
    """The message that JSON `text` describes; the empty text is the empty object.

    Raises:
        InvalidArgument: no JSON object, an unknown name or a wrong type; it names the field.
    """
    if not text:
        return cls()
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgument(f"the body is no JSON: {exc}") from exc
    return from_object(cls, value)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def from_object(cls: type[M], value: object, where: str = "") -> M:
    """As `loads`, of a parsed value; `where` is its place in the whole."""
    if not isinstance(value, dict):
        raise _wrong(where, "must be an object")
    fields = {field.name: field for field in cls.FIELDS}
    message = cls()
    for name, item in value.items():
        place = f"{where}.{name}" if where else name
        if name not in fields:
            raise unknown(place, name, tuple(fields))
        field = fields[name]
        if item is None:
            raise _wrong(place, "must not be null; leave it out")
        setattr(message, name, _parsed(field, item, place))
    return message


def unknown(place: str, name: str, known: Sequence[str]) -> InvalidArgument:
    hint = nearest(name, tuple(known)) or "known here: " + (", ".join(known) or "none")
    return InvalidArgument(f"{place[:200]}: unknown field", hint=hint, field=place[:200])


def _wrong(place: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"{place or 'the body'}: {problem}", field=place)


def _parsed(field: Field, value: object, place: str) -> object:
    if field.label == codec.REPEATED:
        if not isinstance(value, list):
            raise _wrong(place, "must be a list")
        return [_scalar(field, item, f"{place}[{n}]") for n, item in enumerate(value)]
    if field.label == codec.MAP:
        if not isinstance(value, dict):
            raise _wrong(place, "must be an object")
        return {key: _scalar(field, item, f"{place}.{key}") for key, item in value.items()}
    return _scalar(field, value, place)


def _scalar(field: Field, value: object, place: str) -> object:
    if field.kind == codec.MESSAGE:
        assert field.message is not None
        return from_object(field.message, value, place)
    wanted, words = _KINDS[field.kind]
    if field.kind == codec.DOUBLE and isinstance(value, int) and not isinstance(value, bool):
        value = _finite(value)
    is_bool = isinstance(value, bool)
    if not isinstance(value, wanted) or is_bool != (field.kind == codec.BOOL):
        raise _wrong(place, f"must be {words}")
    if field.kind == codec.UINT and not 0 <= int(str(value)) <= MAX_UINT:
        raise _wrong(place, f"must be {words}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(place, f"must be {words}")
    if isinstance(value, str):
        return _bytes(value, place) if field.kind == codec.BYTES else _checked_text(value, place)
    return value


def _finite(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _bytes(text: str, place: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise _wrong(place, f"is no base64: {exc}") from exc


def _checked_text(text: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise _wrong(place, "is no valid Unicode") from exc
    return text


def from_query(cls: type[M], pairs: Sequence[tuple[str, str]]) -> M:
    """The message that the pairs of a URL's query describe; a list's name may come repeatedly."""
    fields = {field.name: field for field in cls.FIELDS}
    values: dict[str, object] = {}
    for name, text in pairs:
        if name not in fields:
            raise unknown(name, name, tuple(fields))
        field = fields[name]
        if field.kind == codec.MESSAGE or field.label == codec.MAP:
            raise _wrong(name, "does not fit into a query")
        value = _from_text(field, text, name)
        if field.label == codec.REPEATED:
            found = values.setdefault(name, [])
            assert isinstance(found, list)
            found.append(value)
        elif name in values:
            raise _wrong(name, "is given twice")
        else:
            values[name] = value
    return from_object(cls, values)


def _from_text(field: Field, text: str, place: str) -> object:
    words = _KINDS[field.kind][1]
    if field.kind == codec.BOOL:
        if text not in ("true", "false"):
            raise _wrong(place, f"must be {words}")
        return text == "true"
    try:
        if field.kind in (codec.UINT, codec.INT):
            if not (text.isascii() and text.removeprefix("-").isdecimal() and len(text) <= 20):
                raise ValueError
            return int(text)
        return float(text) if field.kind == codec.DOUBLE else text
    except ValueError:
        raise _wrong(place, f"must be {words}") from None


def to_query(message: Message, *, without: str = "") -> list[tuple[str, str]]:
    """The inverse of `from_query`; defaults are left out."""
    pairs: list[tuple[str, str]] = []
    for field in message.FIELDS:
        value = getattr(message, field.name)
        if field.name == without or value is None or value == field.default():
            continue
        items = value if field.label == codec.REPEATED else [value]
        pairs += [(field.name, _query_text(item)) for item in items]
    return pairs


def _query_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_plain(message: Message) -> Mapping[str, Any]:
    """The message's set fields as plain values, nested messages as mappings."""
    plain: dict[str, Any] = {}
    for field in message.FIELDS:
        value = getattr(message, field.name)
        if value is None or (field.label != codec.OPTIONAL and value == field.default()):
            continue
        plain[field.name] = as_plain(value) if isinstance(value, Message) else value
    return plain
