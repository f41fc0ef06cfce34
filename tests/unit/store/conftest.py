"""One harness per implementation, so that every shared test runs against both."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from blake3 import blake3
from meshnode.node.store import ChunkStore, Digest, MemoryStore, open_store

Chunk = tuple[Digest, bytes]


def chunk_of(data: bytes) -> Chunk:
    return blake3(data).digest(), data


def some_chunks(count: int, *, seed: int = 7, low: int = 1, high: int = 900) -> list[Chunk]:
    rng = random.Random(seed)
    return [chunk_of(rng.randbytes(rng.randint(low, high))) for _ in range(count)]


@dataclass
class Harness:
    """A store, and a way to let one of its chunks rot."""

    store: ChunkStore
    rot: Callable[[Digest], None]
    rotten: list[Digest] = field(default_factory=list)


@asynccontextmanager
async def memory_harness(path: Path, quota: int | None) -> AsyncIterator[Harness]:
    rotten: list[Digest] = []
    store = MemoryStore(quota=quota, on_rotten=rotten.append)

    def rot(digest: Digest) -> None:
        data = bytearray(store._chunks[digest])
        data[len(data) // 2] ^= 1
        store._chunks[digest] = bytes(data)

    yield Harness(store, rot, rotten)


@asynccontextmanager
async def segment_harness(path: Path, quota: int | None) -> AsyncIterator[Harness]:
    rotten: list[Digest] = []

    async with open_store(
        path,
        quota=quota,
        min_free=0,
        segment_bytes=4096,
        on_quarantine=lambda event: rotten.append(event.digest),
    ) as store:

        def rot(digest: Digest) -> None:
            flip_byte_of(path, digest)

        yield Harness(store.chunks, rot, rotten)


def flip_byte_of(path: Path, digest: Digest) -> None:
    """Flip one bit in the middle of a chunk's stored payload, found by its entry header."""
    for segment in sorted((path / "segments").iterdir()):
        raw = segment.read_bytes()
        at = raw.find(digest)
        if at != -1:
            length = int.from_bytes(raw[at - 4 : at], "little")
            with segment.open("r+b") as file:
                spot = at + 36 + length // 2
                file.seek(spot)
                file.write(bytes([raw[spot] ^ 1]))
            return
    raise AssertionError("the chunk is in no segment")


@pytest.fixture(params=["memory", "segment"])
def open_harness(request: pytest.FixtureRequest, tmp_path: Path) -> object:
    """Call with `quota=` to get an async context manager of a `Harness`."""
    make = {"memory": memory_harness, "segment": segment_harness}[request.param]
    return lambda quota=None: make(tmp_path / "data", quota)
