"""Who was promised which chunk, across restarts and a lost index."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from blake3 import blake3
from meshnode.node.store import Store, open_store
from meshnode.node.store.holds import ALL_PEERS, HERE, Letting
from meshnode.node.store.recovery import Recovery

A, B = b"owner a", b"owner b"
ROOT, OTHER = b"root 1", b"root 2"
CHUNK = b"some bytes"
DIGEST = blake3(CHUNK).digest()


def opened(path: Path) -> AbstractAsyncContextManager[Store]:
    return open_store(path, quota=None, min_free=0, segment_bytes=4096)


async def let_go(
    store: Store, owner: bytes, digests: Sequence[bytes], root: bytes = b""
) -> Letting:
    letting = await store.holds.letting(owner, digests, root=root)
    await store.holds.drop(owner, letting.held, root=root)
    return letting


async def test_a_chunk_is_free_only_when_its_last_owner_lets_go(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.holds.add(A, [DIGEST], 1.0)
        await store.holds.add(B, [DIGEST], 1.0)
        assert await let_go(store, A, [DIGEST]) == Letting((DIGEST,), (DIGEST,), ())
        assert await let_go(store, B, [DIGEST]) == Letting((DIGEST,), (DIGEST,), (DIGEST,))


async def test_an_owner_with_two_roots_holds_until_both_are_dropped(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.holds.add(A, [DIGEST], 1.0, root=ROOT)
        await store.holds.add(A, [DIGEST], 1.0, root=OTHER)
        assert await let_go(store, A, [DIGEST], ROOT) == Letting((DIGEST,), (), ())
        assert await store.holds.held_for(A, OTHER) == [DIGEST]


async def test_dropping_what_one_does_not_hold_frees_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.holds.add(A, [DIGEST], 1.0)
        assert await let_go(store, B, [DIGEST]) == Letting((), (), ())
        assert await let_go(store, A, [DIGEST], ROOT) == Letting((), (), ())


async def test_holds_survive_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.holds.add(A, [DIGEST], 1.0, root=ROOT)
    async with opened(tmp_path) as store:
        assert await store.holds.held_for(A, ROOT) == [DIGEST]


async def test_what_is_held_again_is_neither_deleted_nor_released(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.holds.add(A, [DIGEST], 1.0, root=ROOT)
        await store.holds.drop(A, [DIGEST], root=ROOT, release=[DIGEST], free=[DIGEST])
        assert await store.holds.deletable(10) == [DIGEST]
        assert await store.holds.releases(A, ALL_PEERS, 10, 0.0) == [DIGEST]
        await store.holds.add(A, [DIGEST], 1.0, root=OTHER)
        assert await store.holds.deletable(10) == []
        assert await store.holds.releases(A, ALL_PEERS, 10, 0.0) == []


async def test_peers_that_were_not_told_are_remembered_by_name(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.holds.add(A, [DIGEST], 1.0, root=ROOT)
        await store.holds.drop(A, [DIGEST], root=ROOT, release=[DIGEST], until=50.0)
        await store.holds.told([DIGEST], ALL_PEERS, owed=[B])
    async with opened(tmp_path) as store:
        assert await store.holds.releases(A, ALL_PEERS, 10, 0.0) == []
        assert await store.holds.owed_peers() == [B]
        assert await store.holds.releases(A, B, 10, 49.0) == [DIGEST]
        assert await store.holds.releases(A, B, 10, 51.0) == []  # its lease is over


async def test_done_is_done(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.holds.add(A, [DIGEST], 1.0)
        await store.holds.drop(A, [DIGEST], release=[DIGEST], free=[DIGEST])
        await store.holds.told([DIGEST], HERE)
        await store.holds.told([DIGEST], ALL_PEERS)
        assert await store.holds.deletable(10) == []
        assert await store.holds.releases(A, ALL_PEERS, 10, 0.0) == []
        assert await store.holds.owed_peers() == []


async def lose_the_index(path: Path) -> None:
    async with opened(path) as store:
        await store.chunks.put([(DIGEST, CHUNK)])
        await store.holds.add(A, [DIGEST], 1.0)
        await store.holds.add(B, [DIGEST], 1.0)
    for file in path.glob("index.db*"):
        file.unlink()


async def test_after_a_lost_index_nobody_can_free_what_others_may_have_been_promised(
    tmp_path: Path,
) -> None:
    await lose_the_index(tmp_path)
    async with opened(tmp_path) as store:
        assert await store.chunks.has([DIGEST]) == [True]
        await store.holds.add(A, [DIGEST], 1.0)
        assert (await let_go(store, A, [DIGEST])).free == ()


async def test_a_rebuild_cut_short_is_remembered_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lose_the_index(tmp_path)

    class PowerCutError(Exception):
        pass

    whole = Recovery.run

    def cut_short(self: Recovery, tail: object) -> object:
        whole(self, tail)  # type: ignore[arg-type]
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(Recovery, "run", cut_short)
        with pytest.raises(PowerCutError):
            async with opened(tmp_path):
                pass
    async with opened(tmp_path) as store:
        await store.holds.add(A, [DIGEST], 1.0)
        assert (await let_go(store, A, [DIGEST])).free == ()


async def test_a_store_in_use_is_not_taken_for_a_rebuilt_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.chunks.put([(DIGEST, CHUNK)])
        await store.holds.add(A, [DIGEST], 1.0)
    async with opened(tmp_path) as store:
        assert (await let_go(store, A, [DIGEST])).free == (DIGEST,)
