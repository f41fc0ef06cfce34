"""Peers that were not where they should be: sought once at a time, not for long, not for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
from meshnode.dht.peer_id import PeerId
from meshnode.errors import PeerError
from meshnode.node.seeker import Seeker
from trio.testing import MockClock, wait_all_tasks_blocked

PEERS = [PeerId.from_ed25519(bytes([number]) * 32) for number in range(200)]
PEER, OTHER = PEERS[:2]
HERE = ["/ip4/192.0.2.7/tcp/4710"]


class Mesh:
    """The host and the DHT of a seeker: `find` says where a peer is."""

    def __init__(self) -> None:
        self.find: Callable[[PeerId], Awaitable[list[str]]] = self.nowhere
        self.asked: Counter[PeerId] = Counter()
        self.under_way = self.most_under_way = 0
        self.connected: set[PeerId] = set()
        self.refused: set[PeerId] = set()

    async def nowhere(self, peer: PeerId) -> list[str]:
        await trio.sleep(1)
        return []

    async def somewhere(self, peer: PeerId) -> list[str]:
        await trio.sleep(1)
        return HERE

    async def find_peer(self, peer: PeerId) -> list[str]:
        self.asked[peer] += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return await self.find(peer)
        finally:
            self.under_way -= 1

    def connected_peers(self) -> frozenset[PeerId]:
        return frozenset(self.connected)

    async def connect(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        if peer in self.refused:
            raise PeerError("nobody there")
        self.connected.add(peer)


@asynccontextmanager
async def seeking() -> AsyncIterator[tuple[Seeker, Mesh]]:
    mesh = Mesh()
    seeker = Seeker(mesh, mesh)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(seeker.run)
        yield seeker, mesh
        nursery.cancel_scope.cancel()


async def test_a_peer_that_is_found_is_connected_when_the_wait_for_it_ends(
    autojump_clock: MockClock,
) -> None:
    async with seeking() as (seeker, mesh):
        mesh.find = mesh.somewhere
        seeker.unreachable(PEER)
        assert seeker.seeks(PEER)
        assert not seeker.seeks(OTHER)
        await seeker.sought([OTHER, PEER])
        assert mesh.connected == {PEER}
        assert not seeker.seeks(PEER)
        seeker.unreachable(PEER)
        assert not seeker.seeks(PEER)


async def test_a_peer_is_sought_once_at_a_time_and_after_that_in_vain_only_after_a_pause(
    autojump_clock: MockClock,
) -> None:
    async with seeking() as (seeker, mesh):
        mesh.refused.add(OTHER)
        for peer, find in ((PEER, mesh.nowhere), (OTHER, mesh.somewhere)):
            mesh.find = find
            for _ in range(100):
                seeker.unreachable(peer)
                await trio.sleep(0.1)
            assert mesh.asked[peer] == 1
            await trio.sleep(30)
            seeker.unreachable(peer)
            await seeker.sought([peer])
            assert mesh.asked[peer] == 2
            await trio.sleep(29)
            seeker.unreachable(peer)
            assert not seeker.seeks(peer)
        assert mesh.connected == set()


async def test_a_search_that_does_not_end_is_ended_and_waited_for_no_longer_than_that(
    autojump_clock: MockClock,
) -> None:
    async def never(peer: PeerId) -> list[str]:
        await trio.sleep_forever()
        raise AssertionError

    async with seeking() as (seeker, mesh):
        mesh.find = never
        began = trio.current_time()
        for peer in PEERS:
            seeker.unreachable(peer)
        await seeker.sought(PEERS)
        assert trio.current_time() - began <= 10
        await trio.sleep(1000)
        assert mesh.most_under_way == 4
        assert len(mesh.asked) <= 68
        assert not any(map(seeker.seeks, PEERS))


async def test_a_search_that_crashes_does_not_end_the_others(autojump_clock: MockClock) -> None:
    async def crash(peer: PeerId) -> list[str]:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("a bug")

    async with seeking() as (seeker, mesh):
        mesh.find = crash
        for peer in PEERS[:10]:
            seeker.unreachable(peer)
        await wait_all_tasks_blocked()
        mesh.find = mesh.somewhere
        seeker.unreachable(PEERS[20])
        await seeker.sought([PEERS[20]])
        assert mesh.connected == {PEERS[20]}
