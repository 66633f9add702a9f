"""Protobuf wire format for the messages of the shim, the agent and containerd.

Not a protobuf runtime: no reflection, no text or JSON format, no extensions. Host and guest share
this file, so it imports nothing (google.protobuf costs 13 ms and 2 MiB in a guest). Messages are
classes generated from hypercore/proto/*.proto by scripts/protogen.py; each lists its fields and
inherits `encode` and `decode`.

Format: https://protobuf.dev/programming-guides/encoding/
"""

STRING, BYTES, BOOL, UINT, INT, DOUBLE, MESSAGE = range(7)
"""Kinds of a field. UINT covers uint32, uint64 and enums; INT covers int32 and int64."""

SINGULAR, OPTIONAL, REPEATED, MAP = range(4)
"""Labels of a field. OPTIONAL (also members of a oneof, and messages) is None when absent."""

MAX_DEPTH = 32
_U64 = (1 << 64) - 1
_DEFAULTS = ("", b"", False, 0, 0, 0.0, None)
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_WIRE_TYPES = (_LENGTH, _LENGTH, _VARINT, _VARINT, _VARINT, _FIXED64, _LENGTH)


class DecodeError(ValueError):
    """The bytes are no valid message of this type."""


def encode_varint(out, value):
    """Append `value`, taken modulo 2**64, to the bytearray `out`."""
    value &= _U64
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def decode_varint(data, offset):
    """Return (value, next offset). Raises DecodeError when cut short or longer than 10 bytes."""
    value = shift = 0
    end = len(data)
    while offset < end:
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _U64, offset
        shift += 7
        if shift > 63:
            raise DecodeError("varint longer than 10 bytes")
    raise DecodeError("varint cut short")


class Field:
    """One field: number, attribute name, kind, label, and the class of a MESSAGE.

    A MAP has the kind of its values; its keys are strings.
    """

    __slots__ = ("key", "kind", "label", "message", "name", "number")

    def __init__(self, number, name, kind, label=SINGULAR, message=None):
        self.number = number
        self.name = name
        self.kind = kind
        self.label = label
        self.message = message
        wire = _LENGTH if label == MAP else _WIRE_TYPES[kind]
        key = bytearray()
        encode_varint(key, number << 3 | wire)
        self.key = bytes(key)

    def default(self):
        if self.label == REPEATED:
            return []
        if self.label == MAP:
            return {}
        if self.label == OPTIONAL:
            return None
        return _DEFAULTS[self.kind]


class Message:
    """Base of all generated messages. Attributes are the fields, unset ones proto3's defaults."""

    __slots__ = ()
    FIELDS = ()
    BY_NUMBER = {}  # noqa: RUF012 (replaced for each subclass)

    def __init__(self, **values):
        for field in self.FIELDS:
            name = field.name
            if name in values:
                setattr(self, name, values.pop(name))
            else:
                setattr(self, name, field.default())
        if values:
            raise TypeError(f"{type(self).__name__} has no field {next(iter(values))!r}")

    def __init_subclass__(cls):
        cls.BY_NUMBER = {field.number: field for field in cls.FIELDS}

    def __eq__(self, other):
        if type(self) is not type(other):
            return NotImplemented
        return all(getattr(self, f.name) == getattr(other, f.name) for f in self.FIELDS)

    __hash__ = None

    def __repr__(self):
        shown = ", ".join(
            f"{f.name}={getattr(self, f.name)!r}"
            for f in self.FIELDS
            if getattr(self, f.name) not in (None, "", b"", False, 0, [], {})
        )
        return f"{type(self).__name__}({shown})"

    def encode(self):
        """Return the message as bytes, fields in the order of their numbers."""
        out = bytearray()
        for field in self.FIELDS:
            value = getattr(self, field.name)
            label = field.label
            if label == SINGULAR:
                if value:
                    _put(out, field, value)
            elif label == OPTIONAL:
                if value is not None:
                    _put(out, field, value)
            elif label == REPEATED:
                for item in value:
                    _put(out, field, item)
            else:
                for key, item in value.items():
                    _put_entry(out, field, key, item)
        return bytes(out)

    @classmethod
    def decode(cls, data, depth=0):
        """Parse bytes-like `data`. Unknown fields are skipped. Raises DecodeError."""
        if depth > MAX_DEPTH:
            raise DecodeError(f"messages nested deeper than {MAX_DEPTH}")
        message = cls()
        data = memoryview(data)
        fields = cls.BY_NUMBER
        offset, end = 0, len(data)
        while offset < end:
            key, offset = decode_varint(data, offset)
            wire = key & 7
            field = fields.get(key >> 3)
            raw, offset = _raw(data, offset, wire)
            if field is not None:
                _take(message, field, wire, raw, depth)
        return message


def _raw(data, offset, wire):
    """Return (the field's value as it is on the wire, next offset)."""
    if wire == _VARINT:
        return decode_varint(data, offset)
    if wire == _LENGTH:
        size, offset = decode_varint(data, offset)
    elif wire == _FIXED64:
        size = 8
    elif wire == _FIXED32:
        size = 4
    else:
        raise DecodeError(f"wire type {wire}")
    end = offset + size
    if end > len(data):
        raise DecodeError("a field is cut short")
    return data[offset:end], end


def _put(out, field, value):
    out += field.key
    kind = field.kind
    if kind in (STRING, MESSAGE):
        value = value.encode()
    elif kind == DOUBLE:
        out += _pack_double(value)
        return
    elif kind != BYTES:
        encode_varint(out, int(value))
        return
    encode_varint(out, len(value))
    out += value


def _put_entry(out, field, key, value):
    entry = bytearray()
    _put(entry, _MAP_KEY, key)
    _put(entry, Field(2, field.name, field.kind, SINGULAR, field.message), value)
    out += field.key
    encode_varint(out, len(entry))
    out += entry


def _take(message, field, wire, raw, depth):
    label = field.label
    if label == MAP:
        if wire != _LENGTH:
            raise DecodeError(f"{field.name}: wire type {wire}")
        key, value = _take_entry(field, raw, depth)
        getattr(message, field.name)[key] = value
    elif label == REPEATED:
        items = getattr(message, field.name)
        if wire == _LENGTH and _WIRE_TYPES[field.kind] == _VARINT:
            offset = 0
            while offset < len(raw):
                item, offset = decode_varint(raw, offset)
                items.append(_value(field, _VARINT, item, depth))
        else:
            items.append(_value(field, wire, raw, depth))
    else:
        setattr(message, field.name, _value(field, wire, raw, depth))


def _take_entry(field, raw, depth):
    key, value = "", None
    offset = 0
    while offset < len(raw):
        tag, offset = decode_varint(raw, offset)
        item, offset = _raw(raw, offset, tag & 7)
        if tag >> 3 == 1:
            key = _value(_MAP_KEY, tag & 7, item, depth)
        elif tag >> 3 == 2:
            value = _value(field, tag & 7, item, depth)
    if value is None:
        value = field.message() if field.kind == MESSAGE else _DEFAULTS[field.kind]
    return key, value


def _value(field, wire, raw, depth):
    kind = field.kind
    if wire != _WIRE_TYPES[kind]:
        raise DecodeError(f"{field.name}: wire type {wire}")
    if kind == UINT:
        return raw
    if kind == INT:
        return raw - (1 << 64) if raw >> 63 else raw
    if kind == BOOL:
        return raw != 0
    if kind == BYTES:
        return bytes(raw)
    if kind == STRING:
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as exc:
            raise DecodeError(f"{field.name}: no valid UTF-8") from exc
    if kind == DOUBLE:
        return _unpack_double(raw)
    return field.message.decode(raw, depth + 1)


def _pack_double(value):
    import struct

    return struct.pack("<d", value)


def _unpack_double(raw):
    import struct

    return struct.unpack("<d", raw)[0]


_MAP_KEY = Field(1, "key", STRING)
