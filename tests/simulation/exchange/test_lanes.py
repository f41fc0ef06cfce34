"""A person's transfer beside repair and background work: who waits for whom, on virtual time."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from blake3 import blake3
from meshnode.node.exchange import BandwidthLimits, Lane, open_exchange
from meshnode.node.identity import Identity

PART = 256 * 1024
RATE = 1e6


async def _get_all(exchange, peer, digests, lane=Lane.INTERACTIVE) -> float:
    """Seconds until all of `digests` have come, eight at a time."""
    start = trio.current_time()
    slots = trio.Semaphore(8)

    async def get(digest) -> None:
        async with slots:
            await exchange.get_unverified(peer, digest, 0, PART, lane=lane)

    async with trio.open_nursery() as nursery:
        for digest in digests:
            nursery.start_soon(get, digest)
    return trio.current_time() - start


async def _put_all(exchange, peer, chunks, lane=Lane.INTERACTIVE) -> float:
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for data in chunks:

            async def put(data=data) -> None:
                await exchange.put(peer, blake3(data).digest(), data, lane=lane)

            nursery.start_soon(put)
    return trio.current_time() - start


class _Load:
    """Work in a lower lane that never ends."""

    def __init__(self) -> None:
        self.bytes = 0

    async def get(self, exchange, peer, digests, lane, number) -> None:
        while True:
            await exchange.get_unverified(peer, digests[number % len(digests)], 0, PART, lane=lane)
            self.bytes += PART

    async def put(self, exchange, peer, chunks, lane, number) -> None:
        while True:
            data = chunks[number % len(chunks)]
            data = number.to_bytes(8, "big") + data[8:]
            await exchange.put(peer, blake3(data).digest(), data, lane=lane)
            self.bytes += PART
            number += 32


@asynccontextmanager
async def _running(work, *args):
    async with trio.open_nursery() as nursery:
        for number in range(32):
            nursery.start_soon(work, *args, number)
        await trio.sleep(3)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _second_client(pair):
    owner = Identity.from_seed(b"2" * 32)
    host = pair.network.add_host(owner.peer_id)
    pair.network.introduce()
    async with open_exchange(host, identity=owner) as exchange:
        yield exchange


@pytest.mark.parametrize("lane", [Lane.REPAIR, Lane.BACKGROUND])
async def test_a_get_takes_at_most_15_percent_longer_beside_saturating_gets_of_a_lower_lane(
    autojump_clock, open_pair, chunk_of, lane
):
    async with open_pair(bandwidth=RATE, window=64 * 1024) as pair:
        digests = [pair.store.add(chunk_of(PART, seed)) for seed in range(16)]
        alone = await _get_all(pair.exchange, pair.peer, digests)
        load = _Load()
        async with _running(load.get, pair.exchange, pair.peer, digests[:8], lane):
            assert load.bytes > 0.8 * 3 * RATE
            before = load.bytes
            beside = await _get_all(pair.exchange, pair.peer, digests)
            share = (load.bytes - before) / beside / RATE
        assert beside < 1.15 * alone
        assert 0.02 < share < 0.25  # with what was on its way when the get began


async def test_a_put_takes_at_most_15_percent_longer_beside_saturating_puts_of_a_lower_lane(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(bandwidth=RATE, window=64 * 1024) as pair:
        chunks = [chunk_of(PART + 8, seed) for seed in range(24)]
        alone = await _put_all(pair.exchange, pair.peer, chunks[:12])
        load = _Load()
        args = (pair.exchange, pair.peer, [c[:PART] for c in chunks[:4]], Lane.BACKGROUND)
        async with _running(load.put, *args):
            before = load.bytes
            beside = await _put_all(pair.exchange, pair.peer, chunks[12:])
            moved = load.bytes - before
        assert beside < 1.15 * alone
        assert moved > 0


async def test_one_peers_background_gets_yield_to_anothers_interactive_ones(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(window=64 * 1024) as pair, _second_client(pair) as other:
        pair.server_traffic.set_limits(BandwidthLimits(upload=int(RATE)))
        digests = [pair.store.add(chunk_of(PART, seed)) for seed in range(16)]
        alone = await _get_all(pair.exchange, pair.peer, digests)
        load = _Load()
        async with _running(load.get, other, pair.peer, digests[:8], Lane.BACKGROUND):
            before = load.bytes
            beside = await _get_all(pair.exchange, pair.peer, digests)
            moved = load.bytes - before
        assert beside < 1.15 * alone
        assert moved > 0


async def test_a_background_get_here_yields_to_an_interactive_one_from_another_peer(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair() as pair:
        down = pair.exchange.traffic.down
        person = await down.invite(pair.peer, Lane.INTERACTIVE, PART)
        down.moved(int(16 * RATE))
        start = trio.current_time()
        for _ in range(4):
            (await down.invite(b"other", Lane.BACKGROUND, PART)).over(PART)
        slow = trio.current_time() - start
        person.over(PART)
        start = trio.current_time()
        for _ in range(4):
            (await down.invite(b"other", Lane.BACKGROUND, PART)).over(PART)
        assert slow > 0.5 > trio.current_time() - start


async def test_requests_of_lower_lanes_leave_places_for_others(autojump_clock, open_pair, chunk_of):
    async with open_pair() as pair:
        stuck = [pair.store.add(chunk_of(1000, seed)) for seed in range(100)]
        quick = pair.store.add(chunk_of(1000, 100))
        gate = trio.Event()
        pair.store.gates.update(dict.fromkeys(stuck, gate))
        async with trio.open_nursery() as nursery:
            for number, digest in enumerate(stuck):
                lane = Lane.BACKGROUND if number % 2 else Lane.REPAIR
                get = partial(pair.exchange.get_unverified, lane=lane)
                nursery.start_soon(get, pair.peer, digest, 0, 1000)
            await trio.sleep(1)
            assert pair.store.reading == 24
            with trio.fail_after(1):
                await pair.exchange.get_unverified(pair.peer, quick)
            gate.set()
        assert pair.server.counts.refusals == {}
