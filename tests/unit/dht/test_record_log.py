"""Chunk records on disk: thousands to a row, and no more rows than what is alive justifies."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from meshnode.dht.backend import MemoryBackend, Row, RowKind, RowWriter
from meshnode.dht.counters import Counters
from meshnode.dht.peer_id import PeerId
from meshnode.dht.records import ChunkRecords
from meshnode.dht.settings import DhtSettings
from meshnode.errors import StoreError

GOLDEN = Path(__file__).parent / "golden" / "record-log-1.txt"
NOW = 1_000_000.0
OWN, A, B = (PeerId.from_ed25519(bytes([i]) * 32) for i in range(1, 4))
RNG = random.Random(9)
DIGESTS = [RNG.randbytes(32) for _ in range(10_000)]


class Node:
    """Records over a disk that outlives them."""

    def __init__(self, disk: MemoryBackend, **settings: int) -> None:
        self.disk = disk
        self.rows = RowWriter(disk, Counters())
        self.records = ChunkRecords(OWN, DhtSettings(**settings), self.rows, Counters())

    async def again(self, now: float = NOW, **settings: int) -> Node:
        """The same node after a crash: what was not flushed is lost."""
        node = Node(self.disk, **settings)
        node.records.restore(await self.disk.load(), now)
        return node

    def put(self, peer: PeerId, digests: list[bytes], end: float = 500, size: int = 5) -> None:
        self.records.put_all(peer, "z", digests, [size] * len(digests), NOW + end)

    def state(self, now: float = NOW) -> dict[tuple[PeerId, bytes], tuple[int, str, float]]:
        return {
            (r.peer, digest): (r.size, r.zone, r.expires)
            for digest in DIGESTS
            for r in self.records.holders(digest, now)
        }


async def golden_disk() -> MemoryBackend:
    """Two records, and a row later one of them again while the other was taken back."""
    node = Node(MemoryBackend())
    first, second = (bytes([i]) * 32 for i in (1, 2))
    node.records.put_all(A, "attic", [first, second], [5, 8 << 20], NOW + 500)
    await node.rows.flush()
    node.records.withdraw(A, [second])
    node.records.put_all(A, "attic", [first], [6], NOW + 900)
    await node.rows.flush()
    return node.disk


async def test_the_rows_are_those_of_the_golden_file() -> None:
    rows = sorted(await (await golden_disk()).load())
    lines = [f"{kind} {key.hex()} {value.hex()} {ends:.0f}" for kind, key, _, value, ends in rows]
    assert lines == GOLDEN.read_text().splitlines()


async def test_a_node_reads_the_rows_of_the_golden_file() -> None:
    disk = MemoryBackend()
    for line in GOLDEN.read_text().splitlines():
        kind, key, value, ends = line.split()
        row = int(kind), bytes.fromhex(key), bytes(A), bytes.fromhex(value), float(ends)
        await disk.save([row])
    node = await Node(disk).again()
    (record,) = node.records.holders(b"\1" * 32, NOW)
    assert (record.peer, record.size, record.zone, record.expires) == (A, 6, "attic", NOW + 900)
    assert node.records.holders(b"\2" * 32, NOW) == []


async def test_ten_thousand_records_are_a_few_rows_and_all_come_back() -> None:
    node = Node(MemoryBackend())
    node.put(A, DIGESTS)
    node.put(B, DIGESTS[:50], end=100, size=6)
    await node.rows.flush()
    assert len(node.disk.rows) == 4
    again = await node.again()
    assert again.state() == node.state()
    assert len(again.state()) == len(again.records) == 10_050
    assert len((await node.again(NOW + 200)).state(NOW + 200)) == 10_000


async def test_what_was_taken_back_stays_gone_and_what_was_prolonged_stays() -> None:
    node = Node(MemoryBackend())
    node.put(A, DIGESTS[:100])
    await node.rows.flush()
    node.records.withdraw(A, DIGESTS[:40])
    node.put(A, DIGESTS[30:50], end=900)
    await node.rows.flush()
    again = await node.again()
    assert again.state() == node.state()
    assert len(again.state()) == 70
    assert len((await again.again(NOW + 600)).state(NOW + 600)) == 20


@pytest.mark.parametrize("same", [True, False])
async def test_rows_stay_in_proportion_to_what_is_alive(same: bool) -> None:
    """Whatever a publisher does: repeat without end, or announce and withdraw without end."""
    node = Node(MemoryBackend())
    for turn in range(60):
        batch = DIGESTS[:100] if same else DIGESTS[100 * turn : 100 * turn + 100]
        node.put(A, batch, end=500 + turn)
        await node.rows.flush()
        if not same:
            node.records.withdraw(A, batch)
    await node.rows.flush()
    written = sum(len(row[3]) for row in node.disk.rows.values())
    assert written < 40 * (2 * 100 + 1024 + 200)
    assert (await node.again()).state() == node.state()


async def test_a_sweep_drops_rows_of_which_nothing_is_left() -> None:
    node = Node(MemoryBackend())
    node.put(A, DIGESTS[:100], end=10)
    await node.rows.flush()
    node.put(A, DIGESTS[:50], end=90)
    await node.rows.flush()
    assert await node.records.sweep(NOW + 50) == 50
    await node.rows.flush()
    assert len(node.disk.rows) == 1
    assert (await node.again(NOW + 50)).state() == node.state()
    assert await node.records.sweep(NOW + 100) == 50
    await node.rows.flush()
    assert not node.disk.rows


async def test_narrower_bounds_cut_what_comes_back_for_good() -> None:
    node = Node(MemoryBackend())
    node.put(A, DIGESTS[:100])
    await node.rows.flush()
    narrow = await node.again(max_records_per_peer=30)
    assert len(narrow.records) == 30
    await narrow.rows.flush()
    assert (await node.again()).state() == narrow.state()


async def test_rows_of_one_record_are_read_and_rows_that_make_no_sense_dropped() -> None:
    disk = MemoryBackend()
    good = (int(RowKind.CHUNK), DIGESTS[0], bytes(A), b"\0\0\0\5z", NOW + 500)
    number = bytes(8)
    bad = [
        (int(RowKind.CHUNKS), number[:7] + bytes([i]), bytes(A), value, NOW + 500)
        for i, value in enumerate(
            (b"", b"\0\0\0\0\0\1", bytes(7), b"\xff\xff\xff\xff\xff\xff", number)
        )
    ]
    await disk.save([good, *bad, (int(RowKind.CHUNKS), b"short", bytes(A), bytes(6), NOW + 500)])
    node = await Node(disk).again()
    assert node.state() == {(A, DIGESTS[0]): (5, "z", NOW + 500)}
    await node.rows.flush()
    assert [row[0] for row in disk.rows.values()] == [RowKind.CHUNKS]
    assert (await node.again()).state() == node.state()


async def test_what_a_failing_disk_did_not_take_is_written_later() -> None:
    class Failing(MemoryBackend):
        fails = True

        async def save(self, rows: list[Row]) -> None:
            if self.fails:
                raise StoreError("The disk is gone.")
            await super().save(rows)

    disk = Failing()
    node = Node(disk)
    node.put(A, DIGESTS[:10])
    assert isinstance(await node.rows.try_flush(), StoreError)
    node.records.withdraw(A, DIGESTS[:3])
    assert isinstance(await node.rows.try_flush(), StoreError)
    disk.fails = False
    await node.rows.flush()
    assert (await node.again()).state() == node.state()


async def test_what_gathers_for_a_flush_that_is_cut_short_is_not_forgotten() -> None:
    rows = RowWriter(MemoryBackend(), Counters())
    tries = 0

    async def gathered() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise StoreError("Not now.")
        rows.save(RowKind.CHUNKS, b"k", b"p", b"v", NOW)

    hook: Callable[[], Awaitable[None]] = gathered
    rows.before_flush(hook)
    with pytest.raises(StoreError):
        await rows.flush()
    await rows.flush()
    await rows.flush()
    assert tries == 2
