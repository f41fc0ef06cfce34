"""A trace adds up, stays small whatever happened, and survives being written down."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.dht.peer_id import PeerId
from meshnode.errors import FormatError
from meshnode.node.transfer.trace import MAX_NOTES, MAX_PEERS, Note, PeerPart, Phase, Trace
from meshnode.node.transfer.trace_format import MAX_TRACE_BYTES, decode_trace, encode_trace
from meshnode.node.transfer.tracing import Tracer


def peer_id(number: int) -> PeerId:
    return PeerId.from_ed25519(random.Random(number).randbytes(32))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def tracer(clock: Clock) -> Tracer:
    return Tracer("put", "file", clock=clock, wall=lambda: 1e9)


def full_trace() -> Trace:
    return Trace(
        kind="get",
        name="caf\udce9",
        root=b"r" * 32,
        began=1e9,
        seconds=12.5,
        outcome="failed",
        size=1 << 40,
        phases=(Phase("reading", 1.0, 0.5, 3),),
        peers=(PeerPart(peer_id(1), 9, 8, 7.0, 6.0, 5, 4, 3, 2, 1, 0.5, "broke", "gone"),),
        notes=(Note(1.5, "it froze", peer_id(1)), Note(2.0, "nobody left")),
        lost_notes=7,
        counts={"chunks": 12},
        error="It failed.",
        hint="Try again.",
        more_roots=(b"s" * 32,),
    )


def test_phases_that_overlap_share_the_time_and_each_knows_how_long_it_went_on() -> None:
    clock = Clock()
    trace = tracer(clock)
    with trace.phase("reading"):
        clock.now += 1
        with trace.phase("peers"), trace.phase("peers"):
            clock.now += 4
    clock.now += 5
    found = trace.finish("stored")
    assert found.seconds == 10
    assert found.phase("reading") == Phase("reading", 5, 3, 1)
    assert found.phase("peers") == Phase("peers", 4, 2, 2)
    assert found.phase("sealing").times == 0


def test_a_phase_under_way_counts_when_the_trace_is_taken() -> None:
    clock = Clock()
    trace = tracer(clock)
    with trace.asking(peer_id(1)), trace.asking(peer_id(1)):
        clock.now += 3
        found = trace.finish("interrupted")
    assert found.phase("peers").busy == 3
    assert (found.peers[0].busy, found.peers[0].requests) == (3, 2)


def test_of_many_notes_the_first_and_the_last_are_kept_and_the_others_counted() -> None:
    trace = tracer(Clock())
    for number in range(1000):
        trace.note(str(number))
    found = trace.finish("stored")
    assert len(found.notes) == MAX_NOTES
    assert (found.notes[0].text, found.notes[-1].text) == ("0", "999")
    assert found.lost_notes == 1000 - MAX_NOTES


def test_of_many_peers_the_busiest_and_the_failing_are_kept() -> None:
    trace = tracer(Clock())
    for number in range(200):
        trace.peer(peer_id(number)).nbytes = number
    trace.peer(peer_id(0)).failures = 3
    found = {part.peer for part in trace.finish("stored").peers}
    assert len(found) == MAX_PEERS
    assert {peer_id(199), peer_id(0)} <= found


def test_what_is_written_is_read_again() -> None:
    assert decode_trace(encode_trace(full_trace())) == full_trace()


def test_the_longest_trace_fits() -> None:
    trace = tracer(Clock())
    trace.name = "n" * 5000
    for number in range(500):
        tally = trace.peer(peer_id(number))
        tally.last_error = tally.gave_up = "\N{GRINNING FACE}" * 500
        trace.note("\N{GRINNING FACE}" * 500, peer_id(number))
        with trace.phase(f"{number} {'x' * 100}"):
            pass
        trace.counts[f"{number} {'x' * 100}"] = 1 << 60
    data = encode_trace(trace.finish("x" * 100, error="\N{GRINNING FACE}" * 5000))
    assert len(data) <= MAX_TRACE_BYTES
    assert decode_trace(data).kind == "put"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_bytes_that_are_no_trace_are_refused_politely(data: st.DataObject) -> None:
    good = bytearray(encode_trace(full_trace()))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(good[: data.draw(st.integers(0, len(good)))])
    for damaged in (bytes(good), cut):
        with contextlib.suppress(FormatError):
            decode_trace(damaged)


@pytest.mark.parametrize("data", [b"", b"\xc0", b"\x9f" * 100, b"\x00" * (MAX_TRACE_BYTES + 1)])
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_trace(data)
