"""Inputs for the fuzzer: messages of our own types with chance in every field, then damaged.

A wholly random string ends at the first check of a parser; damage to a valid one gets further.
"""

import importlib
import pkgutil
import random

from hypercore import proto
from hypercore.wire import codec

TEXTS = ("", "a", "task-1", "../x", "é\U0001f600", "x" * 300, "\0")
NUMBERS = (0, 1, 2, 127, 128, 255, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)
DEEPEST = 4


def message_types() -> list[type[codec.Message]]:
    """Every generated message, with fields or without, in the order of their names."""
    found: dict[str, type[codec.Message]] = {}
    for module in pkgutil.iter_modules(proto.__path__):
        if module.name.endswith("_pb"):
            content = vars(importlib.import_module(f"hypercore.proto.{module.name}"))
            for name, value in content.items():
                if isinstance(value, type) and issubclass(value, codec.Message):
                    found[f"{module.name}.{name}"] = value
    return [found[name] for name in sorted(found) if found[name] is not codec.Message]


def message(rng: random.Random, of: type[codec.Message], depth: int = 0) -> codec.Message:
    """One whose fields are drawn by chance."""
    made = of()
    for field in of.FIELDS:
        if rng.random() < 0.4:
            continue
        if field.label == codec.REPEATED:
            many = [_value(rng, field, depth) for _ in range(rng.randrange(4))]
            setattr(made, field.name, [value for value in many if value is not None])
        elif field.label == codec.MAP:
            pairs = {rng.choice(TEXTS): _value(rng, field, depth) for _ in range(rng.randrange(3))}
            setattr(made, field.name, {k: v for k, v in pairs.items() if v is not None})
        elif (value := _value(rng, field, depth)) is not None:
            setattr(made, field.name, value)
    return made


def _value(rng: random.Random, field: codec.Field, depth: int) -> object:
    match field.kind:
        case codec.STRING:
            return rng.choice(TEXTS)
        case codec.BYTES:
            return rng.randbytes(rng.randrange(20))
        case codec.BOOL:
            return rng.random() < 0.5
        case codec.DOUBLE:
            return rng.choice((0.0, -1.5, float("inf")))
        case codec.MESSAGE:
            return message(rng, field.message, depth + 1) if depth < DEEPEST else None
        case codec.INT:
            return rng.choice(NUMBERS) - (1 << 63)
        case _:
            return rng.choice(NUMBERS)


def damage(rng: random.Random, data: bytes) -> bytes:
    """`data` with none to four faults."""
    out = bytearray(data)
    for _ in range(rng.randrange(5)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                del out[at : at + rng.randrange(1, 9)]
            case 2:
                out[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                out[at:at] = varint(rng.choice(NUMBERS))
            case 4:
                begin = rng.randrange(len(out) + 1)
                out[at:at] = out[begin : begin + 32]
            case _:
                del out[at:]
    return bytes(out)


def varint(value: int) -> bytes:
    out = bytearray()
    codec.encode_varint(out, value)
    return bytes(out)


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    """`data` as a socket may deliver it."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(6)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
