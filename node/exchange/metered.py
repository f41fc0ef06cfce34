"""A `Stream` that remembers when and how much came and went."""

from __future__ import annotations

from collections.abc import Callable

import trio

from ...dht.host import Buffer, Stream
from ...dht.peer_id import PeerId
from ..transport.streams import ReadsInto


class MeteredStream:
    """Implements `Stream` around another one. Times are trio's.

    Args:
        on_read: called whenever bytes (or the end) came in.
    """

    def __init__(self, stream: Stream, on_read: Callable[[], None] = lambda: None) -> None:
        self._stream = stream
        self._direct = stream.read_into if isinstance(stream, ReadsInto) else None
        self._on_read = on_read
        self.bytes_read = 0
        self.bytes_written = 0
        self.last_read_at = self.last_write_at = trio.current_time()

    @property
    def peer(self) -> PeerId:
        return self._stream.peer

    @property
    def protocol(self) -> str:
        return self._stream.protocol

    async def read_some(self, max_bytes: int = 65536) -> bytes:
        data = await self._stream.read_some(max_bytes)
        self.bytes_read += len(data)
        self.last_read_at = trio.current_time()
        self._on_read()
        return data

    async def read_into(self, target: memoryview) -> int:
        """As `read_some`, into `target`; without a copy in between if the stream can."""
        if self._direct is not None:
            size = await self._direct(target)
        else:
            data = await self._stream.read_some(len(target))
            size = len(data)
            target[:size] = data
        self.bytes_read += size
        self.last_read_at = trio.current_time()
        self._on_read()
        return size

    async def write(self, data: Buffer) -> None:
        await self._stream.write(data)
        self.bytes_written += len(data)
        self.last_write_at = trio.current_time()

    async def close(self) -> None:
        await self._stream.close()

    async def reset(self) -> None:
        await self._stream.reset()
