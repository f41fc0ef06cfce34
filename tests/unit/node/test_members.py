"""Which members are kept connected, and asked what they offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio
from meshnode.dht.peer_id import PeerId
from meshnode.node.exchange import PeerInfo, PeerStatsTable
from meshnode.node.members import Members
from meshnode.node.transport.sim import SimHost, SimNetwork, open_sim_network


@dataclass(frozen=True)
class Entry:
    peer: PeerId


class FakeDht:
    def __init__(self, peers: Sequence[PeerId]) -> None:
        self._peers = peers

    def peers(self) -> list[Entry]:
        return [Entry(peer) for peer in self._peers]


class FakeExchange:
    def __init__(self) -> None:
        self.stats = PeerStatsTable()
        self.asked: list[PeerId] = []

    async def info(self, peer: PeerId) -> PeerInfo:
        await trio.lowlevel.checkpoint()
        self.asked.append(peer)
        return PeerInfo("name", "zone", 1, "0", 0)


def mesh(network: SimNetwork, count: int) -> tuple[SimHost, list[PeerId]]:
    host = network.add_host()
    others = [network.add_host().peer_id for _ in range(count)]
    network.introduce()
    return host, others


async def test_no_more_members_are_dialled_than_the_host_keeps_idle(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_sim_network() as network:
        host, others = mesh(network, 60)
        members = Members(host, FakeDht(others), FakeExchange(), 40)
        await members.refresh()
        await members.refresh()
        assert len(host.connected_peers()) == 40
        assert len(members.members()) == 40


async def test_connections_beyond_those_kept_are_left_alone_so_that_they_can_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_sim_network() as network:
        host, others = mesh(network, 60)
        for peer in others:
            await host.connect(peer)
        exchange = FakeExchange()
        members = Members(host, FakeDht(others), exchange, 0)
        for _ in range(3):
            await members.refresh()
            await trio.sleep(60)
        assert len(set(exchange.asked)) == 20
        assert len(exchange.asked) == 60
        # When one of those is lost, another one takes its place.
        await host.disconnect(exchange.asked[0])
        await members.refresh()
        assert len(members.members()) == 20
        assert len(set(exchange.asked)) == 21
