"""What a put leaves unfinished waits for a day to be taken up again, and then goes everywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from blake3 import blake3
from meshnode.dht.peer_id import PeerId
from meshnode.errors import PeerError, StoreError
from meshnode.node.content import Link
from meshnode.node.exchange import Kept, Lane, Receipt
from meshnode.node.keeper import (
    Announcer,
    Catalogue,
    CatalogueEntry,
    Collector,
    Promises,
    PutJournal,
    Releaser,
)
from meshnode.node.keeper.put_journal import KEEP_UNFINISHED_SECS
from meshnode.node.store import Store, open_store

SELF, A, B = (PeerId.from_ed25519(bytes([n]) * 32) for n in range(3))
CHUNKS = [bytes([n]) * 50 for n in range(5)]
DIGESTS = [blake3(chunk).digest() for chunk in CHUNKS]
ROOT = b"r" * 32


class Wall:
    """Unix seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Quiet:
    """A DHT and peers that agree to everything."""

    def __init__(self) -> None:
        self.told: dict[PeerId, set[bytes]] = {}
        self.away: set[PeerId] = set()
        self.lanes: set[Lane] = set()

    def let_go(self, digests: Sequence[bytes]) -> None:
        pass

    async def tell_withdrawn(self, digests: Sequence[bytes]) -> None:
        await trio.lowlevel.checkpoint()

    async def announce(self, chunks: Sequence[tuple[bytes, int]]) -> None:
        await trio.lowlevel.checkpoint()

    def known(self) -> list[PeerId]:
        return [A, B]

    def connected(self) -> list[PeerId]:
        return [A, B]

    async def release(
        self, peer: PeerId, digests: Sequence[bytes], *, lane: Lane = Lane.INTERACTIVE
    ) -> int:
        await trio.lowlevel.checkpoint()
        self.lanes.add(lane)
        if peer in self.away:
            raise PeerError("not there")
        self.told.setdefault(peer, set()).update(digests)
        return len(digests)


class Bench:
    def __init__(self, store: Store, path: Path, wall: Wall) -> None:
        self.store, self.wall, self.peers = store, wall, Quiet()
        announcer = Announcer(self.peers)
        self.promises = Promises(SELF, store, self.peers, announcer, Catalogue(path / "catalogue"))
        self.releaser = Releaser(self.promises, store, self.peers, self.peers)
        self.collector = Collector(self.promises, self.releaser, store, wall)
        self.journal = PutJournal(SELF, store, wall)

    async def store_all(self) -> None:
        await self.store.chunks.put(list(zip(DIGESTS, CHUNKS, strict=True)))

    async def interrupted_put(self) -> None:
        await self.store_all()
        self.journal.stored(DIGESTS)
        for digest in DIGESTS:
            self.journal.copied(self.receipt(digest, A))
        await self.journal.flush()

    def receipt(self, digest: bytes, holder: PeerId, days: float = 30) -> Receipt:
        now = int(self.wall.now)
        return Receipt(holder, SELF, digest, 50, now, now + int(days * 86400), b"s" * 64)

    async def complete_put(self) -> None:
        entry = CatalogueEntry(Link(ROOT, b"k" * 32), "f", "file", 250, 5, "stored", 2, 1e9)
        await self.promises.hold_link(entry, DIGESTS)

    async def left(self) -> int:
        return sum(await self.store.chunks.has(DIGESTS))


@asynccontextmanager
async def bench(path: Path, wall: Wall | None = None) -> AsyncIterator[Bench]:
    async with open_store(path, quota=None, min_free=0, segment_bytes=4096) as store:
        yield Bench(store, path, wall or Wall())


async def test_an_interrupted_put_can_be_taken_up_for_a_day_and_is_gone_after_it(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as node:
        await node.interrupted_put()
        node.wall.now += KEEP_UNFINISHED_SECS - 60
        assert await node.collector.collect() == 0
        assert len(await node.journal.receipts(DIGESTS)) == 5
        node.wall.now += 120
        assert await node.collector.collect() == 5
        assert await node.left() == 0
        assert node.peers.told == {A: set(DIGESTS), B: set(DIGESTS)}
        assert node.peers.lanes == {Lane.BACKGROUND}
        assert await node.journal.receipts(DIGESTS) == {}


async def test_a_put_that_was_taken_up_and_completed_keeps_its_chunks(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        await node.interrupted_put()
        await node.complete_put()
        node.wall.now += 10 * KEEP_UNFINISHED_SECS
        assert await node.collector.collect() == 0
        assert await node.left() == 5
        assert node.peers.told == {}


async def test_a_later_try_gives_the_chunks_another_day(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        await node.interrupted_put()
        node.wall.now += KEEP_UNFINISHED_SECS - 60
        node.journal.stored(DIGESTS[:3])
        await node.journal.flush()
        node.wall.now += 120
        assert await node.collector.collect() == 2
        assert await node.store.chunks.has(DIGESTS) == [True] * 3 + [False] * 2


async def test_nothing_is_collected_while_a_put_runs(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        await node.interrupted_put()
        node.wall.now += 2 * KEEP_UNFINISHED_SECS
        async with node.promises.putting():
            assert await node.collector.collect() == 0
            await node.complete_put()
        assert await node.collector.collect() == 0
        assert await node.left() == 5


async def test_what_a_peer_was_promised_stays_when_our_own_put_is_collected(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as node:
        await node.interrupted_put()
        await node.promises.keep_for_peer(Kept(DIGESTS[0], 50, A, 2_000_000_000, False))
        node.wall.now += 2 * KEEP_UNFINISHED_SECS
        await node.collector.collect()
        assert await node.store.chunks.has(DIGESTS) == [True] + [False] * 4


async def test_chunks_that_a_crash_left_to_nobody_are_found_and_go_a_day_later(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as node:
        await node.store_all()
        await node.promises.keep_for_peer(Kept(DIGESTS[0], 50, A, 2_000_000_000, True))
        await node.collector.sweep()
        assert await node.collector.collect() == 0
        node.wall.now += KEEP_UNFINISHED_SECS + 60
        await node.collector.collect()
        assert await node.store.chunks.has(DIGESTS) == [True] + [False] * 4


async def test_a_sweep_looks_at_every_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.node.keeper.collector._SWEEP_AT_ONCE", 2)
    async with bench(tmp_path) as node:
        await node.store_all()
        await node.collector.sweep()
        node.wall.now += KEEP_UNFINISHED_SECS + 60
        assert await node.collector.collect() == 5


async def test_receipts_outlive_the_process_that_got_them(tmp_path: Path) -> None:
    wall = Wall()
    async with bench(tmp_path, wall) as node:
        await node.interrupted_put()
        kept = await node.journal.receipts(DIGESTS)
    async with bench(tmp_path, wall) as node:
        assert await node.journal.receipts([*DIGESTS, ROOT]) == kept
        assert kept[DIGESTS[0]] == [node.receipt(DIGESTS[0], A)]


async def test_a_receipt_whose_time_is_more_than_half_over_does_not_count(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        await node.interrupted_put()
        node.wall.now += 14 * 86400
        assert len((await node.journal.receipts(DIGESTS))[DIGESTS[0]]) == 1
        node.wall.now += 2 * 86400
        assert (await node.journal.receipts(DIGESTS))[DIGESTS[0]] == []
        node.wall.now += 30 * 86400
        await node.collector.sweep()
        node.wall.now -= 40 * 86400
        assert await node.journal.receipts(DIGESTS) == {}


async def test_a_receipt_found_false_is_forgotten_also_before_it_was_written(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as node:
        await node.interrupted_put()
        node.journal.copied(node.receipt(DIGESTS[0], B))
        await node.journal.lost(B, [DIGESTS[0]])
        await node.journal.lost(A, [DIGESTS[0]])
        await node.journal.flush()
        assert DIGESTS[0] not in await node.journal.receipts(DIGESTS)
        assert len(await node.journal.receipts(DIGESTS)) == 4


async def test_what_could_not_be_written_down_is_written_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tmp_path) as node:
        await node.store_all()
        node.journal.stored(DIGESTS)
        node.journal.copied(node.receipt(DIGESTS[0], A))

        async def fail(*_: object) -> None:
            await trio.lowlevel.checkpoint()
            raise StoreError("the disk failed")

        with monkeypatch.context() as broken:
            broken.setattr(type(node.store.receipts), "keep", fail)
            with pytest.raises(StoreError):
                await node.journal.flush()
        await node.journal.flush()
        assert len(await node.journal.receipts(DIGESTS)) == 1
        node.wall.now += KEEP_UNFINISHED_SECS + 60
        assert await node.collector.collect() == 5


async def test_a_released_link_takes_its_receipts_with_it_but_not_those_of_peers_that_are_away(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as node:
        await node.interrupted_put()
        node.journal.copied(node.receipt(DIGESTS[0], B))
        await node.journal.flush()
        await node.complete_put()
        node.peers.away = {B}
        await node.promises.drop_link(ROOT)
        await node.releaser.round()
        found = await node.journal.receipts(DIGESTS)
        assert {d: [r.holder for r in rs] for d, rs in found.items()} == {DIGESTS[0]: [B]}
        node.peers.away = set()
        await node.releaser.round()
        assert await node.journal.receipts(DIGESTS) == {}


async def test_the_task_collects_by_itself(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def inline(work, *args, **_):
        await trio.lowlevel.checkpoint()
        return work(*args)

    async with bench(tmp_path) as node:
        monkeypatch.setattr(trio.to_thread, "run_sync", inline)
        await node.store_all()
        node.collector._wall = lambda: 1_800_000_000.0 + trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.collector.run)
            await trio.sleep(KEEP_UNFINISHED_SECS)
            assert await node.left() == 5
            await trio.sleep(3600)
            assert await node.left() == 0
            nursery.cancel_scope.cancel()
        assert node.collector.collected == 5
