"""Framing: cuts anywhere, limits, and bytes that are no messages."""

import random

import pytest

from hypercore.wire import _frame

REQUEST = _frame.encode_request(
    7, 0, b"a.Service", b"Method", b"payload", 5_000_000_000, ((b"key", b"value"),)
)
HEADER = 10


def feed_in_pieces(parser, data, sizes):
    frames, offset = [], 0
    while offset < len(data):
        size = next(sizes)
        frames += parser.feed(data[offset : offset + size])
        offset += size
    return frames


def test_request_round_trip():
    body = REQUEST[HEADER:]
    route, payload, timeout_ns, metadata = _frame.decode_request(body)
    assert route == b"a.Service/Method"
    assert payload == b"payload"
    assert timeout_ns == 5_000_000_000
    assert metadata == ((b"key", b"value"),)


def test_known_bytes():
    """As containerd's Go client sends them (facts of the wire, not of this encoder)."""
    frame = _frame.encode_request(1, 0, b"s", b"M", b"\x08\x01")
    assert frame.hex() == "0000000a" + "00000001" + "01" + "00" + "0a0173" + "12014d" + "1a020801"
    assert _frame.encode_response(1, b"").hex() == "00000000" + "00000001" + "0200"
    assert (
        _frame.encode_error(3, 5, "no").hex()
        == "00000008" + "00000003" + "0200" + "0a06080512026e6f"
    )


@pytest.mark.parametrize("size", [1, 2, 9, 10, 11, 64, 1000])
def test_cut_anywhere(size):
    stream = REQUEST + _frame.encode_response(9, b"x" * 300) + _frame.encode_frame(11, 3, 5, b"")
    frames = feed_in_pieces(_frame.Parser(), stream, iter(lambda: size, None))
    assert [(f[0], f[1], f[2]) for f in frames] == [(7, 1, 0), (9, 2, 0), (11, 3, 5)]
    assert frames[0][3] == REQUEST[HEADER:]


def test_longest_message_passes():
    frame = _frame.encode_frame(1, 3, 0, b"x" * _frame.MAX_LENGTH)
    frames = feed_in_pieces(_frame.Parser(), frame, iter(lambda: 65536, None))
    assert len(frames[0][3]) == _frame.MAX_LENGTH


def test_too_long_to_send():
    with pytest.raises(ValueError, match="longer than 4194304"):
        _frame.encode_frame(1, 3, 0, b"x" * (_frame.MAX_LENGTH + 1))


@pytest.mark.parametrize("size", [1, 7, 100, 4096])
def test_oversize_frame_is_dropped_and_reported(size):
    parser = _frame.Parser(max_length=1000)
    header = (1001).to_bytes(4, "big") + (5).to_bytes(4, "big") + b"\x01\x00"
    frames = feed_in_pieces(parser, header + b"x" * 1001 + REQUEST, iter(lambda: size, None))
    assert frames == [(5, 1, 0, None), (7, 1, 0, REQUEST[HEADER:])]


def test_negative_timeout_and_unknown_fields():
    body = b"\x20" + b"\xff" * 9 + b"\x01" + b"\x0d\1\2\3\4" + b"\x11" + b"\0" * 8 + b"\x78\x05"
    assert _frame.decode_request(body) == (b"/", b"", -1, ())


@pytest.mark.parametrize(
    "body",
    [
        b"\x0a",  # length missing
        b"\x0a\x05abc",  # cut short
        b"\x0a" + b"\xff" * 9 + b"\x01",  # length of 2**64 - 1
        b"\xff" * 11,  # varint too long
        b"\x0b",  # group
        b"\x0d\1\2",  # fixed32 cut short
        b"\x11\1\2",  # fixed64 cut short
        b"\x2a\x02\x0a\x09",  # metadata pair cut short
    ],
)
def test_malformed_request(body):
    with pytest.raises(ValueError, match="malformed"):
        _frame.decode_request(body)


def test_malformed_response():
    with pytest.raises(ValueError, match="malformed status"):
        _frame.decode_response(b"\x0a\x01\xff")
    assert _frame.decode_response(b"") == (0, "", b"")


def test_random_bytes_only_raise_value_error():
    generator = random.Random(7)
    for _ in range(20000):
        body = generator.randbytes(generator.randrange(40))
        for decode in (_frame.decode_request, _frame.decode_response):
            try:
                decode(body)
            except ValueError:
                continue


def test_random_streams_keep_memory_bounded():
    generator = random.Random(8)
    parser = _frame.Parser(max_length=64)
    for _ in range(2000):
        for frame in parser.feed(generator.randbytes(generator.randrange(1, 200))):
            assert frame[3] is None or len(frame[3]) <= 64
