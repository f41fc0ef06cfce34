"""Batches of chunk records end as one by one they would; sweeping them stops nobody else."""

from __future__ import annotations

import random

import pytest
import trio
from meshnode.dht.backend import MemoryBackend, RowWriter
from meshnode.dht.counters import Counters
from meshnode.dht.peer_id import PeerId
from meshnode.dht.records import ChunkRecord, ChunkRecords
from meshnode.dht.records_wire import Verdict
from meshnode.dht.settings import DhtSettings

NOW = 1_000_000.0
OWN, *PEERS = (PeerId.from_ed25519(bytes([i]) * 32) for i in range(1, 6))


def empty(**settings: int) -> ChunkRecords:
    counters = Counters()
    rows = RowWriter(MemoryBackend(), counters)
    return ChunkRecords(OWN, DhtSettings(**settings), rows, counters)


def contents(records: ChunkRecords, digests: list[bytes]) -> list[list[ChunkRecord]]:
    return [sorted(records.holders(d, NOW), key=lambda r: r.peer) for d in digests]


@pytest.mark.parametrize("bounds", [{}, {"max_records": 60}, {"max_records_per_peer": 25}])
def test_a_batch_does_what_its_records_do_one_by_one(bounds: dict[str, int]) -> None:
    rng = random.Random(7)
    digests = [rng.randbytes(32) for _ in range(60)]
    bulk, single = empty(**bounds), empty(**bounds)
    for turn in range(40):
        peer = rng.choice(PEERS)
        batch = rng.choices(digests, k=rng.randrange(20))
        sizes = [rng.choice((5, turn)) for _ in batch]
        expires = NOW + 100 + turn
        verdicts = [
            single.put(peer, "z", digest, size, expires)
            for digest, size in zip(batch, sizes, strict=True)
        ]
        copies = [bytes(bytearray(digest)) for digest in batch]
        assert list(bulk.put_all(peer, "z", copies, sizes, expires)) == verdicts
        gone = rng.sample(digests, 5)
        assert bulk.withdraw(peer, gone) == single.withdraw(peer, gone)
        assert contents(bulk, digests) == contents(single, digests)
        assert len(bulk) == len(single) == sum(map(len, contents(bulk, digests)))
    assert {tuple(sorted(found)) for _, found in bulk.by_publisher()} == {
        tuple(sorted(found)) for _, found in single.by_publisher()
    }


async def test_sweeping_lets_others_work_and_takes_only_what_has_expired() -> None:
    records, rng = empty(), random.Random(8)
    digests = [rng.randbytes(32) for _ in range(20_000)]
    sizes = [5] * len(digests)
    records.put_all(PEERS[0], "z", digests, sizes, NOW + 10)
    records.put_all(PEERS[1], "z", digests[:100], sizes[:100], NOW + 90)
    turns = 0

    async def somebody_else() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1
            if turns == 2:
                # A record that is repeated while the sweep is under way stays.
                assert records.put_all(PEERS[0], "z", digests[-1:], [5], NOW + 90) == (
                    Verdict.STORED,
                )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(somebody_else)
        assert await records.sweep(NOW + 50) == 19_999
        nursery.cancel_scope.cancel()
    assert turns > 2
    assert len(records) == 101
    assert [r.peer for r in records.holders(digests[-1], NOW + 50)] == [PEERS[0]]
    assert [r.peer for r in records.holders(digests[0], NOW + 50)] == [PEERS[1]]
