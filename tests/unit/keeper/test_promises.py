"""What is promised is kept; what nobody was promised goes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from blake3 import blake3
from meshnode.dht.peer_id import PeerId
from meshnode.errors import NotFoundError, PeerError, StoreError, TransferError
from meshnode.node.content import Link
from meshnode.node.exchange import Kept, Lane
from meshnode.node.keeper import Announcer, Catalogue, CatalogueEntry, Promises, Releaser
from meshnode.node.store import Store, open_store

SELF, A, B = (PeerId.from_ed25519(bytes([n]) * 32) for n in range(3))
DATA = b"a chunk of somebody"
DIGEST = blake3(DATA).digest()
ROOT = b"r" * 32


def entry(root: bytes = ROOT) -> CatalogueEntry:
    return CatalogueEntry(Link(root, b"k" * 32), "file", "file", 19, 1, "stored", 2, 1e9)


class FakeDht:
    def __init__(self) -> None:
        self.gone: list[bytes] = []
        self.told_gone: list[bytes] = []
        self.announced: list[tuple[bytes, int]] = []
        self.failures = 0

    def let_go(self, digests: Sequence[bytes]) -> None:
        self.gone += digests

    async def tell_withdrawn(self, digests: Sequence[bytes]) -> None:
        await trio.lowlevel.checkpoint()
        self.told_gone += digests

    async def announce(self, chunks: Sequence[tuple[bytes, int]]) -> None:
        await trio.lowlevel.checkpoint()
        if self.failures:
            self.failures -= 1
            raise StoreError("the list could not be saved")
        self.announced += chunks


class FakePeers:
    """Peers A and B; those in `away` do not answer."""

    def __init__(self) -> None:
        self.away: set[PeerId] = set()
        self.asked: list[tuple[PeerId, tuple[bytes, ...]]] = []
        self.while_asked = trio.Event()

    def known(self) -> list[PeerId]:
        return [A, B]

    def connected(self) -> list[PeerId]:
        return [peer for peer in (A, B) if peer not in self.away]

    async def release(
        self, peer: PeerId, digests: Sequence[bytes], *, lane: Lane = Lane.INTERACTIVE
    ) -> int:
        await trio.lowlevel.checkpoint()
        self.while_asked.set()
        if peer in self.away:
            raise PeerError("not there")
        self.asked.append((peer, tuple(digests)))
        return len(digests)


class Bench:
    def __init__(self, store: Store, path: Path) -> None:
        self.store, self.dht, self.peers = store, FakeDht(), FakePeers()
        self.announcer = Announcer(self.dht)
        self.catalogue = Catalogue(path / "catalogue")
        self.promises = Promises(SELF, store, self.dht, self.announcer, self.catalogue)
        self.releaser = Releaser(self.promises, store, self.peers, self.peers)

    async def peer_puts(self, owner: PeerId, *, new: bool = True) -> None:
        await self.store.chunks.put([(DIGEST, DATA)])
        await self.promises.keep_for_peer(Kept(DIGEST, len(DATA), owner, 2_000_000_000, new))

    async def put(self, root: bytes = ROOT) -> None:
        await self.store.chunks.put([(DIGEST, DATA)])
        await self.promises.hold_link(entry(root), [DIGEST])

    async def held(self) -> bool:
        return (await self.store.chunks.has([DIGEST]))[0]


@asynccontextmanager
async def bench(path: Path) -> AsyncIterator[Bench]:
    async with open_store(path, quota=None, min_free=0, segment_bytes=4096) as store:
        yield Bench(store, path)


async def test_a_released_chunk_goes_and_is_withdrawn(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        await node.peer_puts(A)
        assert await node.promises.release_for_peer(A, [DIGEST]) == 1
        assert not await node.held()
        assert node.dht.gone == [DIGEST]
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
        await node.put()
        dropped = await node.promises.drop_link(ROOT)
        assert (dropped.chunks, dropped.free) == (1, 0)
        await node.releaser.round()
        assert await node.held()
        assert sorted(node.peers.asked) == sorted([(A, (DIGEST,)), (B, (DIGEST,))])


async def test_a_removed_link_is_gone_here_and_at_every_peer(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        await node.put()
        await node.promises.drop_link(ROOT)
        done = await node.releaser.round()
        assert done.released == {A: 1, B: 1}
        assert not await node.held()
        assert ROOT in node.dht.gone
        assert await node.catalogue.entries() == []
        with pytest.raises(NotFoundError):
            await node.promises.drop_link(ROOT)


async def test_nothing_goes_while_a_put_runs_and_all_of_it_afterwards(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        await node.put()
        await node.peer_puts(A)
        async with node.promises.putting():
            await node.promises.drop_link(ROOT)
            assert (await node.releaser.round()).deferred
            await node.promises.release_for_peer(A, [DIGEST])
            assert await node.held()
            assert node.peers.asked == []
        assert not (await node.releaser.round()).deferred
        assert not await node.held()
        assert len(node.peers.asked) == 2


async def test_what_a_put_took_up_meanwhile_is_neither_deleted_nor_released(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as node:
        await node.put()
        async with node.promises.putting():
            await node.promises.drop_link(ROOT)
            await node.put(b"o" * 32)
        await node.releaser.round()
        assert await node.held()
        assert node.peers.asked == []


async def test_an_unreachable_peer_is_told_when_it_is_back(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        await node.put()
        await node.promises.drop_link(ROOT)
        node.peers.away = {B}
        assert (await node.releaser.round()).unreachable == {B}
        assert node.peers.asked == [(A, (DIGEST,))]
        await node.releaser.round()
        assert len(node.peers.asked) == 1
        node.peers.away = set()
        await node.releaser.round()
        assert node.peers.asked[1:] == [(B, (DIGEST,))]
        await node.releaser.round()
        assert len(node.peers.asked) == 2


async def test_what_a_crash_left_to_do_is_done_after_the_restart(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        await node.put()
        await node.promises.drop_link(ROOT)
    async with bench(tmp_path) as node:
        assert await node.held()
        await node.releaser.round()
        assert not await node.held()
        assert len(node.peers.asked) == 2


async def test_no_receipt_for_a_chunk_that_is_gone(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        with pytest.raises(StoreError):
            await node.promises.keep_for_peer(Kept(DIGEST, len(DATA), A, 2_000_000_000, False))


async def test_a_put_that_lost_a_chunk_holds_nothing_and_is_not_listed(tmp_path: Path) -> None:
    async with bench(tmp_path) as node:
        with pytest.raises(TransferError):
            await node.promises.hold_link(entry(), [DIGEST])
        assert await node.store.holds.held_for(SELF, ROOT) == []
        assert await node.catalogue.entries() == []


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

        monkeypatch.setattr(type(node.store.holds), "add_present", lambda self, rows: fail(rows))
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


async def test_new_and_gone_chunks_are_told_together_and_again_after_a_failure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    dht = FakeDht()
    dht.failures = 2
    announcer = Announcer(dht)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(announcer.run)
        announcer.add([(DIGEST, 1), (b"x" * 32, 3)])
        announcer.add([(ROOT, 2)])
        announcer.withdraw([b"x" * 32])
        assert announcer.lag == 2
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert sorted(dht.announced) == sorted([(DIGEST, 1), (ROOT, 2)])
    assert dht.told_gone == [b"x" * 32]
