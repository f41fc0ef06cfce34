"""What Yamux copies, gathers and cuts."""

from __future__ import annotations

from meshnode.node.transport.yamux_events import StreamChanged
from meshnode.node.transport.yamux_frames import MAX_PAYLOAD
from meshnode.node.transport.yamux_limits import YamuxLimits

from tests.unit.transport.yamux_by_hand import (
    ACK,
    DATA,
    FIN,
    INITIAL,
    PING,
    RST,
    SYN,
    WINDOW,
    accepted,
    data,
    frame,
    outgoing,
    parsed,
    server,
)


def test_a_megabyte_costs_no_copy_and_a_handful_of_buffers() -> None:
    core = server(YamuxLimits())
    stream = accepted(core)
    core.receive(frame(WINDOW, 0, 1, 8 << 20))
    source = bytearray(1 << 20)
    stream.begin_write(source)
    views = [piece for piece in core.take_outgoing(1 << 30) if isinstance(piece, memoryview)]
    assert len(views) == 5
    assert all(view.obj is source for view in views)


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


def test_a_write_that_shares_the_line_with_nobody_is_one_frame_of_four_noise_frames() -> None:
    core = server(YamuxLimits())
    stream = accepted(core)
    core.receive(frame(WINDOW, 0, 1, 8 << 20))
    stream.begin_write(bytes(MAX_PAYLOAD))
    assert parsed(b"".join(core.take_outgoing(256 * 1024))) == [(DATA, 0, 1, 4 * 65_519)]


def test_no_frame_takes_all_of_a_small_window() -> None:
    core = server(YamuxLimits())
    accepted(core).begin_write(bytes(INITIAL))
    sizes = [length for *_, length in parsed(outgoing(core))]
    assert sum(sizes) == INITIAL
    assert max(sizes) <= 65_536


def test_a_write_is_cut_into_even_frames_without_a_last_one_of_a_few_bytes() -> None:
    core = server(YamuxLimits())
    stream = accepted(core)
    core.receive(frame(WINDOW, 0, 1, 8 << 20))
    for most in (1, 100_000, 1 << 30):
        for size in (65_519, 65_536, 65_537, 262_076, 262_077, 1 << 20):
            stream.begin_write(bytes(size))
            sizes = []
            while frames := parsed(b"".join(core.take_outgoing(most))):
                sizes += [length for *_, length in frames]
            assert sum(sizes) == size
            assert max(sizes) <= max(65_536, min(MAX_PAYLOAD, most))
            assert min(sizes) > 30_000


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


def test_bytes_that_are_waited_for_go_where_the_reader_wants_them() -> None:
    core = server()
    stream = accepted(core)
    target = bytearray(100_000)
    stream.sink = memoryview(target)
    core.take(frame(DATA, 0, 1, 90_000))
    room = core.room(60_000)
    assert room is not None
    assert room.obj is target
    room[:] = b"a" * 60_000
    core.filled(60_000)
    assert core.room(30_001) is None, "more than the frame has"
    core.take(b"b" * 30_000)
    assert core.take_events() == [StreamChanged(stream)]
    assert (core.buffered, stream.release_sink()) == (0, 90_000)
    assert target[:90_000] == b"a" * 60_000 + b"b" * 30_000


def test_what_does_not_fit_where_the_reader_waits_is_kept_for_the_next_read() -> None:
    core = server()
    stream = accepted(core)
    target = bytearray(1000)
    stream.sink = memoryview(target)
    core.take(frame(DATA, 0, 1, 5000))
    assert core.room(5000) is None
    core.take(b"a" * 1000 + b"b" * 2000)
    assert core.room(2000) is None, "what came before has not been read"
    core.take(b"c" * 2000)
    assert stream.release_sink() == 1000
    assert target == b"a" * 1000
    assert stream.read(10_000) == b"b" * 2000 + b"c" * 2000


def test_a_reader_that_waits_earns_credit_as_one_that_reads() -> None:
    core = server()
    stream = accepted(core)
    stream.sink = memoryview(bytearray(INITIAL))
    core.receive(frame(DATA, 0, 1, INITIAL) + bytes(INITIAL // 2 - 1))
    assert not core.has_outgoing
    core.receive(b"x")
    assert parsed(outgoing(core)) == [(WINDOW, 0, 1, INITIAL // 2)]


def test_no_room_is_offered_for_a_stream_that_was_reset() -> None:
    core = server()
    stream = accepted(core)
    stream.sink = memoryview(bytearray(1000))
    core.receive(frame(DATA, 0, 1, 1000) + b"x")
    stream.reset()
    assert core.room(999) is None
    core.receive(bytes(999) + frame(PING, SYN, 0, 1))
    assert stream.sunk == 1


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
