from __future__ import annotations

import random
import tracemalloc

import pytest
import trio
from blake3 import blake3
from meshnode.dht.backend import NEVER, MemoryBackend, Row, RowKind, RowWriter
from meshnode.dht.counters import Counters
from meshnode.dht.keyspace import chunk_position, manifest_key, peer_position, position
from meshnode.dht.peer_id import PeerId
from meshnode.dht.records import ChunkRecords
from meshnode.dht.records_wire import Verdict
from meshnode.dht.settings import DhtSettings
from meshnode.dht.validators import Validators
from meshnode.dht.values import ValueStore
from meshnode.errors import StoreError

OWN, A, B, C, D, E, F = (PeerId.from_ed25519(bytes([i]) * 32) for i in (9, 1, 2, 3, 4, 5, 6))
NOW = 1_000_000.0
RNG = random.Random(1)
DIGESTS = sorted(
    (RNG.randbytes(32) for _ in range(30)), key=lambda d: chunk_position(d) ^ peer_position(OWN)
)
"""Nearest to us first."""


def chunk_records(**settings: int) -> tuple[ChunkRecords, RowWriter, MemoryBackend, Counters]:
    backend, counters = MemoryBackend(), Counters()
    rows = RowWriter(backend, counters)
    return (
        ChunkRecords(OWN, DhtSettings(zone="own", **settings), rows, counters),
        rows,
        backend,
        counters,
    )


def keep(records: ChunkRecords, peer: PeerId, *digests: bytes, expires: float = NOW + 50) -> None:
    for digest in digests:
        assert records.put(peer, "z", digest, 5, expires) is Verdict.STORED


def test_a_full_publisher_displaces_its_own_far_keys_by_near_ones_only() -> None:
    records, _, _, counters = chunk_records(max_records_per_peer=10, max_records=100)
    keep(records, A, *DIGESTS[5:15])
    keep(records, B, DIGESTS[29])
    assert records.put(A, "z", DIGESTS[20], 5, NOW + 50) is Verdict.PEER_FULL
    keep(records, A, *DIGESTS[:5])
    assert all(records.holders(d, NOW) for d in DIGESTS[:10])
    assert not any(records.holders(d, NOW) for d in DIGESTS[10:29])
    assert [r.peer for r in records.holders(DIGESTS[29], NOW)] == [B]
    assert counters["records_evicted"] == 5
    assert counters["records_refused"] == 1


def test_a_full_node_gives_up_the_farthest_key_of_all_publishers_but_never_its_own() -> None:
    records, _, _, _ = chunk_records(max_records=10)
    records.hold(DIGESTS[29], 5)
    for start, peer in enumerate((A, B, C, D)):
        keep(records, peer, *DIGESTS[10 + 2 * start : 12 + 2 * start])
    keep(records, E, *DIGESTS[18:20])
    keep(records, F, DIGESTS[0])
    assert records.holders(DIGESTS[19], NOW) == []
    assert records.put(F, "z", DIGESTS[25], 5, NOW + 50) is Verdict.FAR
    assert [r.peer for r in records.holders(DIGESTS[29], NOW)] == [OWN]
    assert len(records) == 10


def test_no_publisher_takes_more_than_a_quarter_whatever_its_own_bound() -> None:
    records, rows, _, counters = chunk_records(max_records=20, max_records_per_peer=1000)
    keep(records, B, DIGESTS[29])
    keep(records, A, *DIGESTS[5:10])
    assert records.put(A, "z", DIGESTS[10], 5, NOW + 50) is Verdict.PEER_FULL
    keep(records, A, *DIGESTS[:5])
    assert len(records) == 6
    assert [r.peer for r in records.holders(DIGESTS[29], NOW)] == [B]
    saved = [(int(RowKind.CHUNK), d, bytes(A), b"\0\0\0\5", NOW + 50) for d in DIGESTS]
    again = ChunkRecords(OWN, DhtSettings(max_records=20), rows, counters)
    again.restore(saved, NOW)
    assert len(again) == 5, "what an earlier run with wider bounds saved is cut too"


async def test_refreshing_costs_no_room_and_prolongs() -> None:
    records, _, _, _ = chunk_records(max_records_per_peer=2)
    keep(records, A, *DIGESTS[:2])
    keep(records, A, DIGESTS[1], expires=NOW + 500)
    assert records.holders(DIGESTS[1], NOW + 100)[0].expires == NOW + 500
    assert records.holders(DIGESTS[0], NOW + 100) == []
    assert await records.sweep(NOW + 100) == 1
    assert len(records) == 1


def test_withdrawing_takes_only_ones_own() -> None:
    records, _, _, _ = chunk_records()
    keep(records, A, DIGESTS[0])
    keep(records, B, DIGESTS[0])
    assert records.withdraw(A, [DIGESTS[0], DIGESTS[0], DIGESTS[1]]) == 1
    assert [r.peer for r in records.holders(DIGESTS[0], NOW)] == [B]


async def test_records_survive_a_restart_unless_expired_or_senseless() -> None:
    records, rows, backend, counters = chunk_records()
    records.hold(DIGESTS[0], 5)
    keep(records, A, DIGESTS[1])
    keep(records, B, DIGESTS[2], expires=NOW + 10)
    keep(records, B, DIGESTS[3])
    records.withdraw(B, [DIGESTS[3]])
    await rows.flush()
    saved = [*await backend.load(), (int(RowKind.CHUNK), b"short", bytes(A), b"", NEVER)]
    again = ChunkRecords(OWN, DhtSettings(zone="own"), rows, counters)
    again.restore(saved, NOW + 20)
    assert again.own() == {DIGESTS[0]: 5}
    (record,) = again.holders(DIGESTS[1], NOW + 20)
    assert (record.peer, record.size, record.zone, record.expires) == (A, 5, "z", NOW + 50)
    assert len(again) == 1
    assert await again.sweep(NOW + 100) == 1
    await rows.flush()
    assert {row[1] for row in backend.rows.values()} == {DIGESTS[0]}


def manifest_of(seed: int, size: int = 100) -> tuple[bytes, bytes]:
    """(key, value)."""
    value = random.Random(seed).randbytes(size)
    return manifest_key(blake3(value).digest()), value


def put(
    store: ValueStore, publisher: PeerId, key: bytes, value: bytes, until: float = NOW + 50
) -> Verdict:
    return store.put(publisher, key, value, Validators().check(key, value, NOW), until)


def value_of(store: ValueStore, key: bytes, now: float) -> bytes | None:
    found = store.get(key, now)
    return None if found is None else found[0]


def test_manifests_are_bounded_in_bytes_per_publisher_and_in_all() -> None:
    counters = Counters()
    settings = DhtSettings(max_record_bytes_per_peer=500, max_value_bytes=700)
    store = ValueStore(OWN, settings, RowWriter(MemoryBackend(), counters), counters, Validators())
    made = sorted(
        (manifest_of(i) for i in range(20)),
        key=lambda m: position(m[0]) ^ peer_position(OWN),
    )
    for key, value in made[5:10]:
        assert put(store, A, key, value) is Verdict.STORED
    assert put(store, A, *made[0]) is Verdict.PEER_FULL
    for key, value in made[10:12]:
        assert put(store, B, key, value) is Verdict.STORED
    assert put(store, B, *made[15]) is Verdict.FAR
    assert put(store, B, *made[1]) is Verdict.STORED
    assert store.get(made[11][0], NOW) is None
    assert store.kept_bytes == 700
    assert put(store, B, *made[5], NOW + 500) is Verdict.STORED, "keeping alive needs no room"
    assert store.sweep(NOW + 100) == 6
    assert value_of(store, made[5][0], NOW + 100) == made[5][1]
    assert store.kept_bytes == 100


def test_values_are_bounded_in_number_per_publisher() -> None:
    counters = Counters()
    settings = DhtSettings(max_values_per_peer=3)
    store = ValueStore(OWN, settings, RowWriter(MemoryBackend(), counters), counters, Validators())
    assert [put(store, A, *manifest_of(i)) for i in range(4)][2:] == [
        Verdict.STORED,
        Verdict.PEER_FULL,
    ]
    assert put(store, A, *manifest_of(0), NOW + 90) is Verdict.STORED
    assert put(store, B, *manifest_of(4)) is Verdict.STORED


async def test_rotted_manifests_are_dropped_on_restart() -> None:
    counters, backend = Counters(), MemoryBackend()
    rows = RowWriter(backend, counters)
    store = ValueStore(OWN, DhtSettings(), rows, counters, Validators())
    (good, value), (bad, _), (own, own_value) = (manifest_of(i) for i in (1, 2, 3))
    put(store, A, good, value)
    store.put_own(own, own_value, Validators().check(own, own_value, NOW))
    await rows.flush()
    assert {row[1] for row in backend.rows.values()} == {good[-32:], own[-32:]}
    await backend.save([(int(RowKind.MANIFEST), bad[-32:], bytes(A), b"rot", NOW + 50)])
    again = ValueStore(OWN, DhtSettings(), rows, counters, Validators())
    again.restore(await backend.load(), NOW)
    assert value_of(again, good, NOW) == value
    assert again.get(bad, NOW) is None
    assert again.own_keys() == [own]
    await rows.flush()
    assert len(backend.rows) == 2


async def test_changes_that_could_not_be_written_stay_pending_in_order() -> None:
    class Failing(MemoryBackend):
        failing = True

        async def save(self, rows: list[Row]) -> None:
            if self.failing:
                raise StoreError("The disk is gone.")
            await super().save(rows)

    backend, counters = Failing(), Counters()
    rows = RowWriter(backend, counters)
    rows.save(RowKind.CHUNK, b"k", b"p", b"old", NOW)
    assert await rows.try_flush() is not None
    rows.save(RowKind.CHUNK, b"k", b"p", b"new", NOW)
    rows.save(RowKind.CHUNK, b"gone", b"p", b"", NOW)
    rows.delete(RowKind.CHUNK, b"gone", b"p")
    with pytest.raises(StoreError):
        await rows.flush()
    backend.failing = False
    with trio.fail_after(5):
        await rows.wait_changed()
    await rows.flush()
    assert [row[3] for row in backend.rows.values()] == [b"new"]
    assert counters["flush_failures"] == 1


def test_a_record_of_three_holders_takes_less_than_two_hundred_bytes_of_memory() -> None:
    records, _, _, _ = chunk_records()
    # What waits to be written is another matter, and soon gone.
    records._log.changed = lambda *change: None  # type: ignore[method-assign]
    rng = random.Random(2)
    digests = [rng.randbytes(32) for _ in range(4000)]
    tracemalloc.start()
    try:
        for peer in (A, B, C):
            for i, digest in enumerate(digests):
                # Every announcement brings a copy of its own.
                keep(records, peer, bytes(bytearray(digest)), expires=NOW + i)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / len(records) < 200
    assert len(records) == 12_000
