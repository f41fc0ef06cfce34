"""The rules of Yamux, kept and enforced, without a socket."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from meshnode.errors import PeerError
from meshnode.node.transport.yamux import YamuxCore
from meshnode.node.transport.yamux_events import (
    Event,
    PeerGoesAway,
    Pong,
    StreamChanged,
    StreamOpened,
)
from meshnode.node.transport.yamux_frames import MAX_PAYLOAD, YamuxError
from meshnode.node.transport.yamux_limits import YamuxLimits
from meshnode.node.transport.yamux_stream import YamuxStream

DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
INITIAL = 256 * 1024
SMALL = YamuxLimits(window=INITIAL, max_inbound=4, accept_backlog=3, max_refused=5, max_control=20)


def frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBHII", 0, kind, flags, stream_id, length) + body


def data(stream_id: int, body: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, stream_id, len(body), body)


def outgoing(core: YamuxCore) -> bytes:
    return b"".join(core.take_outgoing(1 << 30))


def parsed(wire: bytes) -> list[tuple[int, int, int, int]]:
    """Kind, flags, stream id and length of each frame."""
    frames, position = [], 0
    while position < len(wire):
        _, kind, flags, stream_id, length = struct.unpack_from(">BBHII", wire, position)
        frames.append((kind, flags, stream_id, length))
        position += 12 + (length if kind == DATA else 0)
    return frames


def server(limits: YamuxLimits = SMALL) -> YamuxCore:
    return YamuxCore(initiator=False, limits=limits)


def accepted(core: YamuxCore, stream_id: int = 1) -> YamuxStream:
    core.receive(frame(WINDOW, SYN, stream_id, 0))
    stream = core.accept()
    assert stream is not None
    outgoing(core)
    return stream


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
    assert max(length for *_, length in sent) <= MAX_PAYLOAD == 65536
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
    first = parsed(b"".join(core.take_outgoing(5 * MAX_PAYLOAD)))
    assert [stream_id for _, _, stream_id, _ in first] == [1, 3, 5, 1, 3, 5, 1]


def test_control_frames_overtake_data() -> None:
    core = server(YamuxLimits())
    accepted(core).begin_write(bytes(INITIAL))
    core.receive(frame(PING, SYN, 0, 77))
    assert parsed(outgoing(core))[0] == (PING, ACK, 0, 77)


def test_a_megabyte_costs_no_copy_and_a_handful_of_buffers() -> None:
    core = server(YamuxLimits())
    stream = accepted(core)
    core.receive(frame(WINDOW, 0, 1, 8 << 20))
    source = bytearray(1 << 20)
    stream.begin_write(source)
    views = [piece for piece in core.take_outgoing(1 << 30) if isinstance(piece, memoryview)]
    assert len(views) == 17
    assert all(view.obj is source for view in views)


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


def test_a_write_given_up_after_closing_still_sends_the_end() -> None:
    core = server()
    stream = accepted(core)
    stream.begin_write(bytes(INITIAL + 1))
    outgoing(core)
    stream.close()
    stream.abandon_write()
    assert parsed(outgoing(core)) == [(WINDOW, FIN, 1, 0)]
    assert not core.has_outgoing


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


def test_small_writes_become_frames_at_once_and_keep_their_order_with_the_end() -> None:
    core = server()
    stream, other = accepted(core), accepted(core, 3)
    for letter in b"abc":
        stream.begin_write(bytes([letter]))
        assert stream.pending is None
    other.begin_write(b"d")
    stream.close()
    other.reset()
    wire = outgoing(core)
    ends = [frame(WINDOW, FIN, 1, 0), frame(WINDOW, RST, 3, 0)]
    assert wire == b"".join([*(data(1, bytes([c])) for c in b"abc"), data(3, b"d"), *ends])


def test_small_writes_nobody_takes_are_bounded_and_then_wait() -> None:
    core = server()
    stream = accepted(core)
    written = 0
    while stream.pending is None:
        stream.begin_write(bytes(100))
        written += 100
    assert written < 64 * 1024
    assert sum(length for *_, length in parsed(outgoing(core))) == written
    assert stream.pending is None


def test_a_write_is_cut_into_even_frames_without_a_last_one_of_a_few_bytes() -> None:
    core = server(YamuxLimits())
    stream = accepted(core)
    core.receive(frame(WINDOW, 0, 1, 8 << 20))
    for size in (65_519, 65_536, 65_537, 262_144, 1 << 20):
        stream.begin_write(bytes(size))
        sizes = [length for *_, length in parsed(outgoing(core))]
        assert sum(sizes) == size
        assert max(sizes) <= MAX_PAYLOAD
        assert min(sizes) > 30_000


def test_a_stream_accepted_ends_the_row_of_streams_reset_unseen() -> None:
    core = server()
    for stream_id in range(1, 60, 2):
        core.receive(frame(WINDOW, SYN, stream_id, 0))
        if stream_id % 3 == 0:
            assert core.accept() is not None
        core.receive(frame(WINDOW, RST, stream_id, 0))
        core.accept()


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


def test_ids_may_come_a_little_out_of_order() -> None:
    core = server()
    assert [accepted(core, stream_id).id for stream_id in (5, 1, 3)] == [5, 1, 3]


def test_small_pieces_are_gathered_and_do_not_hold_large_frames() -> None:
    core = server()
    stream = accepted(core)
    for _ in range(1000):
        core.receive(data(1, b"x") + frame(PING, ACK, 0, 9) * 100)
    assert len(stream._chunks) == 1
    assert isinstance(stream._chunks[0], bytearray)
    assert stream.read(2000) == b"x" * 1000


def test_large_pieces_are_kept_without_a_copy() -> None:
    core = server()
    stream = accepted(core)
    piece = data(1, bytes(60_000))
    core.receive([piece])
    (chunk,) = stream._chunks
    assert isinstance(chunk, memoryview)
    assert chunk.obj is piece
    target = bytearray(70_000)
    assert stream.read_into(memoryview(target)) == 60_000
    assert stream.read_into(memoryview(target)) is None


def test_small_pieces_are_read_together_and_large_ones_by_themselves() -> None:
    core = server()
    stream = accepted(core)
    large = bytes(60_000)
    pieces = [b"a" * 5000, b"b" * 6000, large, b"c" * 7000, large, large]
    for piece in pieces:
        core.receive([frame(DATA, 0, 1, len(piece)), piece])
    first = stream.read(1 << 20)
    assert first == pieces[0] + pieces[1]
    assert stream.read(1 << 20) is large, "not copied"
    target = bytearray(70_000)
    assert stream.read_into(memoryview(target)) == 70_000
    assert target == (pieces[3] + large + large)[:70_000]
    assert stream.read(1 << 20) == large[3000:]


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
