"""Finding the mesh, and finding it again."""

from __future__ import annotations

import itertools

import pytest
import trio
from meshnode.dht.peer_id import PeerId
from meshnode.errors import FormatError
from meshnode.node.bootstrap import Bootstrap, split_address
from meshnode.node.transport.sim import open_sim_network

A = PeerId.from_ed25519(b"a" * 32)


class FakeDht:
    def __init__(self) -> None:
        self.attempts: list[tuple[float, list[PeerId]]] = []
        self.known = 0

    async def bootstrap(self, peers: list[PeerId]) -> int:
        await trio.lowlevel.checkpoint()
        self.attempts.append((trio.current_time(), peers))
        return self.known


def test_an_address_is_split_at_the_peer_id() -> None:
    assert split_address(f"/ip4/10.0.0.1/tcp/4710/p2p/{A}") == (A, "/ip4/10.0.0.1/tcp/4710")
    with pytest.raises(FormatError):
        split_address("/ip4/10.0.0.1/tcp/4710")


async def test_it_looks_often_at_first_and_ever_less_often_then(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_sim_network() as network:
        dht = FakeDht()
        bootstrap = Bootstrap(network.add_host(), dht, [f"/ip4/10.0.0.1/tcp/4710/p2p/{A}"])
        with trio.move_on_after(600):
            await bootstrap.run()
    times = [at for at, _ in dht.attempts]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[0] < 5
    assert gaps == sorted(gaps)
    assert 50 < gaps[-1] < 70
    assert all(peers == [A] for _, peers in dht.attempts)


async def test_what_the_local_network_shows_is_tried_soon_but_bounded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_sim_network() as network:
        dht = FakeDht()
        bootstrap = Bootstrap(network.add_host(), dht, [])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bootstrap.run)
            await trio.sleep(300)
            tried = len(dht.attempts)
            for number in range(1000):
                peer = PeerId.from_ed25519(number.to_bytes(32, "big"))
                bootstrap.found(peer, ["/ip4/10.0.0.9/tcp/1"])
            await trio.sleep(3)
            assert len(dht.attempts) == tried + 1
            assert len(dht.attempts[-1][1]) == 64
            nursery.cancel_scope.cancel()


async def test_with_many_peers_it_looks_seldom_and_alone_often_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_sim_network() as network:
        host = network.add_host()
        others = [network.add_host() for _ in range(20)]
        network.introduce()
        for other in others:
            await host.connect(other.peer_id)
        dht = FakeDht()
        bootstrap = Bootstrap(host, dht, [])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bootstrap.run)
            await trio.sleep(300)
            first = len(dht.attempts)
            await trio.sleep(3600)
            assert 1 <= len(dht.attempts) - first <= 2
            bootstrap.found(A, ["/ip4/10.0.0.9/tcp/1"])
            await trio.sleep(5)
            assert [A] in [peers for _, peers in dht.attempts]
            await trio.sleep(300)
            settled = len(dht.attempts)
            for other in others:
                await host.disconnect(other.peer_id)
            await trio.sleep(300)
            assert len(dht.attempts) - settled >= 4
            nursery.cancel_scope.cancel()
