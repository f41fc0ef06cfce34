"""Messages of the peers protocol: round trips, bounds, hostile bytes."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.dht.gossip_wire import (
    HASH_BYTES,
    MAX_BITS,
    MAX_PEERS_FRAME,
    MAX_RECORDS,
    MAX_ROWS,
    MAX_SUSPECTS,
    MAX_WANTED,
    Answer,
    Compare,
    Listing,
    News,
    Noted,
    Request,
    Row,
    Swap,
    Swapped,
    Told,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from meshnode.dht.peer_id import PeerId
from meshnode.dht.peer_record import MAX_RECORD_BYTES
from meshnode.dht.records_wire import Refused
from meshnode.errors import FormatError

names = st.binary(min_size=HASH_BYTES, max_size=HASH_BYTES)
told = st.lists(st.builds(Told, st.binary(max_size=60), st.integers(0, 2**32 - 1)), max_size=6).map(
    tuple
)
peers = st.lists(st.binary(min_size=32, max_size=32).map(PeerId.from_ed25519), max_size=4).map(
    tuple
)
compares = st.integers(0, 4).flatmap(
    lambda bits: st.builds(
        Compare,
        st.just(bits),
        st.binary(min_size=HASH_BYTES << bits, max_size=HASH_BYTES << bits),
    )
)
requests = st.one_of(
    compares,
    st.builds(Swap, st.lists(names, max_size=5).map(tuple), told),
    st.builds(News, told, peers),
)
rows = st.builds(Row, names, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
answers = st.one_of(
    st.builds(Listing, st.frozensets(st.integers(0, 1023), max_size=9), st.lists(rows).map(tuple)),
    st.builds(Swapped, told),
    st.just(Noted()),
)


@settings(deadline=None, max_examples=150)
@given(requests)
def test_requests_come_back_as_they_were(request: Request) -> None:
    assert decode_request(encode_request(request)) == request


@settings(deadline=None, max_examples=150)
@given(answers)
def test_answers_come_back_as_they_were_and_only_to_their_question(answer: Answer) -> None:
    encoded = encode_answer(answer)
    for kind in (Listing, Swapped, Noted):
        if isinstance(answer, kind):
            assert decode_answer(encoded, kind) == answer
        else:
            with pytest.raises(FormatError):
                decode_answer(encoded, kind)


def test_a_refusal_answers_every_question() -> None:
    for refusal in (Refused("large"), Refused("busy", 1.5)):
        assert decode_answer(encode_answer(refusal), Noted) == refusal
    worded = decode_answer(msgpack.packb([0, "a\x00b" + "x" * 200]), Noted)
    assert isinstance(worded, Refused)
    assert worded.reason == "ab" + "x" * 97


RECORD = bytes(MAX_RECORD_BYTES)
PEER = bytes(PeerId.from_ed25519(bytes(32)))


@pytest.mark.parametrize(
    "message",
    [
        [1, MAX_BITS + 1, bytes(HASH_BYTES << (MAX_BITS + 1))],
        [1, -1, b""],
        [1, 1, bytes(HASH_BYTES)],
        [1, 0, bytes(HASH_BYTES), 0],
        [2, bytes(HASH_BYTES - 1), [], b""],
        [2, bytes(HASH_BYTES * (MAX_WANTED + 1)), [], b""],
        [2, b"", [b"r"], b""],
        [2, b"", [], bytes(4)],
        [2, b"", [RECORD + b"x"], bytes(4)],
        [2, b"", ["r"], bytes(4)],
        [2, b"", [b"r"] * (MAX_RECORDS + 1), bytes(4 * (MAX_RECORDS + 1))],
        [3, [], b"", [PEER] * (MAX_SUSPECTS + 1)],
        [3, [], b"", ["peer"]],
        [3, [], b"", [b"peer"]],
        [4],
        [],
        7,
    ],
)
def test_requests_out_of_bounds_are_refused(message: Any) -> None:
    with pytest.raises(FormatError):
        decode_request(msgpack.packb(message))


@pytest.mark.parametrize(
    "message",
    [
        [1, b"x", b""],
        [1, bytes(2 * ((1 << MAX_BITS) + 1)), b""],
        [1, b"", bytes(19)],
        [1, b"", bytes(20 * (MAX_ROWS + 1))],
        [2, [b"r"], bytes(3)],
        [0, b"reason"],
        [0, "busy", -1],
        [3, 3],
    ],
)
def test_answers_out_of_bounds_are_refused(message: Any) -> None:
    for kind in (Listing, Swapped, Noted):
        with pytest.raises(FormatError):
            decode_answer(msgpack.packb(message), kind)


def test_the_largest_messages_fit_a_frame() -> None:
    full = tuple(Told(RECORD, 1) for _ in range(MAX_RECORDS))
    wanted = tuple(bytes(HASH_BYTES) for _ in range(MAX_WANTED))
    listing = Listing(frozenset(range(1 << MAX_BITS)), (Row(bytes(8), 1, 1),) * MAX_ROWS)
    for encoded in (encode_request(Swap(wanted, full)), encode_answer(listing)):
        assert len(encoded) <= MAX_PEERS_FRAME
    with pytest.raises(FormatError):
        decode_request(encode_request(Swap(wanted, full)) + bytes(MAX_PEERS_FRAME))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=80))
def test_bytes_from_anywhere_raise_nothing_but_format_errors(data: bytes) -> None:
    for decode in (decode_request, lambda d: decode_answer(d, Listing)):
        try:
            decode(data)
        except FormatError:
            continue
