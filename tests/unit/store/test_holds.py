"""Who was promised which chunk, across restarts and a lost index."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3
from meshnode.node.store import Store, open_store

A, B = b"owner a", b"owner b"
ROOT, OTHER = b"root 1", b"root 2"
CHUNK = b"some bytes"
DIGEST = blake3(CHUNK).digest()


def opened(path: Path):
    return open_store(path, quota=None, min_free=0, segment_bytes=4096)


async def filled(store: Store) -> None:
    await store.chunks.put([(DIGEST, CHUNK)])


async def test_a_chunk_is_free_only_when_its_last_owner_lets_go(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await filled(store)
        await store.holds.add(A, [DIGEST], 1.0)
        await store.holds.add(B, [DIGEST], 1.0)
        assert await store.holds.drop(A, [DIGEST]) == ([DIGEST], [])
        assert await store.holds.drop(B, [DIGEST]) == ([DIGEST], [DIGEST])


async def test_an_owner_with_two_roots_holds_until_both_are_dropped(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.holds.add(A, [DIGEST], 1.0, root=ROOT)
        await store.holds.add(A, [DIGEST], 1.0, root=OTHER)
        assert await store.holds.drop(A, [DIGEST], root=ROOT) == ([], [])
        assert await store.holds.held_for(A, OTHER) == [DIGEST]


async def test_dropping_what_one_does_not_hold_frees_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.holds.add(A, [DIGEST], 1.0)
        assert await store.holds.drop(B, [DIGEST]) == ([], [])
        assert await store.holds.drop(A, [DIGEST], root=ROOT) == ([], [])


async def test_holds_survive_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await filled(store)
        await store.holds.add(A, [DIGEST], 1.0, root=ROOT)
    async with opened(tmp_path) as store:
        assert await store.holds.held_for(A, ROOT) == [DIGEST]


async def test_after_a_lost_index_nobody_can_free_what_others_may_have_been_promised(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as store:
        await filled(store)
        await store.holds.add(A, [DIGEST], 1.0)
        await store.holds.add(B, [DIGEST], 1.0)
    for file in tmp_path.glob("index.db*"):
        file.unlink()
    async with opened(tmp_path) as store:
        assert await store.chunks.has([DIGEST]) == [True]
        await store.holds.add(A, [DIGEST], 1.0)
        assert await store.holds.drop(A, [DIGEST]) == ([DIGEST], [])
