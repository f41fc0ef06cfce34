from __future__ import annotations

import random
from collections.abc import Sequence

import trio
from blake3 import blake3
from meshnode.errors import StoreError
from meshnode.node.keeper import catch_up
from meshnode.node.store import MemoryStore
from trio.testing import MockClock

RNG = random.Random(4)


class Mesh:
    """What the DHT knows, and what it is to be told."""

    def __init__(self, known: Sequence[bytes]) -> None:
        self.known = set(known)
        self.told: list[tuple[bytes, int]] = []

    def holds(self, digest: bytes) -> bool:
        return digest in self.known

    async def announce_unheard(self, chunks: Sequence[tuple[bytes, int]]) -> int:
        await trio.lowlevel.checkpoint()
        self.told += chunks
        return len(chunks)


async def stored(count: int) -> tuple[MemoryStore, list[tuple[bytes, int]]]:
    store = MemoryStore()
    data = [RNG.randbytes(10 + i % 7) for i in range(count)]
    chunks = [(blake3(piece).digest(), piece) for piece in data]
    await store.put(chunks)
    return store, [(digest, len(piece)) for digest, piece in chunks]


async def test_chunks_the_mesh_was_never_told_of_are_announced_after_a_start(
    autojump_clock: MockClock,
) -> None:
    store, chunks = await stored(2300)
    mesh = Mesh([digest for digest, _ in chunks[:100]])
    await catch_up(store, mesh, mesh)
    assert sorted(mesh.told) == sorted(chunks[100:])


async def test_after_an_orderly_stop_there_is_nothing_to_catch_up_on(
    autojump_clock: MockClock,
) -> None:
    store, chunks = await stored(50)
    mesh = Mesh([digest for digest, _ in chunks])
    await catch_up(store, mesh, mesh)
    assert mesh.told == []


async def test_a_failing_store_ends_the_catching_up_and_nothing_else(
    autojump_clock: MockClock,
) -> None:
    class Failing(Mesh):
        async def announce_unheard(self, chunks: Sequence[tuple[bytes, int]]) -> int:
            await trio.lowlevel.checkpoint()
            raise StoreError("The disk is gone.")

    store, _ = await stored(5)
    mesh = Failing([])
    await catch_up(store, mesh, mesh)
    assert mesh.told == []
