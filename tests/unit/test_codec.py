"""The codec against google.protobuf: the same bytes both ways, and refusal of broken ones."""

import random

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message as PeerMessage
from grpc_tools import protoc

from hypercore.wire.codec import (
    BOOL,
    BYTES,
    DOUBLE,
    INT,
    MAP,
    MAX_DEPTH,
    MESSAGE,
    OPTIONAL,
    REPEATED,
    STRING,
    UINT,
    DecodeError,
    Field,
    Message,
    decode_varint,
    encode_varint,
)

PROTO = """
syntax = "proto3";
package t;
message Leaf { string name = 1; int64 value = 2; }
message All {
  string text = 1;
  bytes data = 2;
  bool flag = 3;
  uint64 count = 4;
  int64 delta = 5;
  double ratio = 6;
  Leaf leaf = 7;
  repeated string words = 8;
  repeated uint32 numbers = 9;
  repeated Leaf leaves = 10;
  map<string, string> labels = 11;
  map<string, Leaf> named = 12;
  optional int32 maybe = 13;
  oneof choice { string left = 14; uint32 right = 15; }
  uint64 far = 300;
}
"""


class Leaf(Message):
    __slots__ = ("name", "value")
    FIELDS = (Field(1, "name", STRING), Field(2, "value", INT))


class All(Message):
    __slots__ = (
        "choice", "count", "data", "delta", "far", "flag", "labels", "leaf", "leaves", "left",
        "maybe", "named", "numbers", "ratio", "right", "text", "words",
    )  # fmt: skip
    FIELDS = (
        Field(1, "text", STRING),
        Field(2, "data", BYTES),
        Field(3, "flag", BOOL),
        Field(4, "count", UINT),
        Field(5, "delta", INT),
        Field(6, "ratio", DOUBLE),
        Field(7, "leaf", MESSAGE, OPTIONAL, Leaf),
        Field(8, "words", STRING, REPEATED),
        Field(9, "numbers", UINT, REPEATED),
        Field(10, "leaves", MESSAGE, REPEATED, Leaf),
        Field(11, "labels", STRING, MAP),
        Field(12, "named", MESSAGE, MAP, Leaf),
        Field(13, "maybe", INT, OPTIONAL),
        Field(14, "left", STRING, OPTIONAL),
        Field(15, "right", UINT, OPTIONAL),
        Field(300, "far", UINT),
    )


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> type[PeerMessage]:
    """google.protobuf's class for All."""
    directory = tmp_path_factory.mktemp("proto")
    (directory / "t.proto").write_text(PROTO)
    out = directory / "t.bin"
    assert protoc.main(["protoc", f"-I{directory}", f"--descriptor_set_out={out}", "t.proto"]) == 0
    files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(files.file[0])
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.All"))


def random_text(rng: random.Random) -> str:
    return "".join(rng.choice("aß€\U0001f600\0z") for _ in range(rng.randrange(6)))


def random_leaf(rng: random.Random) -> dict[str, object]:
    return {"name": random_text(rng), "value": rng.choice((0, -1, -(2**63), 2**63 - 1, 150))}


def random_values(rng: random.Random) -> dict[str, object]:
    """Field values for All, as plain Python objects; a message is a dict."""
    values: dict[str, object] = {
        "text": random_text(rng),
        "data": rng.randbytes(rng.randrange(300)),
        "flag": rng.random() < 0.5,
        "count": rng.choice((0, 1, 127, 128, 2**32, 2**64 - 1)),
        "delta": rng.choice((0, -1, 2**63 - 1, -(2**63))),
        "ratio": rng.choice((0.0, -1.5, 1e300)),
        "words": [random_text(rng) for _ in range(rng.randrange(4))],
        "numbers": [rng.randrange(2**32) for _ in range(rng.randrange(4))],
        "leaves": [random_leaf(rng) for _ in range(rng.randrange(3))],
        "labels": {random_text(rng): random_text(rng) for _ in range(rng.randrange(3))},
        "named": {str(n): random_leaf(rng) for n in range(rng.randrange(3))},
        "far": rng.randrange(2**64),
    }
    if rng.random() < 0.5:
        values["leaf"] = random_leaf(rng)
    if rng.random() < 0.5:
        values["maybe"] = rng.choice((0, -5))
    if rng.random() < 0.7:
        values.update(rng.choice(({"left": ""}, {"left": "x"}, {"right": 0}, {"right": 7})))
    return values


def ours(values: dict[str, object]) -> All:
    def build(value: object) -> object:
        return Leaf(**value) if isinstance(value, dict) else value

    converted = dict(values)
    if "leaf" in values:
        converted["leaf"] = build(values["leaf"])
    converted["leaves"] = [build(item) for item in values["leaves"]]
    converted["named"] = {key: build(item) for key, item in values["named"].items()}
    return All(**converted)


@pytest.mark.parametrize("seed", range(40))
def test_same_messages_as_google_protobuf(peer: type[PeerMessage], seed: int) -> None:
    values = random_values(random.Random(seed))
    message, peer_message = ours(values), peer(**values)
    assert peer.FromString(message.encode()) == peer_message
    assert All.decode(peer_message.SerializeToString()) == message


def test_field_order_and_defaults_give_the_same_bytes(peer: type[PeerMessage]) -> None:
    assert All().encode() == peer().SerializeToString() == b""
    values = {"text": "a", "count": 300, "delta": -2, "leaf": {"name": "n"}, "far": 9}
    assert All(text="a", count=300, delta=-2, leaf=Leaf(name="n"), far=9).encode() == peer(
        **values
    ).SerializeToString(deterministic=True)


def test_unset_fields_have_their_own_containers() -> None:
    first, second = All(), All()
    first.words.append("x")
    first.labels["k"] = "v"
    assert second.words == []
    assert second.labels == {}
    assert second.leaf is None
    assert second.maybe is None


def test_unknown_fields_of_every_wire_type_are_skipped() -> None:
    unknown = bytearray()
    for number, wire, body in (
        (90, 0, b"\xff\x01"),
        (91, 1, b"8 bytes!"),
        (92, 2, b"\x03abc"),
        (93, 5, b"four"),
    ):
        encode_varint(unknown, number << 3 | wire)
        unknown += body
    leaf = Leaf.decode(bytes(unknown) + Leaf(name="n", value=-3).encode() + bytes(unknown))
    assert leaf == Leaf(name="n", value=-3)


def test_unpacked_and_packed_numbers_are_both_read() -> None:
    assert All.decode(b"\x48\x01\x48\x02\x4a\x02\x03\x04").numbers == [1, 2, 3, 4]


def test_last_value_of_a_singular_field_wins() -> None:
    assert Leaf.decode(Leaf(name="a").encode() + Leaf(name="b").encode()).name == "b"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x0a", "cut short"),
        (b"\x0a\x05abc", "cut short"),
        (b"\x10", "cut short"),
        (b"\x10" + b"\xff" * 10 + b"\x01", "longer than 10 bytes"),
        (b"\x0a\x02\xff\xfe", "UTF-8"),
        (b"\x08\x01", "wire type"),
        (b"\x12\x01a", "wire type"),
        (b"\x0b", "wire type 3"),
        (b"\x0f", "wire type 7"),
        (b"\x09abc", "cut short"),
        (b"\xa5\x06abc", "cut short"),
    ],
)
def test_broken_leaf_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(DecodeError, match=what):
        Leaf.decode(data)


@pytest.mark.parametrize(
    "entry", [b"\x0a\x05a", b"\x0b", b"\x0a\x01k\x12\x02\xff\xfe", b"\x0a\x01k\x10\x01"]
)
def test_broken_map_entry_is_refused(entry: bytes) -> None:
    with pytest.raises(DecodeError):
        All.decode(b"\x5a" + bytes([len(entry)]) + entry)


def test_map_entry_without_key_or_value_has_defaults() -> None:
    assert All.decode(b"\x5a\x00").labels == {"": ""}
    assert All.decode(b"\x62\x03\x0a\x01k").named == {"k": Leaf()}


def test_nesting_is_bounded() -> None:
    class Nest(Message):
        __slots__ = ("inner",)
        FIELDS = ()

    Nest.FIELDS = (Field(1, "inner", MESSAGE, OPTIONAL, Nest),)
    Nest.BY_NUMBER = {1: Nest.FIELDS[0]}
    message = Nest()
    for _ in range(MAX_DEPTH):
        message = Nest(inner=message)
    assert Nest.decode(message.encode()) == message
    with pytest.raises(DecodeError, match="nested deeper"):
        Nest.decode(Nest(inner=message).encode())


@pytest.mark.parametrize("seed", range(30))
def test_noise_raises_nothing_but_decode_error(seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(ours(random_values(rng)).encode())
    for _ in range(200):
        broken = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            if broken:
                broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            All.decode(bytes(broken[: rng.randrange(len(broken) + 1)]))
        except DecodeError:
            continue


def test_varint_is_taken_modulo_two_to_the_64() -> None:
    out = bytearray()
    encode_varint(out, -1)
    assert bytes(out) == b"\xff" * 9 + b"\x01"
    assert decode_varint(out, 0) == (2**64 - 1, 10)


def test_wrong_attribute_names_are_refused() -> None:
    with pytest.raises(TypeError, match="Leaf has no field 'nmae'"):
        Leaf(nmae="x")


def test_repr_shows_what_is_set() -> None:
    assert repr(Leaf(name="x")) == "Leaf(name='x')"
    assert Leaf() != All()


def test_a_map_of_doubles_comes_back() -> None:
    class Times(Message):
        __slots__ = ("ms",)
        FIELDS = (Field(1, "ms", DOUBLE, MAP),)

    sent = Times(ms={"boot": 1.5, "": -2.0})
    assert Times.decode(sent.encode()) == sent
