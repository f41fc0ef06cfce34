"""Many requests share a stream, and giving one up costs the others nothing.

`get` would hash in a thread, which the virtual clock does not wait for: hence `get_unverified`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from blake3 import blake3
from meshnode.errors import PeerRefusedError
from meshnode.node.exchange import ExchangeSettings, Reason
from meshnode.node.exchange.messages import Cancel, Get, Proceed, Put, Refused

MIB = 1024 * 1024


async def _in_time(coroutines) -> float:
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for coroutine, *args in coroutines:
            nursery.start_soon(coroutine, *args)
    return trio.current_time() - start


async def test_sixteen_requests_take_one_round_trip(autojump_clock, open_pair, chunk_of):
    async with open_pair(latency=0.025) as pair:
        digests = [pair.store.add(chunk_of(1000, seed)) for seed in range(16)]
        await pair.exchange.info(pair.peer)  # the stream is open now
        took = await _in_time(
            [(pair.exchange.get_unverified, pair.peer, digest) for digest in digests]
        )
        assert 0.049 < took < 0.06


async def test_sixteen_puts_take_two_round_trips_and_small_ones_one(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(latency=0.025, window=64 * MIB) as pair:
        await pair.exchange.info(pair.peer)
        for size, round_trips in ((300_000, 2), (1000, 1)):
            chunks = [chunk_of(size, seed) for seed in range(16)]
            took = await _in_time(
                [(pair.exchange.put, pair.peer, blake3(data).digest(), data) for data in chunks]
            )
            assert 0.049 * round_trips < took < 0.055 * round_trips
        assert len(pair.kept) == 32


async def test_requests_beyond_one_round_trip_wait_only_for_bandwidth(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(latency=0.05, bandwidth=10e6, window=16 * MIB) as pair:
        digests = [pair.store.add(chunk_of(MIB, seed)) for seed in range(20)]
        await pair.exchange.info(pair.peer)
        took = await _in_time(
            [(pair.exchange.get_unverified, pair.peer, digest) for digest in digests]
        )
        assert 2.1 < took < 2.4  # 20 MiB at 10 MB/s, and one round trip


async def test_all_requests_to_a_peer_share_a_few_streams(autojump_clock, open_pair, chunk_of):
    async with open_pair() as pair:
        digests = [pair.store.add(chunk_of(MIB, seed)) for seed in range(30)]
        await _in_time([(pair.exchange.get_unverified, pair.peer, digest) for digest in digests])
        assert len(pair.asking.connections()[0].streams) == 4  # both ends of two


async def test_a_small_request_need_not_wait_behind_large_bodies(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(bandwidth=1e6) as pair:
        digest = pair.store.add(chunk_of(4 * MIB))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.exchange.get_unverified, pair.peer, digest)
            await trio.sleep(0.5)
            await pair.exchange.info(pair.peer)  # opens the second stream
            await trio.sleep(0.5)
            with trio.fail_after(1.0):
                await pair.exchange.info(pair.peer)
            nursery.cancel_scope.cancel()


async def test_a_stuck_request_does_not_hold_up_the_others(autojump_clock, open_pair, chunk_of):
    async with open_pair() as pair:
        stuck, quick = pair.store.add(chunk_of(1000)), pair.store.add(chunk_of(1000, 1))
        pair.store.gates[stuck] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.exchange.get_unverified, pair.peer, stuck)
            await trio.sleep(0.1)
            with trio.fail_after(0.1):
                await pair.exchange.get_unverified(pair.peer, quick)
            pair.store.gates[stuck].set()


async def test_cancelling_before_the_answer_spares_the_server_the_work(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair() as pair:
        digest = pair.store.add(chunk_of(4 * MIB))
        pair.store.gates[digest] = trio.Event()
        with trio.move_on_after(1):
            await pair.exchange.get_unverified(pair.peer, digest)
        await trio.sleep(1)
        assert pair.store.reading == 0
        assert pair.server.counts.cancelled == 1
        assert pair.server.counts.bytes_sent < 1000
        assert pair.server.bytes_in_memory == 0


async def test_cancelling_inside_a_body_leaves_the_stream_and_the_others_whole(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(bandwidth=1e6, settings=ExchangeSettings(streams_per_peer=1)) as pair:
        datas = [chunk_of(MIB, seed) for seed in range(3)]
        digests = [pair.store.add(data) for data in datas]
        got: dict[int, bytes] = {}

        async def get(index: int) -> None:
            got[index] = await pair.exchange.get_unverified(pair.peer, digests[index])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get, 0)
            await trio.sleep(0.1)
            with trio.move_on_after(1.5) as given_up:  # the first takes until about 1.1
                nursery.start_soon(get, 2)
                await get(1)
            assert given_up.cancelled_caught
        assert got == {0: datas[0], 2: datas[2]}
        assert len(pair.asking.connections()[0].streams) == 2
        assert pair.exchange.stats[pair.peer].failures == 0
        assert pair.exchange.stats[pair.peer].in_flight_requests == 0


async def test_a_body_that_nobody_wants_any_more_is_counted(autojump_clock, open_pair, chunk_of):
    async with open_pair(bandwidth=1e6) as pair:
        digest = pair.store.add(chunk_of(MIB))
        with trio.move_on_after(0.95):  # too late for it to be worth cutting
            await pair.exchange.get_unverified(pair.peer, digest)
        await trio.sleep(2)
        assert pair.exchange.stats[pair.peer].duplicates == 1
        assert await pair.exchange.have(pair.peer, [digest]) == [True]


async def test_cancelling_a_put_inside_its_body_leaves_the_stream_whole(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(bandwidth=1e6, settings=ExchangeSettings(streams_per_peer=1)) as pair:
        data = chunk_of(4 * MIB)
        with trio.move_on_after(1.0) as given_up:
            await pair.exchange.put(pair.peer, blake3(data).digest(), data)
        assert given_up.cancelled_caught
        other = chunk_of(1000, 1)
        with trio.fail_after(10):
            await pair.exchange.put(pair.peer, blake3(other).digest(), other)
        assert len(pair.asking.connections()[0].streams) == 2
        assert pair.server.bytes_in_memory == 0


async def test_a_request_cancelled_before_it_was_sent_is_never_sent(
    autojump_clock, open_pair, serve_by_hand
):
    async with open_pair() as pair:
        seen: list[object] = []

        async def watch(raw) -> None:
            while True:
                seen.append(await raw.request())

        serve_by_hand(pair, watch)
        with trio.CancelScope() as scope:
            scope.cancel()
            await pair.exchange.get_unverified(pair.peer, bytes(32))
        await trio.sleep(1)
        assert seen == []


async def test_many_given_up_requests_cost_the_stream_but_not_the_peer(
    autojump_clock, open_pair, serve_by_hand
):
    settings = ExchangeSettings(max_abandoned=4, first_byte_timeout=1000)
    async with open_pair(settings=settings) as pair:
        streams = 0

        async def never_answer(raw) -> None:
            nonlocal streams
            streams += 1
            while True:
                await raw.request()

        serve_by_hand(pair, never_answer)
        for _ in range(12):
            with trio.move_on_after(0.5):
                await pair.exchange.info(pair.peer)
        assert streams == 3


async def test_a_cancelled_offer_frees_the_servers_memory(
    autojump_clock, open_pair, speak_to, chunk_of
):
    async with open_pair() as pair:
        raw = await speak_to(pair)
        await raw.send(Put(1, bytes(32), 5 * MIB, 60, False))
        assert await raw.answer() == Proceed(1)
        assert pair.server.bytes_in_memory == 5 * MIB
        await raw.send(Cancel(1))
        assert await raw.answer() == Refused(1, Reason.CANCELLED, None, "")
        assert pair.server.bytes_in_memory == 0
        await raw.send(Get(2, bytes(32), 0, None))
        assert (await raw.answer()).reason == Reason.NOT_FOUND


async def test_an_idle_stream_is_closed_and_opened_again_when_needed(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(settings=ExchangeSettings(idle_secs=30)) as pair:
        await pair.exchange.info(pair.peer)
        await trio.sleep(29)
        assert pair.asking.connections()[0].streams
        await trio.sleep(2)
        assert not pair.asking.connections()[0].streams
        await pair.exchange.info(pair.peer)


async def test_more_requests_than_the_peer_takes_at_once_wait_here(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(settings=ExchangeSettings(requests_per_peer=5)) as pair:
        digests = [pair.store.add(chunk_of(1000, seed)) for seed in range(50)]
        await _in_time([(pair.exchange.get_unverified, pair.peer, digest) for digest in digests])
        assert 1 < pair.store.most_reading <= 5
        assert pair.server.counts.refusals == {}


async def test_a_refused_request_says_when_to_come_back(autojump_clock, open_pair, serve_by_hand):
    async with open_pair() as pair:

        async def refuse(raw) -> None:
            request = await raw.request()
            await raw.send(Refused(request.id, "a_newer_reason", 1500, "try later"))
            await raw.request()

        serve_by_hand(pair, refuse)
        with pytest.raises(PeerRefusedError) as caught:
            await pair.exchange.info(pair.peer)
        assert (caught.value.reason, caught.value.retry_after) == ("a_newer_reason", 1.5)


async def test_a_long_body_given_up_on_a_slow_line_is_cut_and_frees_the_server(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(bandwidth=1e6) as pair:
        digest = pair.store.add(chunk_of(8 * MIB))
        with trio.move_on_after(1.0):
            await pair.exchange.get_unverified(pair.peer, digest)
        await trio.sleep(0.2)
        assert pair.server.bytes_in_memory == 0
        # What came in a second, and one window that was on its way.
        assert pair.exchange.stats[pair.peer].bytes_received < 1e6 + 400_000
        assert await pair.exchange.have(pair.peer, [digest]) == [True]
        assert pair.exchange.stats[pair.peer].failures == 0


async def test_a_long_put_given_up_on_a_slow_line_is_cut_and_frees_the_server(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(bandwidth=1e6) as pair:
        data = chunk_of(8 * MIB)
        with trio.move_on_after(1.0):
            await pair.exchange.put(pair.peer, blake3(data).digest(), data)
        await trio.sleep(0.2)
        assert pair.server.bytes_in_memory == 0
        assert pair.exchange.stats[pair.peer].bytes_sent < 1e6 + 400_000
        assert (await pair.exchange.info(pair.peer)).name == "attic"


@asynccontextmanager
async def _long_body_under_way(pair, chunk_of) -> AsyncIterator[trio.CancelScope]:
    """A get of 8 MiB, of which one MB is here; cancel what this yields to give it up."""
    digest = pair.store.add(chunk_of(8 * MIB))
    scope = trio.CancelScope()

    async def get() -> None:
        with scope:
            await pair.exchange.get_unverified(pair.peer, digest)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get)
        await trio.sleep(1.0)
        yield scope


ONE_STREAM = ExchangeSettings(streams_per_peer=1)


async def test_a_long_body_given_up_is_cut_and_those_behind_it_ask_again(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(bandwidth=1e6, settings=ONE_STREAM) as pair:
        data = chunk_of(MIB, 1)
        digest = pair.store.add(data)
        got = []

        async def get() -> None:
            got.append(await pair.exchange.get_unverified(pair.peer, digest))

        async with _long_body_under_way(pair, chunk_of) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(get)
                nursery.start_soon(pair.exchange.have, pair.peer, [digest])
                await trio.sleep(0.1)
                scope.cancel()
                began = trio.current_time()
            assert trio.current_time() - began < 1.6  # the rest of the first takes seven seconds
        assert got == [data]
        stats = pair.exchange.stats[pair.peer]
        assert stats.bytes_received < 1.1e6 + MIB + 400_000
        assert (stats.failures, stats.in_flight_requests) == (0, 0)
        assert pair.server.bytes_in_memory == 0


async def test_a_put_that_has_begun_keeps_the_stream_on_which_a_long_body_was_given_up(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(bandwidth=1e6, settings=ONE_STREAM) as pair:
        small = chunk_of(1000, 1)
        async with _long_body_under_way(pair, chunk_of) as scope, trio.open_nursery() as nursery:
            nursery.start_soon(pair.exchange.put, pair.peer, blake3(small).digest(), small)
            await trio.sleep(0.1)
            streams = set(pair.asking.connections()[0].streams)
            scope.cancel()
        assert set(pair.asking.connections()[0].streams) == streams
        assert len(pair.kept) == 1
        assert pair.exchange.stats[pair.peer].duplicates == 1


async def test_a_body_that_comes_for_somebody_is_not_cut_for_one_given_up_behind_it(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(bandwidth=1e6, settings=ONE_STREAM) as pair:
        data = [chunk_of(4 * MIB, seed) for seed in (1, 2)]
        digests = [pair.store.add(chunk) for chunk in data]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.exchange.get_unverified, pair.peer, digests[0])
            await trio.sleep(0.5)
            with trio.move_on_after(0.5):
                await pair.exchange.get_unverified(pair.peer, digests[1])
        assert pair.exchange.stats[pair.peer].bytes_received < 4 * MIB + 1000
        assert len(pair.asking.connections()[0].streams) == 2  # both ends of one
