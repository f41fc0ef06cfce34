"""Yamux peers that ask too much or break a rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from meshnode.errors import PeerError
from meshnode.node.transport.yamux import YamuxCore
from meshnode.node.transport.yamux_events import StreamOpened
from meshnode.node.transport.yamux_frames import YamuxError
from meshnode.node.transport.yamux_limits import YamuxLimits

from tests.unit.transport.yamux_by_hand import (
    DATA,
    FIN,
    INITIAL,
    PING,
    RST,
    SMALL,
    SYN,
    WINDOW,
    accepted,
    data,
    frame,
    outgoing,
    parsed,
    server,
)


def test_a_full_backlog_refuses_and_serves_again_once_it_is_emptied() -> None:
    core = server()
    for stream_id in (1, 3, 5, 7):
        core.receive(frame(WINDOW, SYN, stream_id, 0))
    assert parsed(outgoing(core)) == [(WINDOW, RST, 7, 0)]
    assert core.refused == 1
    while core.accept() is not None:
        pass
    (event,) = core.receive(data(9, b"hello", flags=SYN))[:1]
    assert isinstance(event, StreamOpened)
    core.accept()
    assert core.receive(frame(WINDOW, SYN, 11, 0)) == [], "more than max_inbound live"


def test_refusing_what_was_just_accepted_counts_towards_a_flood() -> None:
    core = server()
    for number in range(SMALL.max_refused):
        core.receive(frame(WINDOW, SYN, 1 + 2 * number, 0))
        stream = core.accept()
        assert stream is not None
        core.refuse(stream)
        outgoing(core)
    core.receive(frame(WINDOW, SYN, 99, 0))
    stream = core.accept()
    assert stream is not None
    with pytest.raises(YamuxError, match="refused"):
        core.refuse(stream)


def test_streams_reset_before_anybody_saw_them_count_towards_a_flood() -> None:
    core = server()
    pairs = [frame(WINDOW, SYN, n, 0) + frame(WINDOW, RST, n, 0) for n in (1, 3, 5, 7, 9, 11)]
    for pair in pairs[:-1]:
        core.receive(pair)
        assert core.accept() is None
    with pytest.raises(YamuxError) as caught:
        core.receive(pairs[-1])
    assert caught.value.reason == "stream_flood"


def test_a_stream_reset_before_it_was_accepted_still_hands_over_what_came() -> None:
    core = server()
    core.receive(data(1, b"came before", flags=SYN) + frame(WINDOW, RST, 1, 0))
    stream = core.accept()
    assert stream is not None
    assert not core.has_outgoing, "the peer wants to hear no more of it"
    assert stream.read(100) == b"came before"
    for _ in range(2):
        with pytest.raises(PeerError, match="reset by the peer"):
            stream.read(100)
    with pytest.raises(PeerError, match="reset by the peer"):
        stream.begin_write(b"answer")
    assert (core.streams, core.buffered) == (0, 0)


def test_streams_reset_unseen_count_towards_a_flood_though_they_bring_bytes_and_are_accepted() -> (
    None
):
    core = server()
    for number in range(SMALL.max_refused):
        core.receive(data(1 + 2 * number, b"x", flags=SYN) + frame(WINDOW, RST, 1 + 2 * number, 0))
        stream = core.accept()
        assert stream is not None
        core.refuse(stream)
        assert core.refused == number + 1, "once, not twice"
    with pytest.raises(YamuxError) as caught:
        core.receive(data(99, b"x", flags=SYN) + frame(WINDOW, RST, 99, 0))
    assert caught.value.reason == "stream_flood"


def test_streams_reset_unseen_hold_no_more_than_the_backlog_may() -> None:
    core = server(YamuxLimits(accept_backlog=3, max_refused=1000))
    for number in range(100):
        stream_id = 1 + 2 * number
        core.receive(data(stream_id, bytes(INITIAL), flags=SYN) + frame(WINDOW, RST, stream_id, 0))
        outgoing(core)
    assert core.buffered == 3 * INITIAL


def test_a_stream_accepted_ends_the_row_of_streams_reset_unseen() -> None:
    core = server()
    for stream_id in range(1, 60, 2):
        core.receive(frame(WINDOW, SYN, stream_id, 0))
        if stream_id % 3 == 0:
            assert core.accept() is not None
        core.receive(frame(WINDOW, RST, stream_id, 0))
        core.accept()


def test_a_stranger_gets_no_wide_window_until_it_is_trusted() -> None:
    core = server(YamuxLimits())
    core.credit.stranger = True
    assert accepted(core).window == INITIAL
    core.credit.stranger = False
    assert accepted(core, 3).window == 8 << 20


def test_a_stranger_can_make_us_hold_no_more_than_the_bound_over_all_streams() -> None:
    core = server(YamuxLimits())
    core.credit.stranger = True
    streams = [accepted(core, stream_id) for stream_id in (1, 3, 5, 7, 9)]
    for stream in streams[:4]:
        core.receive(data(stream.id, bytes(INITIAL)))
    core.receive(frame(WINDOW, RST, 1, 0))
    assert core.buffered == 1 << 20, "what came before a reset is still held"
    assert streams[1].read(1000)
    core.receive(data(9, bytes(1000)))
    with pytest.raises(YamuxError) as caught:
        core.receive(data(9, b"x"))
    assert caught.value.reason == "stranger_flood"


def test_bytes_read_or_dropped_are_no_longer_held() -> None:
    core = server(YamuxLimits())
    core.credit.stranger = True
    for stream_id in range(1, 301, 6):
        one, other = accepted(core, stream_id), accepted(core, stream_id + 2)
        core.receive(data(one.id, bytes(INITIAL)) + data(other.id, bytes(INITIAL)))
        one.read(INITIAL)
        one.reset()
        other.reset()
        outgoing(core)
        unseen = stream_id + 4
        core.receive(data(unseen, bytes(INITIAL), flags=SYN) + frame(WINDOW, RST, unseen, 0))
        seen = core.accept()
        assert seen is not None
        seen.reset()
    assert core.buffered == 0


def flood(core: YamuxCore) -> None:
    for stream_id in range(1, 100, 2):
        core.receive(frame(WINDOW, SYN, stream_id, 0))


def pings(core: YamuxCore) -> None:
    for number in range(100):
        core.receive(frame(PING, SYN, 0, number) * 3)


def sends(*frames: bytes) -> Callable[[YamuxCore], None]:
    def attack(core: YamuxCore) -> None:
        core.receive(b"".join(frames))

    return attack


HOSTILE = {
    "bad_version": sends(b"\x01" + bytes(11)),
    "bad_type": sends(frame(4, 0, 1, 0)),
    "bad_flags": sends(frame(WINDOW, 16, 1, 0)),
    "bad_stream_id": sends(frame(DATA, SYN, 0, 0)),
    "bad_parity": sends(frame(WINDOW, SYN, 2, 0)),
    "id_reused": sends(frame(WINDOW, SYN, 1, 0), frame(WINDOW, SYN, 1, 0)),
    "unknown_stream": sends(data(3, b"x")),
    "window_overrun": sends(frame(WINDOW, SYN, 1, 0), frame(DATA, 0, 1, 0xFFFF_FFFF)),
    "window_overflow": sends(frame(WINDOW, SYN, 1, 0xFFFF_FFFF)),
    "data_after_close": sends(frame(WINDOW, SYN | FIN, 1, 0), data(1, b"x")),
    "stream_flood": flood,
    "control_flood": pings,
}


@pytest.mark.parametrize("reason", HOSTILE)
def test_a_broken_rule_ends_the_connection_for_a_reason_that_can_be_counted(reason: str) -> None:
    with pytest.raises(YamuxError) as caught:
        HOSTILE[reason](server())
    assert caught.value.reason == reason


def test_bytes_on_a_stream_that_was_reset_are_dropped_only_up_to_its_credit() -> None:
    core = server()
    accepted(core).reset()
    core.receive(data(1, bytes(INITIAL)))
    with pytest.raises(YamuxError) as caught:
        core.receive(data(1, b"x"))
    assert caught.value.reason == "data_after_close"


def test_refused_streams_cost_no_memory_worth_mention() -> None:
    core = server(YamuxLimits(max_inbound=1, max_refused=100_000, max_control=100_000))
    for stream_id in range(1, 40_000, 2):
        core.receive(frame(WINDOW, SYN, stream_id, 0))
        outgoing(core)
    assert core.streams == 1
    assert len(core._over) <= 4096
