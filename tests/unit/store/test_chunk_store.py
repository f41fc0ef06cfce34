"""What every `ChunkStore` promises; each test runs against every implementation."""

from __future__ import annotations

import pytest
import trio
from blake3 import blake3
from meshnode.errors import IntegrityError, NotFoundError, QuotaError, UsageError
from meshnode.node.store import MAX_CHUNK_BYTES


def chunk_of(data):
    return blake3(data).digest(), data


ONE, TWO, THREE = chunk_of(b"one" * 100), chunk_of(b"two" * 200), chunk_of(b"3")
ABSENT = chunk_of(b"absent")[0]


async def test_what_was_put_comes_back(open_harness):
    async with open_harness() as harness:
        await harness.store.put([ONE, TWO])
        assert await harness.store.get(ONE[0]) == ONE[1]
        assert await harness.store.get(TWO[0]) == TWO[1]


async def test_a_chunk_of_no_bytes_and_one_of_the_largest_size_are_kept(open_harness):
    async with open_harness() as harness:
        empty, largest = chunk_of(b""), chunk_of(b"x" * MAX_CHUNK_BYTES)
        await harness.store.put([empty, largest])
        assert await harness.store.get(empty[0]) == b""
        assert await harness.store.get(largest[0]) == largest[1]
        assert await harness.store.sizes([empty[0], largest[0]]) == [0, MAX_CHUNK_BYTES]


async def test_a_chunk_too_large_or_a_digest_of_wrong_length_is_refused(open_harness):
    async with open_harness() as harness:
        too_large = chunk_of(b"x" * (MAX_CHUNK_BYTES + 1))
        with pytest.raises(UsageError, match="at most"):
            await harness.store.put([ONE, too_large])
        with pytest.raises(UsageError, match="32 bytes"):
            await harness.store.put([(b"short", b"data")])
        with pytest.raises(UsageError, match="32 bytes"):
            await harness.store.has([b"short"])
        assert (await harness.store.stats()).chunks == 0


async def test_all_kinds_of_buffer_are_taken(open_harness):
    async with open_harness() as harness:
        await harness.store.put(
            [(ONE[0], bytearray(ONE[1])), (TWO[0], memoryview(b"--" + TWO[1])[2:])]
        )
        assert await harness.store.get(ONE[0]) == ONE[1]
        assert await harness.store.get(TWO[0]) == TWO[1]


async def test_the_buffer_may_be_reused_once_put_has_returned(open_harness):
    async with open_harness() as harness:
        buffer = bytearray(ONE[1])
        await harness.store.put([(ONE[0], buffer)])
        buffer[:] = bytes(len(buffer))
        assert await harness.store.get(ONE[0]) == ONE[1]


async def test_has_and_sizes_answer_in_the_order_asked(open_harness):
    async with open_harness() as harness:
        await harness.store.put([ONE, TWO])
        asked = [TWO[0], ABSENT, ONE[0], TWO[0]]
        assert await harness.store.has(asked) == [True, False, True, True]
        assert await harness.store.sizes(asked) == [600, None, 300, 600]
        assert await harness.store.has([]) == []


async def test_thousands_of_digests_are_looked_up_at_once(open_harness):
    async with open_harness() as harness:
        chunks = [chunk_of(b"%d" % number) for number in range(1500)]
        await harness.store.put(chunks)
        asked = [digest for digest, _ in chunks] + [bytes([n % 256] * 32) for n in range(3000)]
        assert await harness.store.has(asked) == [True] * 1500 + [False] * 3000


async def test_getting_what_is_not_held_says_so(open_harness):
    async with open_harness() as harness:
        with pytest.raises(NotFoundError, match=ABSENT.hex()):
            await harness.store.get(ABSENT)


async def test_a_range_is_cut_from_the_verified_chunk(open_harness):
    async with open_harness() as harness:
        await harness.store.put([ONE])
        assert await harness.store.get_range(ONE[0], 4, 7) == ONE[1][4:11]
        assert await harness.store.get_range(ONE[0], 300, 0) == b""
        for offset, length in ((-1, 5), (0, 301), (300, 1), (0, -1)):
            with pytest.raises(UsageError, match="not inside"):
                await harness.store.get_range(ONE[0], offset, length)


async def test_a_chunk_is_read_only_if_it_has_the_size_there_is_room_for(open_harness):
    async with open_harness() as harness:
        await harness.store.put([ONE])
        assert await harness.store.get_sized(ONE[0], len(ONE[1])) == ONE[1]
        assert await harness.store.get_sized(ONE[0], len(ONE[1]) + 1) is None
        assert await harness.store.get_sized(ONE[0], len(ONE[1]) - 1) is None
        with pytest.raises(NotFoundError, match=ABSENT.hex()):
            await harness.store.get_sized(ABSENT, 1)
        harness.rot(ONE[0])
        with pytest.raises(IntegrityError, match=ONE[0].hex()):
            await harness.store.get_sized(ONE[0], len(ONE[1]))


async def test_one_wrong_chunk_keeps_the_whole_call_out(open_harness):
    async with open_harness() as harness:
        with pytest.raises(IntegrityError, match=TWO[0].hex()):
            await harness.store.put([ONE, (TWO[0], b"something else")])
        assert await harness.store.has([ONE[0], TWO[0]]) == [False, False]


async def test_a_wrong_chunk_is_refused_even_when_its_digest_is_held(open_harness):
    async with open_harness() as harness:
        await harness.store.put([ONE])
        with pytest.raises(IntegrityError):
            await harness.store.put([ONE, (ONE[0], b"something else")])


async def test_a_chunk_put_twice_is_stored_once(open_harness):
    async with open_harness() as harness:
        await harness.store.put([ONE, ONE, TWO])
        before = await harness.store.stats()
        await harness.store.put([TWO, ONE])
        after = await harness.store.stats()
        assert (before.chunks, before.stored_bytes) == (after.chunks, after.stored_bytes)
        assert after.chunks == 2


async def test_many_tasks_may_put_the_same_chunks_at_once(open_harness):
    async with open_harness() as harness:
        chunks = [chunk_of(b"%d" % number * 50) for number in range(20)]
        held_on_return = []

        async def put(order):
            mine = chunks[order:] + chunks[:order]
            await harness.store.put(mine)
            held_on_return.append(all(await harness.store.has([digest for digest, _ in mine])))

        async with trio.open_nursery() as nursery:
            for order in range(12):
                nursery.start_soon(put, order)
        assert held_on_return == [True] * 12
        assert (await harness.store.stats()).chunks == 20


async def test_a_deleted_chunk_is_gone_and_can_be_put_again(open_harness):
    async with open_harness() as harness:
        await harness.store.put([ONE, TWO])
        assert await harness.store.delete([ONE[0], ABSENT, ONE[0]]) == 1
        assert await harness.store.has([ONE[0], TWO[0]]) == [False, True]
        with pytest.raises(NotFoundError):
            await harness.store.get(ONE[0])
        assert await harness.store.delete([ONE[0]]) == 0
        await harness.store.put([ONE])
        assert await harness.store.get(ONE[0]) == ONE[1]


async def test_list_gives_everything_in_digest_order(open_harness):
    async with open_harness() as harness:
        chunks = [chunk_of(b"%d" % number) for number in range(1203)]
        await harness.store.put(chunks)
        listed = [row async for row in harness.store.list()]
        assert listed == sorted((digest, len(data)) for digest, data in chunks)


async def test_listing_tolerates_changes_meanwhile(open_harness):
    async with open_harness() as harness:
        chunks = sorted(chunk_of(b"%d" % number) for number in range(1203))
        await harness.store.put(chunks)
        listed = []
        async for digest, _ in harness.store.list():
            if not listed:
                await harness.store.delete([chunks[-1][0], chunks[0][0]])
            listed.append(digest)
        assert {digest for digest, _ in chunks[1:-1]} <= set(listed)
        assert listed == sorted(set(listed))


async def test_a_put_beyond_the_quota_is_refused_and_leaves_the_rest_alone(open_harness):
    async with open_harness(quota=3000) as harness:
        await harness.store.put([ONE, TWO])
        big = chunk_of(b"big" * 900)
        with pytest.raises(QuotaError, match="no room"):
            await harness.store.put([THREE, big])
        assert await harness.store.has([THREE[0], big[0]]) == [False, False]
        assert await harness.store.get(ONE[0]) == ONE[1]
        await harness.store.put([THREE])
        assert (await harness.store.stats()).stored_bytes <= 3000


async def test_available_bytes_is_what_a_put_can_still_add(open_harness):
    async with open_harness(quota=10_000) as harness:
        await harness.store.put([ONE])
        before = await harness.store.stats()
        assert before.quota_bytes == 10_000
        assert before.available_bytes == 10_000 - before.stored_bytes
        await harness.store.put([TWO])
        after = await harness.store.stats()
        assert before.available_bytes - after.available_bytes == 600 + 48


async def test_deleting_everything_makes_room_again(open_harness):
    async with open_harness(quota=3000) as harness:
        for turn in range(6):
            chunks = [chunk_of(bytes([turn, part]) * 400) for part in range(3)]
            await harness.store.put(chunks)
            assert await harness.store.delete([digest for digest, _ in chunks]) == 3


async def test_a_refused_put_does_not_fail_others_at_the_same_time(open_harness):
    async with open_harness(quota=3000) as harness:
        refused = []

        async def put_too_much():
            try:
                await harness.store.put([chunk_of(b"big" * 2000)])
            except QuotaError as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put_too_much)
            nursery.start_soon(harness.store.put, [ONE])
            nursery.start_soon(put_too_much)
            nursery.start_soon(harness.store.put, [TWO])
        assert len(refused) == 2
        assert await harness.store.has([ONE[0], TWO[0]]) == [True, True]


async def test_a_rotten_chunk_is_never_served_and_no_longer_held(open_harness):
    async with open_harness() as harness:
        await harness.store.put([ONE, TWO])
        harness.rot(ONE[0])
        with pytest.raises(IntegrityError, match=ONE[0].hex()):
            await harness.store.get_range(ONE[0], 0, 1)
        assert harness.rotten == [ONE[0]]
        assert await harness.store.has([ONE[0], TWO[0]]) == [False, True]
        with pytest.raises(NotFoundError):
            await harness.store.get(ONE[0])
        assert (await harness.store.stats()).chunks == 1


async def test_a_rotten_chunk_can_be_replaced_by_a_good_one(open_harness):
    async with open_harness() as harness:
        await harness.store.put([ONE])
        harness.rot(ONE[0])
        with pytest.raises(IntegrityError):
            await harness.store.get(ONE[0])
        await harness.store.put([ONE])
        assert await harness.store.get(ONE[0]) == ONE[1]
