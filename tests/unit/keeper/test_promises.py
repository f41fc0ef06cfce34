"""What is promised is kept; what nobody was promised goes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from blake3 import blake3
from meshnode.dht.peer_id import PeerId
from meshnode.errors import StoreError, TransferError
from meshnode.node.exchange import Kept
from meshnode.node.keeper import Announcer, Promises
from meshnode.node.store import Store, open_store

SELF, A, B = (PeerId.from_ed25519(bytes([n]) * 32) for n in range(3))
DATA = b"a chunk of somebody"
DIGEST = blake3(DATA).digest()
ROOT = b"r" * 32


class FakeDht:
    def __init__(self) -> None:
        self.withdrawn: list[bytes] = []
        self.announced: list[tuple[bytes, int]] = []
        self.failures = 0

    async def withdraw(self, digests: Sequence[bytes]) -> None:
        self.withdrawn += digests

    async def announce(self, chunks: Sequence[tuple[bytes, int]]) -> None:
        await trio.lowlevel.checkpoint()
        if self.failures:
            self.failures -= 1
            raise StoreError("the list could not be saved")
        self.announced += chunks


class Bench:
    def __init__(self, store: Store) -> None:
        self.store, self.dht = store, FakeDht()
        self.announcer = Announcer(self.dht)
        self.promises = Promises(SELF, store, self.dht, self.announcer)

    async def peer_puts(self, owner: PeerId, *, new: bool = True) -> None:
        await self.store.chunks.put([(DIGEST, DATA)])
        await self.promises.keep_for_peer(Kept(DIGEST, len(DATA), owner, 2_000_000_000, new))

    async def held(self) -> bool:
        return (await self.store.chunks.has([DIGEST]))[0]


@asynccontextmanager
async def bench(path: Path) -> AsyncIterator[Bench]:
    async with open_store(path, quota=None, min_free=0, segment_bytes=4096) as store:
        yield Bench(store)


async def test_a_released_chunk_goes_and_is_withdrawn(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        await node.peer_puts(A)
        assert await node.promises.release_for_peer(A, [DIGEST]) == 1
        assert not await node.held()
        assert node.dht.withdrawn == [DIGEST]
        assert node.announcer.lag == 0


async def test_a_chunk_promised_to_two_peers_stays_when_one_lets_go(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        await node.peer_puts(A)
        await node.peer_puts(B, new=False)
        await node.promises.release_for_peer(A, [DIGEST])
        assert await node.held()


async def test_a_stranger_cannot_release_what_others_were_promised(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        await node.peer_puts(A)
        assert await node.promises.release_for_peer(B, [DIGEST]) == 0
        assert await node.held()


async def test_removing_our_own_link_leaves_a_peers_copy(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        await node.peer_puts(A)
        await node.promises.hold_link(ROOT, [DIGEST])
        dropped = await node.promises.drop_link(ROOT)
        assert (dropped.chunks, dropped.removed) == (1, 0)
        assert dropped.unowned == (DIGEST,)
        assert await node.held()


async def test_no_receipt_for_a_chunk_that_is_gone(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        with pytest.raises(StoreError):
            await node.promises.keep_for_peer(Kept(DIGEST, len(DATA), A, 2_000_000_000, False))


async def test_a_put_whose_chunk_was_removed_meanwhile_is_no_success(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        with pytest.raises(TransferError):
            await node.promises.hold_link(ROOT, [DIGEST])


async def test_promises_made_at_once_are_all_written_down(tmp_path: Path) -> None:
    chunks = [bytes([n]) * 100 for n in range(40)]
    digests = [blake3(chunk).digest() for chunk in chunks]
    async with bench(tmp_path) as node:
        await node.store.chunks.put(list(zip(digests, chunks, strict=True)))
        async with trio.open_nursery() as nursery:
            for digest in digests:
                kept = Kept(digest, 100, A, 2_000_000_000, True)
                nursery.start_soon(node.promises.keep_for_peer, kept)
        assert sorted(await node.store.holds.held_for(A, b"")) == sorted(digests)


async def test_a_promise_that_could_not_be_written_is_not_given_to_anyone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two promises share a transaction that fails: both must hear of it."""
    async with bench(tmp_path) as node:
        await node.store.chunks.put([(DIGEST, DATA)])

        async def fail(rows: object) -> None:
            await trio.lowlevel.checkpoint()
            raise StoreError("the disk failed")

        monkeypatch.setattr(type(node.store.holds), "add_many", lambda self, rows: fail(rows))
        refused = []

        async def keep(owner: PeerId) -> None:
            try:
                await node.promises.keep_for_peer(Kept(DIGEST, len(DATA), owner, 1, True))
            except StoreError:
                refused.append(owner)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, A)
            nursery.start_soon(keep, B)
        assert sorted(refused) == sorted([A, B])


async def test_new_chunks_are_announced_together_and_again_after_a_failure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    dht = FakeDht()
    dht.failures = 2
    announcer = Announcer(dht)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(announcer.run)
        announcer.add([(DIGEST, 1)])
        announcer.add([(ROOT, 2)])
        assert announcer.lag == 2
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert sorted(dht.announced) == sorted([(DIGEST, 1), (ROOT, 2)])
