"""What all connections of a host may hold together."""

from __future__ import annotations

import pytest
from meshnode.node.transport.yamux import YamuxCore
from meshnode.node.transport.yamux_budget import ReceiveBudget
from meshnode.node.transport.yamux_frames import YamuxError
from meshnode.node.transport.yamux_limits import YamuxLimits

from tests.unit.transport.yamux_by_hand import INITIAL, accepted, frame

MIB = 1 << 20


def cores(shared: ReceiveBudget, count: int) -> list[YamuxCore]:
    return [YamuxCore(False, YamuxLimits(), shared=shared) for _ in range(count)]


def test_the_windows_of_all_connections_together_keep_to_the_budget_and_the_last_get_some() -> None:
    shared = ReceiveBudget(64 * MIB)
    streams = [accepted(core, 1) for core in cores(shared, 40)]
    extra = sum(stream.window - INITIAL for stream in streams)
    assert extra + shared.left == 64 * MIB
    assert 0 <= shared.left < 8 * MIB
    assert streams[0].window > streams[-1].window > INITIAL


def test_without_budget_streams_keep_the_window_the_specification_gives_them() -> None:
    shared = ReceiveBudget(0)
    (core,) = cores(shared, 1)
    stream = accepted(core, 1)
    core.credit.rtt = 1e9
    for _ in range(4):
        core.receive(frame(0, 0, 1, stream.receive_credit) + bytes(stream.receive_credit))
        while stream.buffered:
            stream.read(MIB)
        core.take_outgoing(MIB)
    assert stream.window == INITIAL


def test_a_window_grows_again_once_others_gave_theirs_back() -> None:
    shared = ReceiveBudget(32 * MIB)
    first, second = cores(shared, 2)
    held = [accepted(first, 1 + 2 * n) for n in range(60)]
    poor = accepted(second, 1).window
    for stream in held:
        stream.reset()
    assert accepted(second, 3).window > poor
    assert shared.left + sum(s.extra for s in second._streams.values()) == 32 * MIB


@pytest.mark.parametrize("read_on", [False, True])
def test_a_connection_that_ends_gives_everything_back_though_bytes_are_unread(
    read_on: bool,
) -> None:
    shared = ReceiveBudget(64 * MIB)
    (core,) = cores(shared, 1)
    streams = [accepted(core, stream_id) for stream_id in (1, 3, 5)]
    for stream in streams:
        core.receive(frame(0, 0, stream.id, 1000) + bytes(1000))
    streams[0].reset()
    core.receive(frame(1, 8, 3, 0))
    assert shared.unread == 2000
    core.fail("it was lost")
    if read_on:
        for stream in streams[1:]:
            assert stream.read(5000) == bytes(1000)
    core.fail("again")
    assert (shared.left, shared.unread, shared.holders) == (64 * MIB, 0, 0)


def test_unread_bytes_are_counted_until_they_are_read_or_dropped() -> None:
    shared = ReceiveBudget()
    one, other = cores(shared, 2)
    kept, dropped = accepted(one, 1), accepted(other, 1)
    for core in (one, other):
        core.receive(frame(0, 0, 1, 3000) + bytes(3000))
    assert (shared.unread, shared.holders) == (6000, 2)
    kept.read(1000)
    assert (shared.unread, shared.holders) == (5000, 2)
    dropped.reset()
    assert (shared.unread, shared.holders) == (2000, 1)
    kept.read(2000)
    assert (shared.unread, shared.holders) == (0, 0)


def test_beyond_the_bound_the_connection_that_holds_most_goes_and_the_small_ones_stay() -> None:
    shared = ReceiveBudget(4 * MIB, most_unread=8 * MIB)
    greedy, *modest = cores(shared, 5)
    streams = [accepted(core, 1) for core in modest]
    for core in modest:
        core.receive(frame(0, 0, 1, 1000) + bytes(1000))

    def hoard() -> None:
        for stream_id in range(1, 200, 2):
            accepted(greedy, stream_id)
            greedy.receive(frame(0, 0, stream_id, INITIAL) + bytes(INITIAL))
            for core in modest:
                core.receive(frame(0, 0, 1, 100) + bytes(100))

    with pytest.raises(YamuxError) as caught:
        hoard()
    assert caught.value.reason == "memory_flood"
    assert shared.unread <= shared.most_unread + INITIAL
    greedy.fail("it was let go")
    for core, stream in zip(modest, streams, strict=True):
        core.receive(frame(0, 0, 1, 1000) + bytes(1000))
        assert len(stream.read(MIB) or b"") > 1000
    assert shared.unread == 0


def test_many_peers_that_hold_equally_much_are_bounded_too() -> None:
    shared = ReceiveBudget(4 * MIB, most_unread=8 * MIB)
    living = cores(shared, 100)
    for round_ in range(8):
        for core in list(living):
            accepted(core, 1 + 2 * round_)
            try:
                core.receive(frame(0, 0, 1 + 2 * round_, INITIAL) + bytes(INITIAL))
            except YamuxError:
                core.fail("it was let go")
                living.remove(core)
            assert shared.unread <= 2 * shared.most_unread
    assert len(living) < 100
