from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from meshnode.dht.handover_wire import (
    MAX_HINTED_PEERS,
    MAX_VALUES,
    HandoverAnswer,
    HandoverRequest,
    Hint,
    Hints,
    HintsTaken,
    Holding,
    MovedValue,
    MovedValues,
    StillHeld,
    ValuesKept,
    decode_handover_answer,
    decode_handover_request,
    encode_handover_answer,
    encode_handover_request,
)
from meshnode.dht.peer_id import PeerId
from meshnode.dht.records_wire import Refused, Verdict
from meshnode.dht.settings import MAX_KEYS_PER_MESSAGE, MAX_VALUE_BYTES
from meshnode.errors import FormatError

PEER = PeerId.from_ed25519(b"p" * 32)
digests = st.lists(st.binary(min_size=32, max_size=32), max_size=6).map(tuple)
peer_ids = st.binary(min_size=32, max_size=32).map(PeerId.from_ed25519)
texts = st.lists(st.just("/ip4/10.0.0.1/tcp/1"), max_size=3).map(tuple)
hints = st.lists(st.builds(Hint, peer_ids, texts, digests), max_size=4).map(tuple)
ttls = st.integers(1, 2**31 - 1)
values = st.builds(MovedValue, st.binary(max_size=60), ttls, st.binary(max_size=99))
requests: st.SearchStrategy[HandoverRequest] = st.one_of(
    st.builds(Hints, hints),
    st.builds(StillHeld, digests),
    st.builds(MovedValues, st.lists(values, max_size=4).map(tuple)),
)


@settings(max_examples=100, deadline=None)
@given(request=requests)
def test_every_request_survives_the_wire(request: HandoverRequest) -> None:
    assert decode_handover_request(encode_handover_request(request)) == request


ANSWERED: list[tuple[HandoverRequest, HandoverAnswer]] = [
    (Hints((Hint(PEER, (), (b"d" * 32,)),)), HintsTaken(1)),
    (StillHeld((b"d" * 32, b"e" * 32, b"f" * 32)), Holding("attic", (None, 0, 2**32 - 1))),
    (MovedValues((MovedValue(b"k", 1, b"v"),)), ValuesKept((Verdict.OUTDATED,))),
    (StillHeld(()), Refused("busy", 1.5)),
]


@pytest.mark.parametrize(("request_", "answer"), ANSWERED)
def test_every_answer_survives_the_wire(request_: HandoverRequest, answer: HandoverAnswer) -> None:
    assert decode_handover_answer(encode_handover_answer(answer), request_) == answer


@pytest.mark.parametrize("index", range(3))
def test_an_answer_to_another_question_is_no_answer(index: int) -> None:
    for other, (_, answer) in enumerate(ANSWERED[:3]):
        if other != index:
            with pytest.raises(FormatError):
                decode_handover_answer(encode_handover_answer(answer), ANSWERED[index][0])


def test_counts_beyond_the_question_are_refused() -> None:
    question, _ = ANSWERED[0]
    with pytest.raises(FormatError):
        decode_handover_answer(encode_handover_answer(HintsTaken(2)), question)
    with pytest.raises(FormatError):
        decode_handover_answer(encode_handover_answer(Holding("", (1,))), ANSWERED[1][0])
    held: bytes = msgpack.packb([2, "", b"\2\0\0", bytes(12)])
    with pytest.raises(FormatError):
        decode_handover_answer(held, ANSWERED[1][0])


def test_messages_beyond_the_bounds_are_refused() -> None:
    digest = b"d" * 32
    half = (digest,) * (MAX_KEYS_PER_MESSAGE // 2 + 1)
    too_many: list[HandoverRequest] = [
        Hints((Hint(PEER, (), half),) * 2),
        Hints((Hint(PEER, (), ()),) * (MAX_HINTED_PEERS + 1)),
        StillHeld((digest,) * (MAX_KEYS_PER_MESSAGE + 1)),
        MovedValues((MovedValue(b"k", 1, b""),) * (MAX_VALUES + 1)),
        MovedValues((MovedValue(b"k", 0, b""),)),
        MovedValues((MovedValue(b"k" * 129, 1, b""),)),
        MovedValues((MovedValue(b"k", 1, b"v" * (MAX_VALUE_BYTES + 1)),)),
    ]
    for request in too_many:
        with pytest.raises(FormatError):
            decode_handover_request(encode_handover_request(request))


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200))
@example(msgpack.packb([1, [[b"\0\1x", ["a" * 999], b""]]]))
@example(msgpack.packb([1, [b"not a hint"]]))
@example(msgpack.packb([3, [[b"", 2**40, b""]]]))
@example(b"\xdd\xff\xff\xff\xff")
def test_hostile_bytes_raise_format_errors_only(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        assert decode_handover_request(data) is not None
    for request, _ in ANSWERED:
        with contextlib.suppress(FormatError):
            assert decode_handover_answer(data, request) is not None
