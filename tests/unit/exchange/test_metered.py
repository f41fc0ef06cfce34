"""A metered stream counts what passes, and stands in the way of no read without a copy."""

from __future__ import annotations

import random

import pytest
from meshnode.dht.host import Buffer
from meshnode.dht.peer_id import PeerId
from meshnode.node.exchange.metered import MeteredStream
from meshnode.node.transport.streams import BufferedStream

BODY = random.Random(5).randbytes(1 << 20)


class Inner:
    """A stream that brings `data`, at most 60,000 bytes at a time."""

    protocol = "/test/1"
    peer = PeerId.from_ed25519(bytes(32))

    def __init__(self, data: bytes) -> None:
        self.rest = data
        self.by_some = 0

    async def read_some(self, max_bytes: int = 65536) -> bytes:
        data = self._next(max_bytes)
        self.by_some += len(data)
        return data

    def _next(self, most: int) -> bytes:
        size = min(most, 60_000)
        data, self.rest = self.rest[:size], self.rest[size:]
        return data

    async def write(self, data: Buffer) -> None: ...

    async def close(self) -> None: ...

    async def reset(self) -> None: ...


class DirectInner(Inner):
    """One that also reads into memory given to it."""

    async def read_into(self, target: memoryview) -> int:
        data = self._next(len(target))
        target[: len(data)] = data
        return len(data)


@pytest.mark.parametrize("kind", [Inner, DirectInner])
async def test_a_body_is_the_same_and_counted_whether_or_not_the_stream_reads_into_memory(
    kind: type[Inner],
) -> None:
    inner = kind(b"header" + BODY)
    reads = []
    metered = MeteredStream(inner, lambda: reads.append(metered.bytes_read))
    reader = BufferedStream(metered)
    assert await reader.read_exactly(6) == b"header"
    body = bytearray(len(BODY))
    await reader.read_into(memoryview(body))
    assert body == BODY
    assert metered.bytes_read == 6 + len(BODY)
    assert reads == sorted(reads)
    assert len(reads) >= len(BODY) // 60_000, "progress is told as it is made"
    if kind is DirectInner:
        assert inner.by_some <= 65_536, "only what was read ahead came through another buffer"
