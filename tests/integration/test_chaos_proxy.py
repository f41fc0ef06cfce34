"""The lines of `make chaos` behave as they are told to, so that its outcomes mean something."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from scripts.chaos.fault_proxy import Front
from scripts.chaos.line import Direction, Line

_NOTHING_SECS = 0.1
"""So long is waited for what must not come."""


@asynccontextmanager
async def front_and_ends() -> AsyncIterator[
    tuple[Front, trio.SocketStream, trio.SocketStream, int]
]:
    """A front, a connection through it by both ends (who dialled first), and its port."""
    send, receive = trio.open_memory_channel[trio.SocketStream](8)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def accepted(stream: trio.SocketStream) -> None:
        await send.send(stream)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, accepted, [listener])
        front = Front(listener.socket.getsockname()[:2], seed=1)
        port = await front.listen()
        nursery.start_soon(front.serve)
        async with await trio.open_tcp_stream("127.0.0.1", port) as dialled:
            yield front, dialled, await receive.receive(), port
        nursery.cancel_scope.cancel()


async def exactly(stream: trio.SocketStream, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        data = await stream.receive_some(size - len(got))
        assert data, "the stream ended early"
        got += data
    return bytes(got)


async def test_bytes_and_the_end_of_a_stream_pass_in_both_directions() -> None:
    data = random.randbytes(3_000_000)
    async with front_and_ends() as (front, near, far, _):
        for source, sink in ((near, far), (far, near)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.send_all, data)
                assert await exactly(sink, len(data)) == data
            await source.send_eof()
            assert await sink.receive_some() == b""
        assert front.passed == 2 * len(data)


def test_what_enters_a_line_comes_out_half_a_round_trip_and_its_own_length_later() -> None:
    way = Direction(random.Random(1))
    line = Line(rtt=0.2, rate=1000)
    assert way.enter(line, 50.0, 500) == (50.5, 50.6)
    assert way.enter(line, 50.0, 500) == (51.0, 51.1), "the line is shared"
    assert way.enter(line, 60.0, 500) == (60.5, 60.6), "an idle line saves nothing up"


def test_jitter_makes_bytes_late_but_never_early() -> None:
    way = Direction(random.Random(1))
    late = [way.enter(Line(rtt=0.2, jitter=0.1), float(now), 1)[1] - now for now in range(100)]
    assert all(0.1 - 1e-9 <= each <= 0.2 + 1e-9 for each in late)
    assert max(late) - min(late) > 0.05


async def test_bytes_wait_for_their_turn() -> None:
    async with front_and_ends() as (front, near, far, _):
        front.line = Line(rtt=0.2, rate=1_000_000)
        before = trio.current_time()
        await near.send_all(bytes(100_000))
        await exactly(far, 100_000)
        assert trio.current_time() - before >= 0.1 + 0.1 - 0.001


async def test_a_frozen_line_moves_nothing_and_loses_nothing() -> None:
    async with front_and_ends() as (front, near, far, _):
        front.freeze()
        front.freeze()
        await near.send_all(b"late")
        with trio.move_on_after(_NOTHING_SECS) as waited:
            await far.receive_some()
        assert waited.cancelled_caught
        front.heal()
        assert await exactly(far, 4) == b"late"


async def test_a_silent_line_takes_everything_and_tells_nobody_that_the_other_side_left() -> None:
    async with front_and_ends() as (front, near, far, port):
        front.silence()
        await near.send_all(b"lost")
        await far.aclose()
        async with await trio.open_tcp_stream("127.0.0.1", port) as another:
            await another.send_all(b"hello?")
            for stream in (near, another):
                with trio.move_on_after(_NOTHING_SECS) as waited:
                    await stream.receive_some()
                assert waited.cancelled_caught
            front.heal()
            with pytest.raises(trio.BrokenResourceError):
                await near.receive_some()


async def test_a_cut_connection_ends_with_a_reset_on_both_sides() -> None:
    async with front_and_ends() as (front, near, far, port):
        await near.send_all(b"x")
        await exactly(far, 1)
        assert front.cut(chance=0.0) == 0
        assert front.cut() == 1
        for stream in (near, far):
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        async with await trio.open_tcp_stream("127.0.0.1", port) as again:
            await again.send_all(b"y")
        assert front.cuts == 1


async def test_a_line_that_cuts_does_so_by_itself() -> None:
    async with front_and_ends() as (front, near, _, _):
        front.line = Line(cuts=1.0)
        with pytest.raises(trio.BrokenResourceError):
            await near.receive_some()


async def test_who_dials_a_node_that_is_gone_is_reset() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    target = listener.socket.getsockname()[:2]
    await listener.aclose()
    async with trio.open_nursery() as nursery:
        front = Front(target)
        port = await front.listen()
        nursery.start_soon(front.serve)
        async with await trio.open_tcp_stream("127.0.0.1", port) as near:
            with pytest.raises(trio.BrokenResourceError):
                await near.receive_some()
        nursery.cancel_scope.cancel()
