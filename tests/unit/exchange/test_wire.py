"""Frames of the chunk protocol: exact bytes, exact inverse, and nothing else accepted."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.errors import FormatError
from meshnode.node.exchange.lanes import LANES, Lane
from meshnode.node.exchange.messages import (
    INLINE_PUT_BYTES,
    MAX_BELIEVED,
    MAX_COUNT,
    MAX_HAVE,
    MAX_LEASE_SECS,
    MAX_REQUEST_ID,
    MAX_RETRY_AFTER_MS,
    AskInfo,
    Body,
    Cancel,
    Data,
    Get,
    Have,
    Held,
    Info,
    PeerInfo,
    Proceed,
    Put,
    Reason,
    Refused,
    Release,
    Released,
    Reserved,
    Stored,
    body_length,
)
from meshnode.node.exchange.wire import (
    MAX_HEADER_BYTES,
    OP_AUDIT,
    PREFIX_BYTES,
    decode_answer,
    decode_request,
    encode,
    header_rest,
)
from meshnode.node.store.protocol import MAX_CHUNK_BYTES

ids = st.integers(1, MAX_REQUEST_ID)
digests = st.binary(min_size=32, max_size=32)
sizes = st.integers(0, MAX_CHUNK_BYTES)
times = st.integers(0, MAX_COUNT)
believable = st.integers(0, MAX_BELIEVED)
names = st.text(max_size=60)
lanes = st.sampled_from(LANES)


@st.composite
def puts(draw: st.DrawFn) -> Put:
    inline = draw(st.booleans())
    length = draw(st.integers(0, INLINE_PUT_BYTES if inline else MAX_COUNT))
    lease = draw(st.integers(1, MAX_LEASE_SECS))
    return Put(draw(ids), draw(digests), length, lease, inline, draw(lanes))


requests = st.one_of(
    st.builds(Have, ids, st.lists(digests, min_size=1, max_size=40).map(tuple), lanes),
    st.builds(Get, ids, digests, sizes, st.none() | sizes, lanes),
    puts(),
    st.builds(Body, ids, sizes),
    st.builds(Cancel, ids),
    st.builds(AskInfo, ids, lanes),
    st.builds(Release, ids, st.lists(digests, min_size=1, max_size=40).map(tuple), lanes),
    st.builds(Reserved, ids, st.just(OP_AUDIT)),
)
answers = st.one_of(
    st.builds(Held, ids, st.lists(st.booleans(), min_size=1, max_size=100).map(tuple)),
    st.tuples(ids, sizes, sizes).map(lambda it: Data(it[0], max(it[1:]), min(it[1:]))),
    st.builds(Proceed, ids),
    st.builds(Released, ids, st.integers(0, MAX_HAVE)),
    st.tuples(ids, times, times, st.binary(min_size=64, max_size=64)).map(
        lambda it: Stored(it[0], min(it[1:3]), max(it[1:3]), it[3])
    ),
    st.builds(
        Info, ids, st.builds(PeerInfo, names, names, believable, st.text(max_size=16), believable)
    ),
    st.builds(
        Refused,
        ids,
        st.sampled_from([*map(str, Reason), "of_the_future"]),
        st.none() | st.integers(0, MAX_RETRY_AFTER_MS),
        st.text(max_size=100),
    ),
)


def _header(frame: bytes, *, request: bool) -> bytes:
    """What a reader makes of a whole frame, prefix first."""
    rest = header_rest(frame[:PREFIX_BYTES], request=request)
    assert len(frame) == PREFIX_BYTES + rest
    return frame[4:]


@given(requests)
@settings(deadline=None)
def test_a_request_comes_back_as_it_was_sent(message):
    assert decode_request(_header(encode(message), request=True)) == message


@given(answers)
@settings(deadline=None)
def test_an_answer_comes_back_as_it_was_sent(message):
    assert decode_answer(_header(encode(message), request=False)) == message


def test_the_largest_have_and_its_answer_are_within_their_bounds():
    have = Have(MAX_REQUEST_ID, tuple(n.to_bytes(32, "big") for n in range(MAX_HAVE)))
    assert decode_request(_header(encode(have), request=True)) == have
    assert len(encode(have)) < MAX_HEADER_BYTES
    held = Held(MAX_REQUEST_ID, tuple(n % 3 == 0 for n in range(MAX_HAVE)))
    assert decode_answer(_header(encode(held), request=False)) == held


GOLDEN = {
    Have(1, (b"\xaa" * 32,)): "00000025 93 01 01 c420" + "aa" * 32,
    Get(2, b"\xaa" * 32, 0, None): "00000027 95 02 02 c420" + "aa" * 32 + "00 c0",
    Get(3, b"\xaa" * 32, 5, 1024): "00000029 95 02 03 c420" + "aa" * 32 + "05 cd0400",
    Put(4, b"\xaa" * 32, 9, 60, True): "00000028 96 03 04 c420" + "aa" * 32 + "09 3c c3",
    Body(4, 300_000): "00000008 93 04 04 ce000493e0",
    Get(3, b"\xaa" * 32, 0, None, Lane.REPAIR): "00000028 96 02 03 c420" + "aa" * 32 + "00 c0 01",
    AskInfo(9, Lane.BACKGROUND): "00000004 93 06 09 02",
    Cancel(5): "00000003 92 05 05",
    AskInfo(6): "00000003 92 06 06",
    Release(6, (b"\xaa" * 32,)): "00000025 93 08 06 c420" + "aa" * 32,
    Released(6, 1): "00000004 93 46 06 01",
    Held(1, (True, False, True)): "00000007 94 40 01 03 c401 05",
    Data(2, 9, 4): "00000005 94 41 02 09 04",
    Proceed(4): "00000003 92 42 04",
    Stored(4, 1, 2, b"\xbb" * 64): "00000047 95 43 04 01 02 c440" + "bb" * 64,
    Info(6, PeerInfo("n", "z", 1, "v", 2)): "0000000b 97 44 06 a16e a17a 01 a176 02",
    Refused(7, "busy", 250, ""): "0000000b 95 45 07 a462757379 ccfa a0",
}


@pytest.mark.parametrize("message", GOLDEN, ids=lambda message: type(message).__name__)
def test_the_bytes_are_those_of_the_specification(message):
    assert encode(message).hex() == GOLDEN[message].replace(" ", "")


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=300)
def test_arbitrary_bytes_are_a_message_or_a_format_error(data):
    for decode in (decode_request, decode_answer):
        try:
            message = decode(data)
        except FormatError:
            continue
        assert isinstance(message, Reserved) or encode(message)[4:] == data


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=70)
    | st.sampled_from([b"\xaa" * 32, b"\xbb" * 64, "busy", 1, True]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([*range(1, 9), *range(0x40, 0x47)]), st.lists(_values, max_size=6))
@settings(deadline=None, max_examples=300)
def test_arbitrary_fields_are_a_message_or_a_format_error(op, fields):
    data = msgpack.packb([op, *fields])
    for decode in (decode_request, decode_answer):
        try:
            message = decode(data)
        except FormatError:
            continue
        assert isinstance(message, Reserved) or encode(message)[4:] == data


@given(requests, st.data())
@settings(deadline=None)
def test_no_cut_or_lengthened_header_is_accepted(message, data):
    header = encode(message)[4:]
    cut = data.draw(st.integers(0, len(header) - 1))
    for wrong in (header[:cut], header + b"\x00"):
        with pytest.raises(FormatError):
            decode_request(wrong)


REFUSED = {
    "an id of zero": [5, 0],
    "an id too large": [5, MAX_REQUEST_ID + 1],
    "a boolean id": [5, True],
    "an op of the other side": [0x42, 1],
    "no digests": [1, 1, b""],
    "part of a digest": [1, 1, bytes(33)],
    "too many digests": [1, 1, bytes(32 * (MAX_HAVE + 1))],
    "a short digest": [2, 1, bytes(31), 0, None],
    "a negative offset": [2, 1, bytes(32), -1, None],
    "an offset beyond any chunk": [2, 1, bytes(32), MAX_CHUNK_BYTES + 1, None],
    "a boolean length": [2, 1, bytes(32), 0, True],
    "a lease of no time": [3, 1, bytes(32), 10, 0, True],
    "a number for a flag": [3, 1, bytes(32), 10, 60, 1],
    "an inline body above its bound": [3, 1, bytes(32), INLINE_PUT_BYTES + 1, 60, True],
    "a body larger than any chunk": [4, 1, MAX_CHUNK_BYTES + 1],
    "one field too many": [5, 1, 1],
    "one field too few": [2, 1, bytes(32), 0],
    "text for bytes": [2, 1, "a" * 32, 0, None],
    "a map": {1: 2},
}


@pytest.mark.parametrize("array", REFUSED.values(), ids=REFUSED.keys())
def test_a_request_outside_its_bounds_is_refused(array):
    with pytest.raises(FormatError):
        decode_request(msgpack.packb(array))


REFUSED_ANSWERS = {
    "bits beyond the flags": [0x40, 1, 3, b"\x08"],
    "a bitmap of a wrong size": [0x40, 1, 9, b"\x01"],
    "no flags": [0x40, 1, 0, b""],
    "more bytes than the chunk has": [0x41, 1, 10, 11],
    "a chunk larger than any": [0x41, 1, MAX_CHUNK_BYTES + 1, 0],
    "a lease that ends before it began": [0x43, 1, 2, 1, bytes(64)],
    "a short signature": [0x43, 1, 1, 2, bytes(63)],
    "a long name": [0x44, 1, "n" * 256, "", 0, "", 0],
    "a name that is long in bytes only": [0x44, 1, "\N{SNOWMAN}" * 86, "", 0, "", 0],
    "a reason with capitals": [0x45, 1, "Busy", None, ""],
    "an empty reason": [0x45, 1, "", None, ""],
    "a retry-after beyond an hour": [0x45, 1, "busy", MAX_RETRY_AFTER_MS + 1, ""],
    "more releases than a request has": [0x46, 1, MAX_HAVE + 1],
    "a request": [6, 1],
}


@pytest.mark.parametrize("array", REFUSED_ANSWERS.values(), ids=REFUSED_ANSWERS.keys())
def test_an_answer_outside_its_bounds_is_refused(array):
    with pytest.raises(FormatError):
        decode_answer(msgpack.packb(array))


@pytest.mark.parametrize(
    "header",
    [
        b"\x92\x05\xcc\x01",  # an integer in two bytes that fits in one
        b"\xdc\x00\x02\x05\x01",  # an array header of three bytes that fits in one
        b"\x92\x05\x01\x01",  # something behind it
        b"\x92\x05\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\x92\x05\xa1\xff",  # text that is not UTF-8
        b"\x91" * 4000,
        b"",
    ],
)
def test_what_is_not_canonical_is_refused(header):
    with pytest.raises(FormatError):
        decode_request(header)


def test_deep_nesting_in_a_reserved_operation_is_a_message_or_a_format_error():
    for depth in (10, 600, 60_000):
        data = bytes([0x93, OP_AUDIT, 1]) + b"\x91" * depth + b"\x00"
        try:
            assert decode_request(data) == Reserved(1, OP_AUDIT)
        except FormatError:
            assert depth > 10


@given(st.binary(min_size=PREFIX_BYTES, max_size=PREFIX_BYTES), st.booleans())
@settings(deadline=None, max_examples=300)
def test_a_prefix_never_promises_more_than_the_largest_header(prefix, request_side):
    try:
        rest = header_rest(prefix, request=request_side)
    except FormatError:
        return
    assert 1 <= rest <= MAX_HEADER_BYTES - 2


def test_only_a_have_or_a_release_may_have_a_large_header():
    for op in (*range(2, 8), *range(0x40, 0x47)):
        prefix = (128 * 1024).to_bytes(4, "big") + bytes([0x92, op])
        with pytest.raises(FormatError):
            header_rest(prefix, request=op < 0x40)
    prefix = (128 * 1024).to_bytes(4, "big") + bytes([0x93, 1])
    assert header_rest(prefix, request=True) == 128 * 1024 - 2


def test_the_body_that_follows_is_the_one_announced():
    assert body_length(Put(1, bytes(32), 5, 60, True)) == 5
    assert body_length(Put(1, bytes(32), 5, 60, False)) == 0
    assert body_length(Body(1, 6)) == 6
    assert body_length(Data(1, 10, 7)) == 7
    assert body_length(Cancel(1)) == 0


def test_a_boast_is_believed_up_to_a_petabyte_and_no_further():
    boast = Info(1, PeerInfo("n", "z", MAX_COUNT, "v", MAX_COUNT))
    believed = decode_answer(_header(encode(boast), request=False))
    assert believed == Info(1, PeerInfo("n", "z", MAX_BELIEVED, "v", MAX_BELIEVED))


def test_a_lane_of_a_later_version_is_served_last_and_the_first_lane_is_never_written():
    header = msgpack.packb([2, 1, bytes(32), 0, None, 9])
    assert decode_request(header) == Get(1, bytes(32), 0, None, Lane.BACKGROUND)
    for lane in (0, 128, -1, True, None):
        with pytest.raises(FormatError):
            decode_request(msgpack.packb([2, 1, bytes(32), 0, None, lane]))
    with pytest.raises(FormatError):
        decode_request(msgpack.packb([2, 1, bytes(32), 0, None, 1, 1]))
