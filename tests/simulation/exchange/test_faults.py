"""Peers that freeze, die, lie or break the protocol, seen from the client."""

from __future__ import annotations

import pytest
import trio
from blake3 import blake3
from meshnode.errors import DeadlineError, IntegrityError, PeerError
from meshnode.node.exchange import BreakerState, ExchangeSettings, Receipt
from meshnode.node.exchange.messages import Data, Get, Have, Held, Proceed, Stored
from meshnode.node.exchange.receipts import issue
from meshnode.node.identity import Identity

MIB = 1024 * 1024


async def test_a_frozen_peer_costs_one_deadline(autojump_clock, open_pair):
    async with open_pair() as pair:
        await pair.exchange.info(pair.peer)
        pair.network.freeze(pair.peer)
        start = trio.current_time()
        with pytest.raises(DeadlineError, match=pair.peer.short):
            await pair.exchange.info(pair.peer, first_byte_timeout=2)
        assert 2 <= trio.current_time() - start < 2.1
        assert pair.exchange.stats[pair.peer].failures == 1


async def test_requests_to_a_frozen_peer_do_not_lengthen_each_others_deadline(
    autojump_clock, open_pair
):
    async with open_pair() as pair:
        await pair.exchange.info(pair.peer)
        pair.network.freeze(pair.peer)

        async def ask_often() -> None:
            while True:
                with trio.move_on_after(0.5):
                    await pair.exchange.info(pair.peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_often)
            with trio.fail_after(2.1), pytest.raises(DeadlineError):
                await pair.exchange.have(pair.peer, [bytes(32)], first_byte_timeout=2)
            nursery.cancel_scope.cancel()


async def test_a_peer_that_freezes_inside_a_body_costs_one_progress_deadline(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(bandwidth=1e6) as pair:
        digest = pair.store.add(chunk_of(4 * MIB))

        async def freeze() -> None:
            await trio.sleep(2)
            pair.network.freeze(pair.peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(freeze)
            start = trio.current_time()
            with pytest.raises(DeadlineError, match="the rest"):
                await pair.exchange.get_unverified(pair.peer, digest, progress_timeout=3)
            assert 4.8 < trio.current_time() - start < 5.5


async def test_a_slow_body_is_no_failure_as_long_as_it_moves(autojump_clock, open_pair, chunk_of):
    async with open_pair(bandwidth=50e3) as pair:
        data = chunk_of(MIB)
        digest = pair.store.add(data)
        start = trio.current_time()
        assert (
            await pair.exchange.get_unverified(
                pair.peer, digest, first_byte_timeout=4, progress_timeout=4
            )
            == data
        )
        assert trio.current_time() - start > 20


async def test_an_answer_that_queues_behind_others_is_not_late(autojump_clock, open_pair, chunk_of):
    async with open_pair(bandwidth=200e3) as pair:
        digests = [pair.store.add(chunk_of(MIB, seed)) for seed in range(6)]
        async with trio.open_nursery() as nursery:
            for digest in digests:
                nursery.start_soon(pair.exchange.get_unverified, pair.peer, digest)
        assert trio.current_time() > 30  # far beyond the five seconds for a first byte
        assert pair.exchange.stats[pair.peer].failures == 0


async def test_a_slow_upload_is_not_late_while_the_network_still_holds_its_bytes(
    autojump_clock, open_pair, chunk_of
):
    # 4 MiB fit into the buffers at once; at 1 MB/s the peer sees the last of them after 4 s.
    async with open_pair(bandwidth=1e6, window=16 * MIB) as pair:
        data = chunk_of(4 * MIB)
        digest = blake3(data).digest()
        await pair.exchange.put(pair.peer, digest, data, first_byte_timeout=2)
        assert trio.current_time() > 4
        assert pair.store.chunks[digest] == data


async def test_a_peer_that_freezes_under_an_upload_is_given_up_in_time(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(bandwidth=1e6) as pair:
        first, second = chunk_of(MIB), chunk_of(MIB, 1)
        await pair.exchange.put(pair.peer, blake3(first).digest(), first)  # its rate is known now
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)

            async def put() -> None:
                with pytest.raises((DeadlineError, PeerError)):
                    await pair.exchange.put(
                        pair.peer, blake3(second).digest(), second, first_byte_timeout=2
                    )

            nursery.start_soon(put)
            await trio.sleep(0.5)
            pair.network.freeze(pair.peer)
        assert trio.current_time() - start < 10


async def test_a_frozen_peer_is_served_by_a_fresh_stream_once_it_is_back(autojump_clock, open_pair):
    async with open_pair() as pair:
        await pair.exchange.info(pair.peer)
        pair.network.freeze(pair.peer)
        with pytest.raises(DeadlineError):
            await pair.exchange.info(pair.peer, first_byte_timeout=1)
        pair.network.thaw(pair.peer)
        assert (await pair.exchange.info(pair.peer)).name == "attic"


async def test_a_killed_peer_fails_all_requests_in_flight_at_once(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(bandwidth=1e6) as pair:
        digest = pair.store.add(chunk_of(4 * MIB))
        ended_at: list[float] = []

        async def get() -> None:
            with pytest.raises(PeerError):
                await pair.exchange.get_unverified(pair.peer, digest)
            ended_at.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(get)
            await trio.sleep(2)
            pair.network.kill(pair.peer)
            killed_at = trio.current_time()
        assert ended_at == [pytest.approx(killed_at, abs=0.1)] * 3
        assert pair.exchange.stats[pair.peer].in_flight_bytes == 0


async def test_after_a_broken_stream_the_next_request_opens_a_fresh_one(autojump_clock, open_pair):
    async with open_pair() as pair:
        await pair.exchange.info(pair.peer)
        pair.network.drop(pair.asking.peer_id, pair.peer)
        await trio.sleep(0.1)
        assert (await pair.exchange.info(pair.peer)).name == "attic"


async def test_an_unreachable_peer_opens_the_breaker(autojump_clock, open_pair):
    async with open_pair() as pair:
        pair.network.kill(pair.peer)
        for _ in range(3):
            with pytest.raises(PeerError):
                await pair.exchange.info(pair.peer)
        stats = pair.exchange.stats[pair.peer]
        assert stats.breaker is BreakerState.OPEN
        assert not stats.allows()
        assert stats.last_error


async def test_false_bytes_are_never_returned_by_get(
    autojump_clock, open_pair, serve_by_hand, chunk_of
):
    async with open_pair() as pair:
        true, false = chunk_of(100_000), chunk_of(100_000, 1)

        async def lie(raw) -> None:
            while True:
                request = await raw.request()
                await raw.send(Data(request.id, len(false), len(false)), false)

        serve_by_hand(pair, lie)
        with pytest.raises(IntegrityError):
            await pair.exchange.get(pair.peer, blake3(true).digest())
        with pytest.raises(IntegrityError):
            await pair.exchange.get(pair.peer, blake3(true).digest(), 10, 20)
        assert pair.exchange.stats[pair.peer].breaker is BreakerState.OPEN
        assert pair.exchange.stats[pair.peer].success_rate == 0.0


WRONG_ANSWERS = {
    "an unknown id": lambda ask: Data(ask.id + 1, 100, 100),
    "a body of another length": lambda ask: Data(ask.id, 100, 99),
    "a range that is not in the chunk": lambda ask: Data(ask.id, 100, 100),
    "the answer to another question": lambda ask: Held(ask.id, (True,)),
    "a go-ahead for a get": lambda ask: Proceed(ask.id),
}


@pytest.mark.parametrize("wrong", WRONG_ANSWERS.values(), ids=WRONG_ANSWERS.keys())
async def test_a_wrong_answer_ends_the_stream_as_nonsense(
    autojump_clock, open_pair, serve_by_hand, wrong
):
    async with open_pair() as pair:

        async def answer_wrongly(raw) -> None:
            request = await raw.request()
            assert isinstance(request, Get)
            await raw.send(wrong(request), bytes(100))
            await trio.sleep_forever()

        serve_by_hand(pair, answer_wrongly)
        with pytest.raises(PeerError, match="nonsense"):
            await pair.exchange.get_unverified(pair.peer, bytes(32), 50, 100)


RAW_GARBAGE = {
    "a header of 4 GiB": b"\xff\xff\xff\xff\x92\x41",
    "a header larger than its op allows": b"\x00\x10\x00\x00\x94\x41",
    "an unknown op": b"\x00\x00\x00\x03\x92\x7f\x01",
    "a request instead of an answer": b"\x00\x00\x00\x03\x92\x04\x01",
    "not msgpack": b"\x00\x00\x00\x04\x94\x41\xc1\xc1",
}


@pytest.mark.parametrize("garbage", RAW_GARBAGE.values(), ids=RAW_GARBAGE.keys())
async def test_garbage_from_a_server_is_a_peer_error(
    autojump_clock, open_pair, serve_by_hand, garbage
):
    async with open_pair() as pair:

        async def send_garbage(raw) -> None:
            await raw.request()
            await raw.stream.write(garbage)
            await trio.sleep_forever()

        serve_by_hand(pair, send_garbage)
        with pytest.raises(PeerError, match="nonsense"):
            await pair.exchange.info(pair.peer)


async def test_too_few_flags_are_nonsense(autojump_clock, open_pair, serve_by_hand):
    async with open_pair() as pair:

        async def forget_one(raw) -> None:
            request = await raw.request()
            assert isinstance(request, Have)
            await raw.send(Held(request.id, (True,)))
            await trio.sleep_forever()

        serve_by_hand(pair, forget_one)
        with pytest.raises(PeerError, match="nonsense"):
            await pair.exchange.have(pair.peer, [bytes(32), bytes(32)])


async def test_a_body_cut_short_is_a_peer_error(autojump_clock, open_pair, serve_by_hand):
    async with open_pair() as pair:

        async def cut_short(raw) -> None:
            request = await raw.request()
            await raw.send(Data(request.id, 100, 100), bytes(99))
            await raw.stream.close()
            await trio.sleep_forever()

        serve_by_hand(pair, cut_short)
        with pytest.raises(PeerError, match="too early"):
            await pair.exchange.get(pair.peer, bytes(32))


MALLORY = Identity.from_seed(b"m" * 32)
NOW = 1_700_000_000


def _forged(pair, put) -> dict[str, Receipt]:
    def by(signer, owner, digest, size, until=NOW + 60) -> Receipt:
        return issue(signer, owner, digest, size, NOW, until)

    owner = pair.owner.peer_id
    return {
        "signed by another": by(MALLORY, owner, put.digest, put.length),
        "made out to another": by(pair.holder, MALLORY.peer_id, put.digest, put.length),
        "for another chunk": by(pair.holder, owner, bytes(32), put.length),
        "for another size": by(pair.holder, owner, put.digest, put.length + 1),
        "over already": by(pair.holder, owner, put.digest, put.length, until=NOW),
        "for longer than asked": by(pair.holder, owner, put.digest, put.length, until=NOW + 61),
    }


@pytest.mark.parametrize(
    "which",
    [
        "signed by another",
        "made out to another",
        "for another chunk",
        "for another size",
        "over already",
        "for longer than asked",
    ],
)
async def test_a_forged_receipt_does_not_count(
    autojump_clock, open_pair, serve_by_hand, chunk_of, which
):
    async with open_pair() as pair:

        async def forge(raw) -> None:
            put = await raw.request()
            await raw.body(put.length)
            receipt = _forged(pair, put)[which]
            await raw.send(Stored(put.id, receipt.issued, receipt.until, receipt.signature))
            await trio.sleep_forever()

        serve_by_hand(pair, forge)
        data = chunk_of(1000)
        with pytest.raises(PeerError, match="receipt"):
            await pair.exchange.put(pair.peer, blake3(data).digest(), data, lease_secs=60)
        assert pair.exchange.stats[pair.peer].breaker is BreakerState.OPEN


async def test_a_peer_that_answers_all_but_one_request_is_given_up_in_the_end(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair(settings=ExchangeSettings(answer_timeout=20, streams_per_peer=1)) as pair:
        stuck = pair.store.add(chunk_of(1000))
        pair.store.gates[stuck] = trio.Event()

        async def keep_asking() -> None:
            while True:
                await pair.exchange.info(pair.peer)
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_asking)
            with trio.fail_after(21), pytest.raises(DeadlineError, match="answered others"):
                await pair.exchange.get(pair.peer, stuck)
            nursery.cancel_scope.cancel()


async def test_closing_the_exchange_leaves_no_task_and_no_stream(
    autojump_clock, open_pair, chunk_of
):
    async with open_pair() as pair:
        digest = pair.store.add(chunk_of(1000))
        await pair.exchange.get(pair.peer, digest)
        connection = pair.asking.connections()[0]
    await trio.sleep(0.1)
    assert not connection.streams
