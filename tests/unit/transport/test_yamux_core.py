"""The rules of Yamux, kept and enforced, without a socket."""

from __future__ import annotations

import pytest
from meshnode.errors import PeerError
from meshnode.node.transport.yamux import YamuxCore
from meshnode.node.transport.yamux_events import Event, PeerGoesAway, Pong, StreamChanged
from meshnode.node.transport.yamux_frames import MAX_PAYLOAD, TURN_PAYLOAD, YamuxError
from meshnode.node.transport.yamux_limits import YamuxLimits

from tests.unit.transport.yamux_by_hand import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
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


def exchange(one: YamuxCore, other: YamuxCore) -> list[Event]:
    """Move everything both have to say; the events of both."""
    events: list[Event] = []
    while one.has_outgoing or other.has_outgoing:
        events += other.receive(outgoing(one))
        events += one.receive(outgoing(other))
    return events


def test_a_stream_carries_bytes_both_ways_and_ends_on_both_sides() -> None:
    client, serving = YamuxCore(True, YamuxLimits()), server(YamuxLimits())
    stream = client.open()
    stream.begin_write(b"question")
    stream.close()
    exchange(client, serving)
    other = serving.accept()
    assert other is not None
    assert (other.read(100), other.read(100)) == (b"question", b"")
    other.begin_write(b"answer")
    other.close()
    exchange(client, serving)
    assert (stream.read(3), stream.read(100), stream.read(100)) == (b"ans", b"wer", b"")
    assert stream.finished
    assert other.finished
    assert (client.streams, serving.streams) == (0, 0)


def test_the_larger_window_is_announced_with_the_first_frame_of_either_side() -> None:
    client, serving = YamuxCore(True, YamuxLimits()), server(YamuxLimits())
    stream = client.open()
    syn = outgoing(client)
    assert parsed(syn) == [(WINDOW, SYN, 1, (8 << 20) - INITIAL)]
    serving.receive(syn)
    other = serving.accept()
    assert other is not None
    assert other.send_window == 8 << 20
    ack = outgoing(serving)
    assert parsed(ack) == [(WINDOW, ACK, 1, (8 << 20) - INITIAL)]
    client.receive(ack)
    assert stream.send_window == 8 << 20


def test_ids_are_odd_for_the_side_that_dialled_and_even_for_the_other() -> None:
    client, serving = YamuxCore(True, SMALL), server()
    assert [client.open().id, client.open().id] == [1, 3]
    assert [serving.open().id, serving.open().id] == [2, 4]


def test_nothing_is_sent_beyond_the_peers_credit() -> None:
    core = server()
    stream = accepted(core)
    stream.begin_write(bytes(INITIAL + 1000))
    sent = parsed(outgoing(core))
    assert sum(length for *_, length in sent) == INITIAL
    assert max(length for *_, length in sent) <= MAX_PAYLOAD < INITIAL
    assert not core.has_outgoing
    core.receive(frame(WINDOW, 0, 1, 600))
    assert parsed(outgoing(core)) == [(DATA, 0, 1, 600)]
    core.receive(frame(WINDOW, 0, 1, 600))
    assert parsed(outgoing(core)) == [(DATA, 0, 1, 400)]
    assert core.outbox.take_drained() == [stream]


def test_credit_comes_back_once_half_a_window_is_read() -> None:
    core = server()
    stream = accepted(core)
    core.receive(data(1, bytes(INITIAL)))
    assert stream.read(INITIAL // 2 - 1)
    assert not core.has_outgoing
    assert stream.read(1)
    assert parsed(outgoing(core)) == [(WINDOW, 0, 1, INITIAL // 2)]
    with pytest.raises(YamuxError, match="credit"):
        core.receive(data(1, bytes(INITIAL // 2 + 1)))


def test_a_window_read_faster_than_four_round_trips_grows_to_the_limit_and_no_further() -> None:
    now = 0.0
    limits = YamuxLimits(window=INITIAL, max_window=3 * INITIAL)
    core = YamuxCore(False, limits, lambda: now)
    core.ping()
    now = 0.1
    assert core.receive(frame(PING, ACK, 0, 1)) == [Pong()]
    assert core.credit.rtt == pytest.approx(0.1)
    stream = accepted(core)
    for _ in range(6):
        core.receive(data(1, bytes(stream.receive_credit)))
        while stream.buffered:
            stream.read(1 << 30)
        outgoing(core)
    assert stream.window == 3 * INITIAL


def test_a_window_read_slowly_stays_as_it_is() -> None:
    now = 0.0
    core = YamuxCore(False, YamuxLimits(window=INITIAL), lambda: now)
    core.ping()
    now = 0.1
    core.receive(frame(PING, ACK, 0, 1))
    stream = accepted(core)
    for _ in range(6):
        now += 1.0
        core.receive(data(1, bytes(stream.receive_credit)))
        stream.read(1 << 30)
        outgoing(core)
    assert stream.window == INITIAL


def test_the_windows_of_all_streams_together_keep_to_the_budget() -> None:
    limits = YamuxLimits(budget=20 << 20)
    core = server(limits)
    streams = [accepted(core, 1 + 2 * n) for n in range(200)]
    assert streams[0].window > streams[-1].window >= INITIAL
    assert sum(stream.window - INITIAL for stream in streams) <= limits.budget
    for stream in streams:
        stream.reset()
    assert accepted(core, 1001).window == streams[0].window


def test_unread_bytes_of_a_reset_stream_stay_on_the_budget_until_dropped() -> None:
    core = server(YamuxLimits(budget=20 << 20))
    wide = accepted(core).window
    core.receive(data(3, bytes(1000), flags=SYN))
    stream = core.accept()
    assert stream is not None
    core.receive(frame(WINDOW, RST, 3, 0))
    held = accepted(core, 5).window
    assert stream.read(5000) == bytes(1000)
    with pytest.raises(PeerError, match="reset by the peer"):
        stream.read(1)
    assert accepted(core, 7).window > accepted(core, 9).window
    assert held < wide


def test_streams_take_turns() -> None:
    core = server(YamuxLimits())
    for stream in [accepted(core, stream_id) for stream_id in (1, 3, 5)]:
        stream.begin_write(bytes(INITIAL))
    first = parsed(b"".join(core.take_outgoing(5 * TURN_PAYLOAD)))
    assert [stream_id for _, _, stream_id, _ in first] == [1, 3, 5, 1, 3, 5, 1]
    assert max(length for *_, length in first) <= TURN_PAYLOAD == 65536


def test_control_frames_overtake_data() -> None:
    core = server(YamuxLimits())
    accepted(core).begin_write(bytes(INITIAL))
    core.receive(frame(PING, SYN, 0, 77))
    assert parsed(outgoing(core))[0] == (PING, ACK, 0, 77)


def test_half_close_leaves_the_other_direction_open() -> None:
    core = server()
    stream = accepted(core)
    core.receive(frame(WINDOW, FIN, 1, 0))
    assert stream.read(1) == b""
    assert not stream.finished
    stream.begin_write(b"still here")
    assert parsed(outgoing(core)) == [(DATA, 0, 1, 10)]
    stream.close()
    stream.close()
    assert parsed(outgoing(core)) == [(WINDOW, FIN, 1, 0)]
    assert stream.finished
    with pytest.raises(PeerError, match="closed here"):
        stream.begin_write(b"x")


def test_the_end_follows_what_is_still_in_line() -> None:
    core = server()
    stream = accepted(core)
    stream.begin_write(bytes(INITIAL + 5))
    stream.close()
    outgoing(core)
    assert not core.has_outgoing
    core.receive(frame(WINDOW, 0, 1, 100))
    assert parsed(outgoing(core)) == [(DATA, 0, 1, 5), (WINDOW, FIN, 1, 0)]


def test_a_write_given_up_leaves_whole_frames_and_a_usable_stream() -> None:
    core = server(YamuxLimits())
    stream = accepted(core)
    stream.begin_write(b"a" * 200_000)
    started = parsed(b"".join(core.take_outgoing(1)))
    stream.abandon_write()
    assert started == [(DATA, 0, 1, 50_000)]
    assert outgoing(core) == b""
    stream.begin_write(b"next")
    assert outgoing(core) == data(1, b"next")


def test_a_reset_tells_the_peer_and_drops_what_is_under_way() -> None:
    core = server()
    stream = accepted(core)
    core.receive(data(1, b"unread"))
    stream.reset()
    stream.reset()
    assert parsed(outgoing(core)) == [(WINDOW, RST, 1, 0)]
    with pytest.raises(PeerError, match="reset here"):
        stream.read(1)
    assert core.receive(data(1, bytes(1000))) == []
    assert core.receive(frame(PING, SYN, 0, 1)) == []
    assert parsed(outgoing(core)) == [(PING, ACK, 0, 1)]


def test_the_loss_of_the_connection_lets_what_came_be_read_and_is_no_clean_end() -> None:
    core = server()
    stream = accepted(core)
    core.receive(data(1, b"came"))
    assert core.fail("it was lost") == [stream]
    assert stream.read(100) == b"came"
    with pytest.raises(PeerError, match="it was lost"):
        stream.read(100)
    with pytest.raises(PeerError, match="it was lost"):
        core.open()


def test_going_away_is_reported_and_ends_new_streams_only() -> None:
    core = server()
    stream = accepted(core)
    assert core.receive(frame(GO_AWAY, 0, 0, 0)) == [PeerGoesAway(0)]
    with pytest.raises(PeerError, match="no more streams"):
        core.open()
    assert core.receive(data(1, b"x")) == [StreamChanged(stream)]


def test_a_write_given_up_after_closing_still_sends_the_end() -> None:
    core = server()
    stream = accepted(core)
    stream.begin_write(bytes(INITIAL + 1))
    outgoing(core)
    stream.close()
    stream.abandon_write()
    assert parsed(outgoing(core)) == [(WINDOW, FIN, 1, 0)]
    assert not core.has_outgoing


def test_bytes_announced_and_not_sent_earn_no_credit() -> None:
    core = server()
    stream = accepted(core)
    core.receive(frame(DATA, 0, 1, INITIAL, b"x"))
    assert stream.read(1) == b"x"
    assert not core.has_outgoing, "one byte was read, not a window"
    for half in (bytes(INITIAL // 2), bytes(INITIAL // 2 - 1)):
        core.receive(half)
        stream.read(INITIAL)
    assert sum(length for *_, length in parsed(outgoing(core))) <= INITIAL
    assert stream.owed + stream.receive_credit == INITIAL


def test_ids_may_come_a_little_out_of_order() -> None:
    core = server()
    assert [accepted(core, stream_id).id for stream_id in (5, 1, 3)] == [5, 1, 3]
