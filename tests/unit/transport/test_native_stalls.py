"""Peers that take little, or nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from meshnode.errors import PeerError
from meshnode.node.transport.native_connection import NativeConnection

from tests.unit.transport.native_in_the_clear import MIB, both_ends, native, pair, sockets
from tests.unit.transport.yamux_by_hand import FIN, WINDOW, frame


async def dribble(far: trio.SocketStream, stream_id: int, credit: int, every: float) -> None:
    while True:
        await trio.sleep(every)
        await far.send_all(frame(WINDOW, 0, stream_id, credit))
        await trio.testing.wait_all_tasks_blocked()


async def drain(far: trio.SocketStream, got: bytearray) -> None:
    with suppress(trio.BrokenResourceError):  # whoever lets go does not read what is under way
        while data := await far.receive_some():
            got += data


@asynccontextmanager
async def drained(
    reasons: list[str],
) -> AsyncIterator[tuple[NativeConnection, trio.SocketStream]]:
    """A connection whose peer reads everything and gives the credit that a test sends for it."""
    near, far = await sockets()
    one = native(near, initiator=True, stall=3, reasons=reasons)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        nursery.start_soon(drain, far, bytearray())
        yield one, far
        one.close("the test is over")


async def starve(connection: NativeConnection) -> None:
    stream = connection.open()
    with pytest.raises(PeerError, match="no credit"):
        await stream.write(bytes(300_000))


async def test_a_peer_that_gives_no_credit_fails_the_writer_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with pair(stall=3) as (one, other):
        mine, _ = await both_ends(one, other)
        began = trio.current_time()
        with pytest.raises(PeerError, match="no credit"):
            await mine.write(bytes(20 * MIB))
        assert 3 <= trio.current_time() - began < 7
        mine.reset()
        again, theirs = await both_ends(one, other)
        await again.write(b"alive")
        assert await theirs.read(9) == b"alive"


async def test_a_peer_that_never_gives_credit_is_counted_and_let_go(
    autojump_clock: trio.testing.MockClock,
) -> None:
    reasons: list[str] = []
    async with drained(reasons) as (one, _):
        began = trio.current_time()
        for _ in range(20):
            if one.why_closed is not None:
                break
            async with trio.open_nursery() as writers:
                for _ in range(5):
                    writers.start_soon(starve, one)
        assert trio.current_time() - began >= 4 * 3
    assert reasons == ["no_credit"] * 4 + ["window_shut"]
    assert one.why_closed is not None
    assert "no credit on any stream" in one.why_closed


async def test_a_peer_that_gives_credit_now_and_then_is_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    reasons: list[str] = []
    async with drained(reasons) as (one, far):
        for number in range(6):
            await starve(one)
            if number % 2:
                stream = one.open()
                await far.send_all(frame(WINDOW, 0, stream.state.id, 4096))
                await trio.testing.wait_all_tasks_blocked()
        assert one.why_closed is None
        assert reasons == ["no_credit"] * 6


async def test_a_peer_that_gives_a_byte_of_credit_now_and_then_holds_no_writer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    reasons: list[str] = []
    async with drained(reasons) as (one, far):
        took = []
        while one.why_closed is None and len(took) < 10:
            async with trio.open_nursery() as dribbling:
                stream = one.open()
                dribbling.start_soon(dribble, far, stream.state.id, 1, 0.5)
                began = trio.current_time()
                with pytest.raises(PeerError, match="no credit"):
                    await stream.write(bytes(300_000))
                took.append(trio.current_time() - began)
                dribbling.cancel_scope.cancel()
    assert took == [3.0] * 4
    assert reasons == ["no_credit"] * 4 + ["window_shut"]


async def test_a_slow_peer_that_gets_on_is_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with drained([]) as (one, far), trio.open_nursery() as nursery:
        stream = one.open()
        nursery.start_soon(dribble, far, stream.state.id, 1500, 0.9)
        began = trio.current_time()
        await stream.write(bytes(300_000))
        assert trio.current_time() - began > 20
        nursery.cancel_scope.cancel()


async def test_a_starved_write_given_up_after_the_stream_was_closed_sends_the_end() -> None:
    near, far = await sockets()
    one = native(near, initiator=True)
    end = frame(WINDOW, FIN, 1, 0)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        got = bytearray()
        nursery.start_soon(drain, far, got)
        stream = one.open()
        async with trio.open_nursery() as writers:
            writers.start_soon(stream.write, bytes(300_000))
            await trio.testing.wait_all_tasks_blocked()
            stream.close()
            assert not got.endswith(end)
            writers.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert got.endswith(end)
        one.close("the test is over")
