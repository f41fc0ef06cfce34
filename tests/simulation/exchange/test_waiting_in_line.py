"""More requests than a server takes at once: they wait their turn, and nothing locks up."""

from __future__ import annotations

import pytest
import trio
from blake3 import blake3
from meshnode.errors import PeerError, PeerRefusedError
from meshnode.node.exchange import Reason, ServerLimits
from meshnode.node.exchange.messages import AskInfo, Cancel, Data, Get, Info, Proceed, Put, Refused
from trio.testing import wait_all_tasks_blocked

MIB = 1024 * 1024


async def test_a_flood_is_served_at_the_rate_of_the_bucket_and_others_at_once(
    autojump_clock, open_pair, speak_to
):
    limits = ServerLimits(requests_per_second=10, request_burst=10)
    async with open_pair(limits=limits) as pair:
        raw = await speak_to(pair)
        start = trio.current_time()
        for ident in range(1, 61):
            await raw.send(AskInfo(ident))
        await trio.sleep(0.1)
        stranger = pair.network.add_host()
        pair.network.introduce()
        other = type(raw)(await stranger.open_stream(pair.peer, raw.stream.protocol))
        await other.send(AskInfo(1))
        assert isinstance(await other.answer(), Info)
        assert trio.current_time() - start < 1
        answers = [await raw.answer() for _ in range(60)]
        assert all(isinstance(answer, Info) for answer in answers)
        assert 4.9 < trio.current_time() - start < 6


async def test_a_request_that_the_rate_would_hold_up_for_long_is_refused_as_busy(
    autojump_clock, open_pair, speak_to
):
    limits = ServerLimits(requests_per_second=1, request_burst=10)
    async with open_pair(limits=limits) as pair:
        raw = await speak_to(pair)
        for ident in range(1, 15):
            await raw.send(AskInfo(ident))
        answers = {answer.id: answer for answer in [await raw.answer() for _ in range(14)]}
        assert all(isinstance(answers[ident], Info) for ident in range(1, 13))
        assert [answers[ident].reason for ident in (13, 14)] == [Reason.BUSY] * 2
        assert 2500 < answers[13].retry_after_ms < answers[14].retry_after_ms


async def test_a_flood_is_not_forgiven_by_reconnecting(autojump_clock, open_pair, speak_to):
    limits = ServerLimits(requests_per_second=1, request_burst=10)
    async with open_pair(limits=limits) as pair:
        for _ in range(2):
            raw = await speak_to(pair)
            for ident in range(1, 17):
                await raw.send(AskInfo(ident))
            answers = [await raw.answer() for _ in range(16)]
            await raw.stream.reset()
            stranger = pair.network.add_host()  # makes the server forget accounts without debts
            pair.network.introduce()
            other = type(raw)(await stranger.open_stream(pair.peer, raw.stream.protocol))
            await other.send(AskInfo(1))
            assert isinstance(await other.answer(), Info)
        assert all(isinstance(answer, Refused) for answer in answers)


async def test_more_requests_at_once_than_allowed_wait_their_turn(
    autojump_clock, open_pair, speak_to, chunk_of
):
    async with open_pair(limits=ServerLimits(requests_per_peer=4)) as pair:
        digests = [pair.store.add(chunk_of(10, seed)) for seed in range(12)]
        gate = trio.Event()
        pair.store.gates.update(dict.fromkeys(digests, gate))
        raw = await speak_to(pair)
        for ident, digest in enumerate(digests, start=1):
            await raw.send(Get(ident, digest, 0, None))
        await trio.sleep(60)
        assert pair.store.most_reading == 4
        gate.set()
        answered = set()
        for _ in digests:
            answer = await raw.answer()
            assert isinstance(answer, Data)
            await raw.body(10)
            answered.add(answer.id)
        assert answered == set(range(1, 13))
        assert pair.store.most_reading == 4


async def test_a_request_that_waits_its_turn_can_be_cancelled(
    autojump_clock, open_pair, speak_to, chunk_of
):
    async with open_pair(limits=ServerLimits(requests_per_peer=1)) as pair:
        digest = pair.store.add(chunk_of(10))
        pair.store.gates[digest] = trio.Event()
        raw = await speak_to(pair)
        await raw.send(Get(1, digest, 0, None))
        await raw.send(AskInfo(2))
        await raw.send(Cancel(2))
        answer = await raw.answer()
        assert (answer.id, answer.reason) == (2, Reason.CANCELLED)
        await raw.send(Cancel(1))
        assert (await raw.answer()).reason == Reason.CANCELLED
        await raw.send(AskInfo(3))
        assert isinstance(await raw.answer(), Info)


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("waiting", [1, 512])
@pytest.mark.parametrize("rate", [20.0, float("inf")])
async def test_puts_and_gets_of_all_sizes_go_through_however_few_are_served_at_once(
    autojump_clock, open_pair, chunk_of, at_once, waiting, rate
):
    limits = ServerLimits(
        requests_per_peer=at_once,
        waiting_per_peer=waiting,
        memory_bytes=8 * MIB,
        requests_per_second=rate,
        request_burst=rate,
    )
    sizes = [0, 10, 200_000, 300_000, 3 * MIB, 5 * MIB] * 3
    chunks = [chunk_of(size, seed) for seed, size in enumerate(sizes)]
    async with open_pair(limits=limits, bandwidth=2e6) as pair:

        async def put_and_get(data: bytes) -> None:
            digest = blake3(data).digest()
            for _ in range(100):
                try:
                    await pair.exchange.put(pair.peer, digest, data)
                    assert await pair.exchange.get(pair.peer, digest) == data
                    return
                except PeerRefusedError as error:
                    if error.reason != Reason.BUSY:
                        raise
                    await trio.sleep(error.retry_after or 1)
                except PeerError:
                    # Not read for longer than the transport bears with (two large bodies ahead of
                    # it on this slow link): asked again, as every scheduler does.
                    await trio.sleep(1)
            raise AssertionError("refused for ever")

        with trio.fail_after(250):
            async with trio.open_nursery() as nursery:
                for data in chunks:
                    nursery.start_soon(put_and_get, data)
        await wait_all_tasks_blocked()
        assert pair.server.bytes_in_memory == 0


async def test_a_stream_lost_while_it_is_not_read_leaves_nothing_in_its_peers_line(
    autojump_clock, open_pair, speak_to, chunk_of
):
    async with open_pair(limits=ServerLimits(memory_bytes=8 * MIB)) as pair:
        large, small = pair.store.add(chunk_of(8 * MIB)), pair.store.add(chunk_of(0))
        pair.store.gates.update({large: trio.Event(), small: trio.Event()})
        holding, lost = await speak_to(pair), await speak_to(pair)
        await holding.send(Get(1, large, 0, None))
        await lost.send(Get(1, small, 0, None))
        await trio.sleep(1)
        await lost.send(Put(2, bytes(32), 1000, 60, True), bytes(1000))
        await trio.sleep(1)
        line = pair.server._accounts.of(bytes(pair.asking.peer_id)).line
        assert line.taken == 3
        await lost.stream.reset()
        await trio.sleep(1)
        pair.store.gates[small].set()
        await trio.sleep(1)
        assert line.taken == 1


async def test_nothing_is_refused_when_a_good_client_asks_much_of_a_server_of_few_turns(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(limits=ServerLimits(requests_per_peer=1), bandwidth=1e6) as pair:
        chunks = [chunk_of(size, seed) for seed, size in enumerate([1000, MIB, 8 * MIB] * 4)]
        async with trio.open_nursery() as nursery:
            for data in chunks:
                nursery.start_soon(pair.exchange.put, pair.peer, blake3(data).digest(), data)
        assert pair.server.counts.refusals == {}
        assert len(pair.kept) == len(chunks)


async def test_no_stream_is_left_unread_until_its_peer_takes_it_for_stalled(
    autojump_clock, open_pair, speak_to, chunk_of
):
    async with open_pair(limits=ServerLimits(memory_bytes=8 * MIB)) as pair:
        large = pair.store.add(chunk_of(8 * MIB))
        pair.store.gates[large] = trio.Event()
        holding, other = await speak_to(pair), await speak_to(pair)
        await holding.send(Get(1, large, 0, None))
        await trio.sleep(0.1)
        start = trio.current_time()
        await other.send(Put(1, bytes(32), 200_000, 60, True), bytes(200_000))
        await other.send(AskInfo(2))
        refused = await other.answer()
        assert (refused.id, refused.reason) == (1, Reason.BUSY)
        assert isinstance(await other.answer(), Info)
        assert 1.9 < trio.current_time() - start < 2.5


async def test_an_id_can_be_used_again_as_soon_as_its_answer_is_there(
    autojump_clock, open_pair, speak_to
):
    async with open_pair(latency=0.0) as pair:
        raw = await speak_to(pair)
        for _ in range(50):
            await raw.send(AskInfo(1))
            assert isinstance(await raw.answer(), Info)
            await raw.send(Put(1, bytes(32), MIB, 60, False))
            assert await raw.answer() == Proceed(1)
            await raw.send(Cancel(1))
            assert (await raw.answer()).reason == Reason.CANCELLED
        assert pair.server.counts.protocol_errors == 0
