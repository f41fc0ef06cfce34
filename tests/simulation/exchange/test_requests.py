"""What a client gets from an honest server."""

from __future__ import annotations

import pytest
import trio
from blake3 import blake3
from meshnode.errors import PeerRefusedError, UsageError
from meshnode.node.exchange import (
    BandwidthLimits,
    ChunkServer,
    Kept,
    PeerInfo,
    PeerStatsTable,
    Reason,
    ServerLimits,
    open_exchange,
)
from meshnode.node.exchange.messages import MAX_HAVE
from meshnode.node.identity import verify

MIB = 1024 * 1024


async def test_a_chunk_arrives_whole(autojump_clock, open_pair, chunk_of):
    async with open_pair() as pair:
        data = chunk_of(3 * MIB + 17)
        digest = pair.store.add(data)
        assert await pair.exchange.get(pair.peer, digest) == data
        assert await pair.exchange.get_unverified(pair.peer, digest, 0, len(data)) == data


async def test_ranges_are_those_of_the_chunk(autojump_clock, open_pair, chunk_of):
    async with open_pair() as pair:
        data = chunk_of(100_000)
        digest = pair.store.add(data)
        assert await pair.exchange.get(pair.peer, digest, 5, 10) == data[5:15]
        assert await pair.exchange.get_unverified(pair.peer, digest, 5, 10) == data[5:15]
        assert await pair.exchange.get_unverified(pair.peer, digest, 99_990) == data[-10:]
        assert await pair.exchange.get_unverified(pair.peer, digest, 100_000) == b""


async def test_bytes_come_in_the_memory_of_whoever_asks(autojump_clock, open_pair, chunk_of):
    async with open_pair() as pair:
        data = chunk_of(700_000)
        digest = pair.store.add(data)
        memory = memoryview(bytearray(400_000))
        for download in (0, 1_000_000):  # at once, and in the pieces of a limited line
            pair.exchange.traffic.set_limits(BandwidthLimits(download=download))
            memory[:] = bytes(400_000)
            came = await pair.exchange.get_unverified(
                pair.peer, digest, 300_000, 400_000, into=lambda: memory
            )
            assert came is memory
            assert memory == data[300_000:]


async def test_memory_is_asked_for_only_as_bytes_begin_to_come(autojump_clock, open_pair, chunk_of):
    async with open_pair() as pair, trio.open_nursery() as nursery:
        lent: set[bytes] = set()
        most = 0

        async def get(digest: bytes) -> None:
            def into() -> memoryview:
                nonlocal most
                lent.add(digest)
                most = max(most, len(lent))
                return memoryview(bytearray(300_000))

            await pair.exchange.get_unverified(pair.peer, digest, 0, 300_000, into=into)
            lent.remove(digest)

        for number in range(24):
            nursery.start_soon(get, pair.store.add(chunk_of(300_000, number)))
        with pytest.raises(PeerRefusedError):
            await get(bytes(32))
        assert 0 < most <= 4  # two streams; their readers may be one answer ahead of the askers
    assert not lent


async def test_a_whole_chunk_of_known_length_costs_one_visit_to_the_store(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair() as pair:
        data = chunk_of(400_000)
        digest = pair.store.add(data)
        assert await pair.exchange.get_unverified(pair.peer, digest, 0, len(data)) == data
        assert pair.store.visits == 1
        # What is not known costs a look at it, before there is room for it.
        assert await pair.exchange.get_unverified(pair.peer, digest) == data
        assert await pair.exchange.get_unverified(pair.peer, digest, 0, 100) == data[:100]
        assert pair.store.visits > 4
        with pytest.raises(PeerRefusedError) as caught:
            await pair.exchange.get_unverified(pair.peer, digest, 0, len(data) + 1)
        assert caught.value.reason == Reason.BAD_RANGE


async def test_an_empty_chunk_is_a_chunk(autojump_clock, open_pair):
    async with open_pair() as pair:
        digest = blake3(b"").digest()
        await pair.exchange.put(pair.peer, digest, b"")
        assert await pair.exchange.get(pair.peer, digest) == b""


async def test_a_range_outside_the_chunk_is_refused(autojump_clock, open_pair, chunk_of):
    async with open_pair() as pair:
        digest = pair.store.add(chunk_of(100))
        with pytest.raises(PeerRefusedError) as caught:
            await pair.exchange.get_unverified(pair.peer, digest, 90, 11)
        assert caught.value.reason == Reason.BAD_RANGE
        with pytest.raises(UsageError):
            await pair.exchange.get(pair.peer, digest, 90, 11)


async def test_a_missing_chunk_is_not_found(autojump_clock, open_pair):
    async with open_pair() as pair:
        with pytest.raises(PeerRefusedError) as caught:
            await pair.exchange.get(pair.peer, bytes(32))
        assert caught.value.reason == Reason.NOT_FOUND
        assert pair.exchange.stats[pair.peer].success_rate == 1.0


async def test_a_rotten_chunk_is_refused_and_not_sent(autojump_clock, open_pair, chunk_of):
    async with open_pair() as pair:
        digest = pair.store.add(chunk_of(1000))
        pair.store.chunks[digest] = chunk_of(1000, seed=1)
        with pytest.raises(PeerRefusedError) as caught:
            await pair.exchange.get(pair.peer, digest)
        assert caught.value.reason == Reason.CORRUPT


async def test_have_answers_in_order_beyond_one_message(autojump_clock, open_pair, chunk_of):
    async with open_pair() as pair:
        digests = [blake3(n.to_bytes(4, "big")).digest() for n in range(MAX_HAVE + 1000)]
        held = {digests[0], digests[MAX_HAVE - 1], digests[MAX_HAVE], digests[-1]}
        for digest in held:
            pair.store.chunks[digest] = b"x"
        flags = await pair.exchange.have(pair.peer, digests)
        assert flags == [digest in held for digest in digests]
        assert await pair.exchange.have(pair.peer, []) == []


async def test_what_a_node_says_of_itself_is_cut_to_fit(autojump_clock, open_pair):
    async def boast() -> PeerInfo:
        return PeerInfo("\N{SNOWMAN}" * 1000, "z" * 1000, -5, "v" * 1000, 1)

    async with open_pair() as pair:
        server = ChunkServer(pair.serving, pair.store, identity=pair.holder, info_provider=boast)
        async with server.serving():
            told = await pair.exchange.info(pair.peer)
    assert told == PeerInfo("\N{SNOWMAN}" * 85, "z" * 255, 0, "v" * 64, 1)


async def test_a_release_lets_go_of_what_was_kept_for_the_asking_peer_only(
    autojump_clock, open_pair, speak_to, chunk_of
):
    async with open_pair() as pair:
        digests = []
        for seed in range(3):
            data = chunk_of(100, seed)
            digests.append(blake3(data).digest())
            await pair.exchange.put(pair.peer, digests[-1], data)
        stranger = pair.network.add_host()
        pair.network.introduce()
        async with open_exchange(stranger, identity=pair.holder) as theirs:
            assert await theirs.release(pair.peer, digests) == 0
        assert len(pair.kept) == 3
        assert await pair.exchange.release(pair.peer, [*digests[:2], bytes(32)]) == 2
        assert [kept.digest for kept in pair.kept] == digests[2:]


async def test_info_is_what_the_node_says(autojump_clock, open_pair, chunk_of):
    async with open_pair() as pair:
        pair.store.add(chunk_of(10))
        assert await pair.exchange.info(pair.peer) == PeerInfo("attic", "home", 12345, "1.2.3", 1)


@pytest.mark.parametrize("size", [1, 48 * 1024, 256 * 1024, 256 * 1024 + 1, 5 * MIB])
async def test_a_put_is_stored_and_its_receipt_can_be_checked_by_anyone(
    autojump_clock, open_pair, chunk_of, size
):
    async with open_pair() as pair:
        data = chunk_of(size)
        digest = blake3(data).digest()
        receipt = await pair.exchange.put(pair.peer, digest, data, lease_secs=1000)
        assert pair.store.chunks[digest] == data
        assert receipt.is_valid(verify)
        assert (receipt.holder, receipt.owner) == (pair.peer, pair.owner.peer_id)
        assert (receipt.digest, receipt.size) == (digest, size)
        assert (receipt.issued, receipt.until) == (1_700_000_000, 1_700_001_000)
        assert pair.kept == [Kept(digest, size, pair.owner.peer_id, 1_700_001_000, True)]


async def test_a_held_chunk_gets_a_receipt_without_its_bytes(autojump_clock, open_pair, chunk_of):
    async with open_pair() as pair:
        data = chunk_of(4 * MIB)
        digest = pair.store.add(data)
        receipt = await pair.exchange.put(pair.peer, digest, data)
        assert receipt.is_valid(verify)
        assert pair.server.counts.bytes_received < 1000
        assert [kept.new for kept in pair.kept] == [False]


async def test_a_lease_longer_than_the_server_grants_is_shortened(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(limits=ServerLimits(max_lease_secs=60)) as pair:
        data = chunk_of(10)
        receipt = await pair.exchange.put(pair.peer, blake3(data).digest(), data, lease_secs=1000)
        assert receipt.until - receipt.issued == 60


@pytest.mark.parametrize("size", [1000, MIB])
async def test_a_put_with_a_wrong_digest_is_refused_and_leaves_the_stream_whole(
    autojump_clock, open_pair, chunk_of, size
):
    async with open_pair() as pair:
        with pytest.raises(PeerRefusedError) as caught:
            await pair.exchange.put(pair.peer, bytes(32), chunk_of(size))
        assert caught.value.reason == Reason.BAD_DIGEST
        assert not pair.store.chunks
        assert not pair.kept
        assert await pair.exchange.have(pair.peer, [bytes(32)]) == [False]
        assert len(pair.asking.connections()[0].streams) == 2  # both ends of one


async def test_a_put_beyond_the_quota_is_refused_before_its_body_is_sent(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair() as pair:
        pair.store.set_quota(MIB)
        data = chunk_of(MIB + 1)
        with pytest.raises(PeerRefusedError) as caught:
            await pair.exchange.put(pair.peer, blake3(data).digest(), data)
        assert caught.value.reason == Reason.QUOTA
        assert caught.value.retry_after
        assert pair.server.counts.bytes_received < 1000


async def test_a_chunk_above_the_servers_limit_is_refused_before_its_body_is_sent(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(limits=ServerLimits(max_chunk_bytes=MIB)) as pair:
        data = chunk_of(MIB + 1)
        with pytest.raises(PeerRefusedError) as caught:
            await pair.exchange.put(pair.peer, blake3(data).digest(), data)
        assert caught.value.reason == Reason.TOO_LARGE
        assert pair.server.counts.bytes_received < 1000


async def test_a_failing_store_fails_the_request_and_not_the_stream(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair() as pair:
        digest = pair.store.add(chunk_of(1000))
        pair.store.broken = True
        with pytest.raises(PeerRefusedError) as caught:
            await pair.exchange.get(pair.peer, digest)
        assert caught.value.reason == Reason.FAILED
        assert pair.exchange.stats[pair.peer].failures == 1
        pair.store.broken = False
        assert len(await pair.exchange.get(pair.peer, digest)) == 1000
        assert pair.server.counts.faults == 1


async def test_no_chunk_is_acknowledged_before_it_is_durable(autojump_clock, open_pair, chunk_of):
    async with open_pair() as pair:
        data = chunk_of(MIB)
        digest = blake3(data).digest()
        pair.store.gates[digest] = trio.Event()
        with trio.move_on_after(4) as waiting:
            await pair.exchange.put(pair.peer, digest, data)
        assert waiting.cancelled_caught
        assert not pair.kept


async def test_a_chunk_removed_while_it_is_promised_is_not_acknowledged(
    autojump_clock, open_pair, chunk_of
):
    removals = 1
    async with open_pair() as pair:
        data = chunk_of(MIB)
        digest = pair.store.add(data)

        async def remove(_: Kept) -> None:
            nonlocal removals
            if removals:
                removals -= 1
                await pair.store.delete([digest])

        server = ChunkServer(
            pair.serving,
            pair.store,
            identity=pair.holder,
            info_provider=lambda: pair.exchange.info(pair.peer),
            on_stored=remove,
        )
        async with server.serving():
            await pair.exchange.put(pair.peer, digest, data)  # held, then gone, so sent after all
            assert pair.store.chunks[digest] == data
            removals = 2
            with pytest.raises(PeerRefusedError):
                await pair.exchange.put(pair.peer, digest, data)


async def test_a_stopping_server_finishes_what_is_under_way_and_refuses_the_rest(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair() as pair:
        digest = pair.store.add(chunk_of(1000))
        pair.store.gates[digest] = gate = trio.Event()
        bodies: list[bytes] = []

        async def get() -> None:
            bodies.append(await pair.exchange.get(pair.peer, digest))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get)
            await trio.sleep(0.1)
            async with trio.open_nursery() as stopping:

                async def stop() -> None:
                    async with pair.server.serving():
                        pass

                stopping.start_soon(stop)
                await trio.sleep(0.1)
                with pytest.raises(PeerRefusedError) as caught:
                    await pair.exchange.info(pair.peer)
                assert caught.value.reason == Reason.SHUTTING_DOWN
                gate.set()
                stopping.cancel_scope.deadline = trio.current_time() + 1.0  # not the whole grace
            assert not stopping.cancel_scope.cancelled_caught
            assert trio.current_time() < 1.5
        assert len(bodies[0]) == 1000


async def test_statistics_tell_what_was_asked(autojump_clock, open_pair, chunk_of):
    async with open_pair(latency=0.1, bandwidth=1e6) as pair:
        data = chunk_of(MIB)
        digest = pair.store.add(data)
        await pair.exchange.get(pair.peer, digest)
        stats = pair.exchange.stats[pair.peer]
        assert stats.bytes_received > MIB
        assert stats.latency == pytest.approx(0.2, rel=0.5)
        assert stats.throughput == pytest.approx(1e6, rel=0.3)
        assert (stats.in_flight_requests, stats.in_flight_bytes) == (0, 0)
        other = chunk_of(MIB, seed=1)
        await pair.exchange.put(pair.peer, blake3(other).digest(), other)
        assert stats.upload.rate() == pytest.approx(1e6, rel=0.5)
        assert pair.exchange.stats.expected_seconds(pair.peer, MIB) == pytest.approx(1.3, rel=0.3)


async def test_what_is_learned_goes_into_the_table_that_was_given_even_an_empty_one(
    autojump_clock, open_pair
):
    table = PeerStatsTable()
    async with (
        open_pair() as pair,
        open_exchange(pair.asking, identity=pair.owner, stats=table) as exchange,
    ):
        await exchange.info(pair.peer)
        assert list(table) == [pair.peer]
