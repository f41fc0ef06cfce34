"""Clients that flood, stall, lie or break the protocol, seen from the server."""

from __future__ import annotations

import pytest
import trio
from blake3 import blake3
from meshnode.errors import PeerError
from meshnode.node.exchange import Reason, ServerLimits
from meshnode.node.exchange.messages import (
    AskInfo,
    Body,
    Cancel,
    Data,
    Get,
    Info,
    Proceed,
    Put,
    Refused,
    Reserved,
    Stored,
)
from meshnode.node.exchange.wire import OP_AUDIT, encode
from trio.testing import wait_all_tasks_blocked

MIB = 1024 * 1024


async def _is_ended(raw) -> bool:
    try:
        return await raw.stream.read_some() == b""
    except PeerError:
        return True


BROKEN = {
    "an unknown op": b"\x00\x00\x00\x03\x92\x7f\x01",
    "an answer instead of a request": b"\x00\x00\x00\x03\x92\x42\x01",
    "a header of 4 GiB": b"\xff\xff\xff\xff\x92\x01",
    "a GET header larger than a GET": b"\x00\x00\x10\x00\x92\x02",
    "not msgpack": b"\x00\x00\x00\x04\x92\x02\xc1\xc1",
    "not canonical": b"\x00\x00\x00\x04\x92\x06\xcc\x01",
    "an inline body above its bound": encode(Put(1, bytes(32), 256 * 1024 + 1, 60, False))[:-1]
    + b"\xc3",
    "a body nobody asked for": encode(Body(1, 10)) + bytes(10),
    "an id in use": encode(Put(1, bytes(32), MIB, 60, False)) * 2,
    "a body before the go-ahead": encode(Put(1, bytes(32), MIB, 60, False)) + encode(Body(1, 10)),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_request_ends_its_stream_and_nothing_else(
    autojump_clock, open_pair, speak_to, broken
):
    async with open_pair() as pair:
        raw = await speak_to(pair)
        await raw.stream.write(broken)
        with trio.fail_after(5):
            while not await _is_ended(raw):
                pass
        await wait_all_tasks_blocked()
        assert pair.server.counts.protocol_errors == 1
        assert pair.server.bytes_in_memory == 0
        assert (await pair.exchange.info(pair.peer)).name == "attic"


async def test_a_reserved_operation_is_politely_refused(autojump_clock, open_pair, speak_to):
    async with open_pair() as pair:
        raw = await speak_to(pair)
        await raw.send(Reserved(7, OP_AUDIT))
        assert await raw.answer() == Refused(7, Reason.UNSUPPORTED, None, "")


@pytest.mark.parametrize("length", [10, MIB + 1])
async def test_a_body_of_another_length_than_was_offered_ends_the_stream(
    autojump_clock, open_pair, speak_to, length
):
    async with open_pair() as pair:
        raw = await speak_to(pair)
        await raw.send(Put(1, bytes(32), MIB, 60, False))
        assert await raw.answer() == Proceed(1)
        await raw.send(Body(1, length))
        assert await _is_ended(raw)
        await wait_all_tasks_blocked()
        assert pair.server.counts.protocol_errors == 1
        assert pair.server.bytes_in_memory == 0


async def test_bytes_after_a_body_are_the_next_request(
    autojump_clock, open_pair, speak_to, chunk_of
):
    async with open_pair() as pair:
        raw = await speak_to(pair)
        data = chunk_of(1000)
        await raw.send(Put(1, blake3(data).digest(), 999, 60, True), data[:999])
        await raw.send(Put(2, blake3(data).digest(), 1000, 60, True), data)
        answers = {answer.id: answer for answer in [await raw.answer(), await raw.answer()]}
        assert answers[1].reason == Reason.BAD_DIGEST
        assert isinstance(answers[2], Stored)


async def test_more_streams_than_allowed_are_reset(autojump_clock, open_pair, speak_to):
    async with open_pair(limits=ServerLimits(streams_per_peer=2)) as pair:
        streams = [await speak_to(pair) for _ in range(3)]
        for raw in streams[:2]:
            await raw.send(AskInfo(1))
            await raw.answer()
        assert await _is_ended(streams[2])


async def test_memory_stays_bounded_however_much_a_peer_asks_and_does_not_read(
    autojump_clock, open_pair, speak_to, chunk_of
):
    limits = ServerLimits(memory_bytes=16 * MIB, memory_per_peer=8 * MIB)
    async with open_pair(limits=limits) as pair:
        digests = [pair.store.add(chunk_of(2 * MIB, seed)) for seed in range(20)]
        raw = await speak_to(pair)
        for ident, digest in enumerate(digests, start=1):
            await raw.send(Get(ident, digest, 0, None))
        await trio.sleep(2)
        assert 0 < pair.server.bytes_in_memory <= 8 * MIB
        await trio.sleep(200)  # the transport's stall deadline
        assert pair.server.bytes_in_memory == 0
        assert (await pair.exchange.info(pair.peer)).name == "attic"


async def test_a_peer_that_reads_drop_by_drop_is_cut_off(
    autojump_clock, open_pair, speak_to, chunk_of
):
    async with open_pair(limits=ServerLimits(least_rate=64 * 1024)) as pair:
        digest = pair.store.add(chunk_of(4 * MIB))
        raw = await speak_to(pair)
        await raw.send(Get(1, digest, 0, None))
        await raw.answer()
        start = trio.current_time()

        async def read_slowly() -> None:
            while True:
                await raw.body(4096)
                await trio.sleep(1)

        with pytest.raises(PeerError):
            await read_slowly()
        await wait_all_tasks_blocked()
        assert trio.current_time() - start < 120
        assert pair.server.bytes_in_memory == 0


async def test_memory_taken_by_others_is_waited_for_and_then_refused(
    autojump_clock, open_pair, speak_to, chunk_of
):
    limits = ServerLimits(memory_bytes=8 * MIB, memory_per_peer=8 * MIB, memory_wait_secs=2)
    async with open_pair(limits=limits) as pair:
        stranger = pair.network.add_host()
        pair.network.introduce()
        raw = await speak_to(pair)
        await raw.send(Put(1, bytes(32), 8 * MIB, 60, False))
        assert await raw.answer() == Proceed(1)
        other = type(raw)(await stranger.open_stream(pair.peer, raw.stream.protocol))
        digest = pair.store.add(chunk_of(MIB))
        await other.send(Get(1, digest, 0, None))
        start = trio.current_time()
        answer = await other.answer()
        assert (answer.reason, bool(answer.retry_after_ms)) == (Reason.BUSY, True)
        assert 1.9 < trio.current_time() - start < 2.5
        await raw.stream.reset()
        await trio.sleep(1)
        await other.send(Get(2, digest, 0, None))
        assert isinstance(await other.answer(), Data)


async def test_small_puts_are_drained_and_refused_when_memory_is_short(
    autojump_clock, open_pair, speak_to, chunk_of
):
    limits = ServerLimits(memory_bytes=8 * MIB, memory_per_peer=8 * MIB)
    async with open_pair(limits=limits) as pair:
        raw = await speak_to(pair)
        await raw.send(Put(1, bytes(32), 8 * MIB, 60, False))
        assert await raw.answer() == Proceed(1)
        data = chunk_of(200_000)
        await raw.send(Put(2, blake3(data).digest(), len(data), 60, True), data)
        answer = await raw.answer()
        assert (answer.id, answer.reason) == (2, Reason.BUSY)
        await raw.send(AskInfo(3))
        assert isinstance(await raw.answer(), Info)


async def test_a_peer_that_was_given_room_and_sends_nothing_loses_its_stream(
    autojump_clock, open_pair, speak_to
):
    async with open_pair(limits=ServerLimits(body_stall_secs=20)) as pair:
        raw = await speak_to(pair)
        await raw.send(Put(1, bytes(32), MIB, 60, False))
        assert await raw.answer() == Proceed(1)
        start = trio.current_time()
        assert await _is_ended(raw)
        assert 19 < trio.current_time() - start < 21
        await wait_all_tasks_blocked()
        assert pair.server.bytes_in_memory == 0


async def test_a_body_that_stops_half_way_loses_its_stream(
    autojump_clock, open_pair, speak_to, chunk_of
):
    async with open_pair(limits=ServerLimits(body_stall_secs=20)) as pair:
        for inline, size in ((True, 1000), (False, MIB)):
            raw = await speak_to(pair)
            await raw.send(Put(1, bytes(32), size, 60, inline))
            if not inline:
                await raw.answer()
                await raw.send(Body(1, size))
            await raw.stream.write(bytes(size // 2))
            with trio.fail_after(25):
                assert await _is_ended(raw)
            await wait_all_tasks_blocked()
            assert pair.server.bytes_in_memory == 0


async def test_a_stream_on_which_nothing_is_asked_is_closed_in_time(
    autojump_clock, open_pair, speak_to
):
    async with open_pair(limits=ServerLimits(idle_secs=300)) as pair:
        raw = await speak_to(pair)
        start = trio.current_time()
        assert await _is_ended(raw)
        assert 299 < trio.current_time() - start < 302


async def test_a_long_wait_for_an_answer_is_not_idleness(
    autojump_clock, open_pair, speak_to, chunk_of
):
    async with open_pair(limits=ServerLimits(idle_secs=10)) as pair:
        digest = pair.store.add(chunk_of(10))
        pair.store.gates[digest] = gate = trio.Event()
        raw = await speak_to(pair)
        await raw.send(Get(1, digest, 0, None))
        await trio.sleep(60)
        gate.set()
        assert isinstance(await raw.answer(), Data)


async def test_one_peers_slow_reading_does_not_hold_up_another(
    autojump_clock, open_pair, speak_to, chunk_of
):
    async with open_pair() as pair:
        digests = [pair.store.add(chunk_of(2 * MIB, seed)) for seed in range(10)]
        raw = await speak_to(pair)
        for ident, digest in enumerate(digests, start=1):
            await raw.send(Get(ident, digest, 0, None))
        await trio.sleep(1)
        stranger = pair.network.add_host()
        pair.network.introduce()
        other = type(raw)(await stranger.open_stream(pair.peer, raw.stream.protocol))
        with trio.fail_after(1):
            await other.send(Get(1, digests[0], 0, None))
            assert isinstance(await other.answer(), Data)
            await other.body(2 * MIB)


async def test_a_peer_that_sends_bodies_drop_by_drop_holds_up_nobody_and_is_cut_off(
    autojump_clock, open_pair, speak_to, chunk_of
):
    async with open_pair(limits=ServerLimits(memory_bytes=64 * MIB)) as pair:
        slow = [await speak_to(pair) for _ in range(8)]
        for raw in slow[:2]:
            await raw.send(Put(1, bytes(32), 8 * MIB, 60, False))
            assert await raw.answer() == Proceed(1)
            await raw.send(Body(1, 8 * MIB))
        for raw in slow[2:]:
            await raw.send(Put(1, bytes(32), 8 * MIB, 60, False))
        assert pair.server.bytes_in_memory == 16 * MIB
        stranger = pair.network.add_host()
        pair.network.introduce()
        other = type(slow[0])(await stranger.open_stream(pair.peer, slow[0].stream.protocol))
        with trio.fail_after(1):
            data = chunk_of(MIB)
            await other.send(Put(1, blake3(data).digest(), MIB, 60, False))
            assert await other.answer() == Proceed(1)
            await other.send(Body(1, MIB), data)
            assert isinstance(await other.answer(), Stored)
        start = trio.current_time()

        async def drip() -> None:
            while trio.current_time() - start < 3600:
                await slow[0].stream.write(b"x")
                await trio.sleep(15)

        with pytest.raises(PeerError):
            await drip()
        assert 120 < trio.current_time() - start < 300


async def test_a_peer_that_asks_on_and_on_but_sends_no_body_loses_its_stream(
    autojump_clock, open_pair, speak_to
):
    async with open_pair() as pair:
        raw = await speak_to(pair)
        await raw.send(Put(1, bytes(32), MIB, 60, False))
        assert await raw.answer() == Proceed(1)
        start = trio.current_time()

        async def chat() -> None:
            while trio.current_time() - start < 3600:
                await raw.send(AskInfo(2))
                assert isinstance(await raw.answer(), Info)
                await trio.sleep(5)

        with pytest.raises(PeerError):
            await chat()
        assert 40 < trio.current_time() - start < 60
        await wait_all_tasks_blocked()
        assert pair.server.bytes_in_memory == 0


async def test_bodies_at_the_least_rate_are_taken_however_many_are_owed(
    autojump_clock, open_pair, chunk_of
):
    rate = 1.1 * 64 * 1024
    async with open_pair(bandwidth=rate, limits=ServerLimits(memory_bytes=64 * MIB)) as pair:
        chunks = [chunk_of(MIB, seed) for seed in range(12)]
        async with trio.open_nursery() as nursery:
            for data in chunks:
                nursery.start_soon(pair.exchange.put, pair.peer, blake3(data).digest(), data)
        assert len(pair.kept) == len(chunks)


async def test_a_body_that_follows_its_own_cancel_ends_the_stream_and_is_not_read(
    autojump_clock, open_pair, speak_to
):
    async with open_pair() as pair:
        raw = await speak_to(pair)
        await raw.send(Put(1, bytes(32), MIB, 60, False))
        assert await raw.answer() == Proceed(1)
        before = pair.server.counts.bytes_received
        await raw.stream.write(encode(Cancel(1)) + encode(Body(1, MIB)) + bytes(1000))
        await wait_all_tasks_blocked()
        await trio.sleep(1)
        assert pair.server.counts.protocol_errors == 1
        assert pair.server.counts.bytes_received - before < 100
        assert pair.server.bytes_in_memory == 0
