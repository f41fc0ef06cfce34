"""What a connection does by itself: notice silence, go when nobody needs it. On a virtual clock."""

from __future__ import annotations

from typing import cast

import pytest
import trio
from meshnode.dht.peer_id import PeerId
from meshnode.errors import PeerError
from meshnode.node.transport.libp2p_connection import HandlerCounts, Libp2pConnection
from meshnode.node.transport.limits import HostLimits
from meshnode.node.transport.native_connection import NativeConnection
from trio.testing import MockClock

LIMITS = HostLimits()


class FakeMuxer:
    """A muxer whose peer is heard of when the test says so."""

    def __init__(self) -> None:
        self.peer = PeerId.from_ed25519(bytes(32))
        self.last_received = trio.current_time()
        self.streams = 0
        self.leaving = False
        self.why_closed: str | None = None
        self.answers = True
        self._over = trio.Event()

    async def run(self) -> None:
        await self._over.wait()

    async def accept(self) -> None:
        await self._over.wait()
        raise PeerError("over")

    def ping(self) -> None:
        if self.answers:
            self.last_received = trio.current_time() + 0.01

    def close(self, why: str) -> None:
        self.why_closed = why
        self._over.set()


def connection(muxer: FakeMuxer, nursery: trio.Nursery, *, inbound: bool) -> Libp2pConnection:
    async def admits(peer: PeerId, protocol: str) -> bool:
        return True

    return Libp2pConnection(
        cast(NativeConnection, muxer),
        inbound=inbound,
        remote="/ip4/192.0.2.1/tcp/1",
        limits=LIMITS,
        handlers={},
        admits=admits,
        handler_nursery=nursery,
        counts=HandlerCounts(),
    )


async def lives_for(
    muxer: FakeMuxer, *, inbound: bool = False, spare: bool = False, at_most: float = 1000
) -> float:
    """Seconds until it closes itself; `at_most` when it does not."""
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        ours = connection(muxer, nursery, inbound=inbound)
        ours.spare = spare
        with trio.move_on_after(at_most):
            await ours.run(lambda opened: None, lambda ended: None)
    return trio.current_time() - began


async def test_a_peer_that_falls_silent_is_left_within_fifteen_seconds(
    autojump_clock: MockClock,
) -> None:
    muxer = FakeMuxer()
    muxer.answers = False
    assert 10 <= await lives_for(muxer) <= 15
    assert muxer.why_closed is not None
    assert "silent" in muxer.why_closed


@pytest.mark.parametrize("heard_last", [0.1, 4.9, 5.1, 9.9])
async def test_whenever_it_fell_silent(autojump_clock: MockClock, heard_last: float) -> None:
    muxer = FakeMuxer()
    muxer.answers = False

    async def speak_once() -> None:
        await trio.sleep(heard_last)
        muxer.last_received = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak_once)
        assert 10 <= await lives_for(muxer) - heard_last <= 15


async def test_a_peer_that_answers_pings_stays(autojump_clock: MockClock) -> None:
    assert await lives_for(FakeMuxer()) == 1000


async def test_a_spare_connection_that_we_dialled_goes_once_it_is_unused(
    autojump_clock: MockClock,
) -> None:
    muxer = FakeMuxer()
    muxer.streams = 1

    async def end_stream() -> None:
        await trio.sleep(60)
        muxer.streams = 0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_stream)
        assert 60 + LIMITS.keepalive <= await lives_for(muxer, spare=True) <= 60 + 15


async def test_a_spare_connection_is_ended_by_who_dialled_it(autojump_clock: MockClock) -> None:
    assert await lives_for(FakeMuxer(), inbound=True, spare=True) == 1000
