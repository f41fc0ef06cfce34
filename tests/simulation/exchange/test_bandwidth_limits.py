"""Bandwidth limits: kept, fair, changeable, and never taken for a peer's fault."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import trio
from blake3 import blake3
from meshnode.node.exchange import BandwidthLimits, ExchangeSettings, Lane, open_exchange
from meshnode.node.identity import Identity
from trio.testing import wait_all_tasks_blocked

MIB = 1024 * 1024
KIB = 1024


async def _gets(exchange, peer, digests, size) -> float:
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for digest in digests:
            nursery.start_soon(exchange.get_unverified, peer, digest, 0, size)
    return trio.current_time() - start


@pytest.mark.parametrize("limit", [64 * KIB, MIB])
async def test_a_server_sends_no_more_than_its_limit_and_nobody_loses_patience(
    autojump_clock, open_pair, chunk_of, limit
):
    async with open_pair() as pair:
        pair.server_traffic.set_limits(BandwidthLimits(upload=limit))
        size = limit * 4
        digests = [pair.store.add(chunk_of(size, seed)) for seed in range(3)]
        took = await _gets(pair.exchange, pair.peer, digests, size)
        assert 11.5 < took < 13
        assert pair.exchange.stats[pair.peer].failures == 0
        assert pair.server.counts.refusals == {}


@pytest.mark.parametrize("limits", [{"upload": 128 * KIB}, {"per_peer_upload": 128 * KIB}])
async def test_puts_keep_the_limit_and_the_peer_is_not_blamed(
    autojump_clock, open_pair, chunk_of, limits
):
    async with open_pair() as pair:
        pair.exchange.traffic.set_limits(BandwidthLimits(**limits))
        chunks = [chunk_of(512 * KIB, seed) for seed in range(6)]
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for data in chunks:
                nursery.start_soon(pair.exchange.put, pair.peer, blake3(data).digest(), data)
        assert 23 < trio.current_time() - start < 26
        assert len(pair.kept) == 6
        stats = pair.exchange.stats[pair.peer]
        assert stats.failures == 0
        assert stats.upload.rate() is None  # it was not the peer that was slow


async def test_gets_keep_the_limit_and_the_peer_is_measured_as_fast_as_it_is(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(bandwidth=10e6) as pair:
        pair.exchange.traffic.set_limits(BandwidthLimits(download=512 * KIB))
        datas = [chunk_of(MIB, seed) for seed in range(6)]
        digests = [pair.store.add(data) for data in datas]
        took = await _gets(pair.exchange, pair.peer, digests, MIB)
        assert 11 < took < 13.5
        assert pair.exchange.stats[pair.peer].throughput > 2 * MIB
        assert pair.exchange.stats[pair.peer].failures == 0
        assert await pair.exchange.get_unverified(pair.peer, digests[0], 0, MIB) == datas[0]


async def test_a_server_takes_in_no_more_than_its_limit(autojump_clock, open_pair, chunk_of):
    async with open_pair() as pair:
        pair.server_traffic.set_limits(BandwidthLimits(download=MIB))
        start = trio.current_time()
        for seed in range(6):
            data = chunk_of(MIB, seed)
            await pair.exchange.put(pair.peer, blake3(data).digest(), data)
        assert 4.7 < trio.current_time() - start < 6.5


async def test_small_bodies_that_come_along_keep_the_limit_of_the_server_too(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair() as pair:
        pair.server_traffic.set_limits(BandwidthLimits(download=MIB))
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for seed in range(48):
                data = chunk_of(128 * KIB, seed)
                nursery.start_soon(pair.exchange.put, pair.peer, blake3(data).digest(), data)
        assert 5.5 < trio.current_time() - start < 7
        assert pair.exchange.stats[pair.peer].failures == 0
        assert pair.server.counts.refusals == {}


async def test_what_is_asked_for_under_a_limit_comes_smoothly(autojump_clock, open_pair, chunk_of):
    async with open_pair() as pair:
        pair.exchange.traffic.set_limits(BandwidthLimits(download=MIB))
        digests = [pair.store.add(chunk_of(MIB, seed)) for seed in range(4)]
        came: list[int] = []

        async def watch() -> None:
            while True:
                came.append(pair.exchange.traffic.down.total)
                await trio.sleep(0.2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await _gets(pair.exchange, pair.peer, digests, MIB)
            nursery.cancel_scope.cancel()
        most = max(after - before for before, after in pairwise(came))
        assert most <= 0.45 * MIB  # 0.2 s, what was saved up, and one piece


async def test_two_peers_share_a_limit_evenly_however_much_each_asks_for(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair() as pair:
        pair.server_traffic.set_limits(BandwidthLimits(upload=MIB))
        digests = [pair.store.add(chunk_of(MIB, seed)) for seed in range(10)]
        owner = Identity.from_seed(b"2" * 32)
        host = pair.network.add_host(owner.peer_id)
        pair.network.introduce()
        async with open_exchange(host, identity=owner) as other, trio.open_nursery() as nursery:
            nursery.start_soon(_gets, other, pair.peer, digests, MIB)
            await trio.sleep(1)
            took = await _gets(pair.exchange, pair.peer, digests[:2], MIB)
            nursery.cancel_scope.cancel()
        assert 3.5 < took < 4.6  # 2 MiB at half of 1 MiB/s


async def test_a_limit_can_be_changed_and_lifted_while_bodies_are_on_their_way(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair() as pair:
        pair.server_traffic.set_limits(BandwidthLimits(upload=64 * KIB))
        digest = pair.store.add(chunk_of(8 * MIB))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.exchange.get_unverified, pair.peer, digest)
            await trio.sleep(5)
            pair.server_traffic.set_limits(BandwidthLimits(upload=MIB))
            await trio.sleep(4)
            sent = pair.server_traffic.up.total
            assert 4 * MIB < sent < 5 * MIB
            pair.server_traffic.set_limits(BandwidthLimits())
            await trio.sleep(1)
            assert pair.exchange.stats[pair.peer].in_flight_requests == 0


async def test_waiting_for_a_limit_can_be_cancelled_and_leaves_nothing_behind(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair() as pair:
        pair.exchange.traffic.set_limits(BandwidthLimits(upload=64 * KIB, download=64 * KIB))
        digest = pair.store.add(chunk_of(4 * MIB))
        data = chunk_of(4 * MIB, 1)
        with trio.move_on_after(3):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(pair.exchange.get_unverified, pair.peer, digest, 0, 4 * MIB)
                    nursery.start_soon(pair.exchange.put, pair.peer, blake3(data).digest(), data)
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        traffic = pair.exchange.traffic
        for pipe in (traffic.up, traffic.down, traffic.offers):
            assert pipe.shaper.waiting == 0
            assert pipe.in_flight == 0
            assert all(line.bodies == 0 for line in pipe.shaper._lines.values())
        assert pair.server.bytes_in_memory == 0


async def test_an_interactive_get_goes_before_background_ones_that_wait_for_the_limit(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair() as pair:
        pair.exchange.traffic.set_limits(BandwidthLimits(download=256 * KIB))
        digests = [pair.store.add(chunk_of(128 * KIB, seed)) for seed in range(40)]
        async with trio.open_nursery() as nursery:
            get = partial(pair.exchange.get_unverified, pair.peer, lane=Lane.BACKGROUND)
            for digest in digests[2:]:
                nursery.start_soon(get, digest)
            await trio.sleep(1)
            start = trio.current_time()
            await pair.exchange.get_unverified(pair.peer, digests[0], 0, 128 * KIB)
            took = trio.current_time() - start
            nursery.cancel_scope.cancel()
        # One whole background body may have been let in just before.
        assert took < 5


async def test_a_caller_can_ask_for_how_long_limits_may_hold_it_up(autojump_clock, open_pair):
    async with open_pair() as pair:
        assert pair.exchange.hold_up(MIB) == pair.exchange.hold_up(MIB, upload=True) == 0.0
        pair.exchange.traffic.set_limits(BandwidthLimits(upload=MIB, download=512 * KIB))
        assert pair.exchange.hold_up(MIB) == 2.0
        assert pair.exchange.hold_up(MIB, upload=True) == 1.0


async def test_what_our_own_limit_holds_up_for_long_does_not_count_as_the_peers_time(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(settings=ExchangeSettings(answer_timeout=1.0)) as pair:
        pair.exchange.traffic.set_limits(BandwidthLimits(download=64 * KIB))
        digests = [pair.store.add(chunk_of(16 * KIB, seed)) for seed in range(40)]
        # Each waits for its turn among forty, piece by piece.
        assert await _gets(pair.exchange, pair.peer, digests, 16 * KIB) > 5.0
