"""Framing over a `Stream`, and a pool that keeps streams open between requests.

Opening a stream costs one or two round trips and milliseconds of processor time, a request on an
open one a fraction of it; so streams are opened once per peer and protocol and kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import trio

from ...dht.host import Buffer, Host, Stream
from ...dht.peer_id import PeerId
from ...errors import PeerError
from .owned_nursery import open_owned_nursery

_READ_AHEAD = 64 * 1024
_DIRECT = 4096
"""Bytes from which on reading ahead gains less than a copy costs."""
_JOIN_LIMIT = 64 * 1024
_MAX_VARINT_BYTES = 5  # 35 bits: no frame we accept comes near


@runtime_checkable
class ReadsInto(Protocol):
    """What a `Stream` may offer besides: reading without a copy in between."""

    async def read_into(self, target: memoryview) -> int:
        """As `Stream.read_some`, into `target` (not empty, writable bytes); returns how many."""
        ...


class BufferedStream:
    """A `Stream` with exact reads and length-prefixed frames.

    One reader and one writer at a time. Any PeerError from here means that the stream is of no
    further use: reset it.
    """

    __slots__ = (
        "_buffer",
        "_direct",
        "_ended",
        "_open",
        "_position",
        "_stream",
        "kept",
        "received",
    )

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._direct = stream.read_into if isinstance(stream, ReadsInto) else None
        self._buffer = b""
        self._position = 0
        self._ended = False
        self._open = True
        self.kept = False
        """Whether the pool had kept this stream from an earlier lease."""
        self.received = 0
        """Bytes that came in, since the start of the lease when it is leased."""

    @property
    def peer(self) -> PeerId:
        return self._stream.peer

    @property
    def protocol(self) -> str:
        return self._stream.protocol

    @property
    def reusable(self) -> bool:
        """Open both ways, and nothing unread that would be taken for a later answer."""
        return self._open and not self._ended and self._position == len(self._buffer)

    async def _fill(self, want: int) -> bytes:
        data = await self._stream.read_some(max(want, _READ_AHEAD))
        self.received += len(data)
        if not data:
            self._ended = True
        return data

    def _take(self, limit: int) -> memoryview:
        """Up to `limit` buffered bytes, not copied."""
        start = self._position
        self._position = min(start + limit, len(self._buffer))
        return memoryview(self._buffer)[start : self._position]

    def _cut_short(self, missing: int) -> PeerError:
        return PeerError(
            f"Peer {self.peer.short} ended a {self.protocol} stream {missing} bytes too early."
        )

    async def at_end(self) -> bool:
        """Wait for the next byte or the end of the stream; whether it is the end.

        For a serving loop: `while not await stream.at_end(): request = await stream.read_frame(n)`.
        """
        if self._position == len(self._buffer) and not self._ended:
            self._buffer, self._position = await self._fill(0), 0
        return self._position == len(self._buffer)

    async def read_some(self, max_bytes: int = _READ_AHEAD) -> bytes:
        """Between 1 and `max_bytes` bytes; `b""` at the end of the stream."""
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        return b"" if await self.at_end() else bytes(self._take(max_bytes))

    async def read_exactly(self, size: int) -> bytes:
        """Exactly `size` bytes. Memory grows with what arrives, not with what was announced.

        Raises:
            PeerError: the stream ended before, was reset, or the connection was lost.
        """
        head = self._take(size)
        missing = size - len(head)
        if not missing:
            return bytes(head)
        parts: list[bytes | memoryview] = [head]
        while missing:
            if not (data := await self._fill(missing)):
                raise self._cut_short(missing)
            if len(data) <= missing:
                parts.append(data)
                missing -= len(data)
            else:
                self._buffer, self._position = data, 0
                parts.append(self._take(missing))
                missing = 0
        return b"".join(parts)

    async def read_into(self, target: memoryview) -> None:
        """Fill the whole of `target` (a writable view of bytes).

        What has not been read ahead comes without a copy in between, if the stream `ReadsInto`.

        Raises:
            PeerError: as for `read_exactly`; `target` may then be partly written.
        """
        size = len(target)
        head = self._take(size)
        done = len(head)
        target[:done] = head
        while done < size:
            if self._direct is not None and size - done >= _DIRECT:
                if not (came := await self._direct(target[done:])):
                    self._ended = True
                    raise self._cut_short(size - done)
                self.received += came
                done += came
                continue
            if not (data := await self._fill(size - done)):
                raise self._cut_short(size - done)
            if len(data) <= size - done:
                target[done : done + len(data)] = data
                done += len(data)
            else:
                self._buffer, self._position = data, 0
                target[done:] = self._take(size - done)
                done = size

    async def read_frame(self, max_bytes: int) -> bytes:
        """A frame behind an unsigned varint length (libp2p's usual framing).

        Raises:
            PeerError: truncated, longer than `max_bytes`, or not a minimal varint.
        """
        size = shift = 0
        for index in range(_MAX_VARINT_BYTES):
            if self._position == len(self._buffer) and await self.at_end():
                raise self._cut_short(1)
            byte = self._buffer[self._position]
            self._position += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                if byte == 0 and index:
                    break
                return await self._frame_body(size, max_bytes)
        raise PeerError(f"Peer {self.peer.short} sent a malformed frame length ({self.protocol}).")

    async def read_u32_frame(self, max_bytes: int) -> bytes:
        """A frame behind a 4-byte big-endian length.

        Raises:
            PeerError: truncated, or longer than `max_bytes`.
        """
        size = int.from_bytes(await self.read_exactly(4), "big")
        return await self._frame_body(size, max_bytes)

    async def _frame_body(self, size: int, max_bytes: int) -> bytes:
        if size > max_bytes:
            raise PeerError(
                f"Peer {self.peer.short} announced a frame of {size} bytes on {self.protocol}; "
                f"at most {max_bytes} are allowed."
            )
        return await self.read_exactly(size)

    def take_rest(self) -> bytes:
        """What was read ahead and not asked for, to hand the inner stream on to another reader."""
        return bytes(self._take(len(self._buffer)))

    async def write(self, data: Buffer) -> None:
        await self._stream.write(data)

    async def write_frame(self, data: Buffer) -> None:
        """Write `data` behind its varint length."""
        await self._write_behind(encode_varint(len(data)), data)

    async def write_u32_frame(self, data: Buffer) -> None:
        """Write `data` behind its 4-byte big-endian length."""
        await self._write_behind(len(data).to_bytes(4, "big"), data)

    async def _write_behind(self, prefix: bytes, data: Buffer) -> None:
        if len(data) <= _JOIN_LIMIT:
            # One write is one record to encrypt and one packet to send.
            await self._stream.write(b"".join((prefix, data)))
        else:
            await self._stream.write(prefix)
            await self._stream.write(data)

    async def close(self) -> None:
        self._open = False
        await self._stream.close()

    async def reset(self) -> None:
        self._open = False
        await self._stream.reset()


def encode_varint(number: int) -> bytes:
    """Unsigned LEB128, as in the multiformats specification."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


@dataclass(slots=True, eq=False)
class _Lane:
    """The streams to one peer for one protocol. Invariant: leased + waiting > 0, or idle streams,
    or the lane is gone from the pool."""

    slots: trio.Semaphore
    idle: list[tuple[float, BufferedStream]] = field(default_factory=list)
    users: int = 0


async def _acquire(slots: trio.Semaphore) -> None:
    # A free slot costs no turn of the scheduler: there are enough of those in a request.
    try:
        slots.acquire_nowait()
    except trio.WouldBlock:
        await slots.acquire()


class StreamPool:
    """Keeps streams per (peer, protocol); `open_stream_pool` also tends it.

    Args:
        max_streams: streams leased at once per peer and protocol; further leases wait.
        max_idle: streams kept per peer and protocol when not leased.
        max_age: seconds an idle stream is kept.
    """

    def __init__(
        self, host: Host, *, max_streams: int = 16, max_idle: int = 4, max_age: float = 60.0
    ) -> None:
        self._host = host
        self._max_streams = max_streams
        self._max_idle = max_idle
        self._max_age = max_age
        self._lanes: OrderedDict[tuple[PeerId, str], _Lane] = OrderedDict()

    @property
    def idle_streams(self) -> int:
        return sum(len(lane.idle) for lane in self._lanes.values())

    @asynccontextmanager
    async def lease(
        self, peer: PeerId, protocol: str, *, fresh: bool = False
    ) -> AsyncIterator[BufferedStream]:
        """Use a stream for the length of the block.

        A clean exit keeps it for the next lease (unless the block closed it or left bytes unread);
        any exception or cancellation resets it. `fresh=True` never takes a kept stream: a kept one
        may turn out to have died while idle (`stream.kept and not stream.received`).

        Raises:
            PeerError, MembershipError: no stream to be had, as `Host.open_stream`.
        """
        key = (peer, protocol)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(trio.Semaphore(self._max_streams))
        lane.users += 1
        try:
            await _acquire(lane.slots)
            try:
                stream = None if fresh else await self._kept(lane)
                if stream is None:
                    stream = BufferedStream(await self._host.open_stream(peer, protocol))
                try:
                    yield stream
                except BaseException:
                    await stream.reset()
                    raise
                await self._give_back(lane, stream)
            finally:
                lane.slots.release()
        finally:
            lane.users -= 1
            self._forget_if_unused(key, lane)

    async def request(
        self, peer: PeerId, protocol: str, payload: Buffer, *, max_response: int
    ) -> bytes:
        """Send one varint frame, return the one varint frame that answers it.

        When a kept stream dies before the first byte of the answer, the request is sent once more
        on a fresh one: so it must be one that may safely arrive twice.

        Raises:
            PeerError: unreachable, reset, nonsense, or an answer above `max_response` bytes.
            MembershipError: the peer is not in our mesh.
        """
        stream: BufferedStream | None = None
        try:
            async with self.lease(peer, protocol) as stream:
                await stream.write_frame(payload)
                return await stream.read_frame(max_response)
        except PeerError:
            if stream is None or not stream.kept or stream.received:
                raise
        await self._drop_idle(peer, protocol)
        async with self.lease(peer, protocol, fresh=True) as stream:
            await stream.write_frame(payload)
            return await stream.read_frame(max_response)

    async def tend(self) -> None:
        """Drop idle streams of lost peers at once and old ones in time, until cancelled."""
        async with self._host.events() as events:
            while True:
                lost: PeerId | None = None
                with trio.move_on_after(self._max_age / 2):
                    event = await events.receive()
                    lost = None if event.connected else event.peer
                if lost is not None:
                    await self._drop_idle(lost)
                await self._drop_aged()

    async def aclose(self) -> None:
        """Close all idle streams."""
        for key, lane in list(self._lanes.items()):
            idle, lane.idle = lane.idle, []
            self._forget_if_unused(key, lane)
            for _, stream in idle:
                await stream.close()

    async def _kept(self, lane: _Lane) -> BufferedStream | None:
        oldest = trio.current_time() - self._max_age
        while lane.idle:
            since, stream = lane.idle.pop()
            if since >= oldest and stream.peer in self._host.connected_peers():
                stream.kept = True
                stream.received = 0
                return stream
            await stream.reset()
        return None

    async def _give_back(self, lane: _Lane, stream: BufferedStream) -> None:
        if not stream.reusable:
            await stream.reset()
        elif len(lane.idle) >= self._max_idle:
            await stream.close()
        else:
            lane.idle.append((trio.current_time(), stream))

    def _forget_if_unused(self, key: tuple[PeerId, str], lane: _Lane) -> None:
        if not lane.users and not lane.idle and self._lanes.get(key) is lane:
            del self._lanes[key]

    async def _drop_idle(self, peer: PeerId, protocol: str | None = None) -> None:
        for key, lane in list(self._lanes.items()):
            if key[0] == peer and protocol in (None, key[1]):
                doomed, lane.idle = lane.idle, []
                self._forget_if_unused(key, lane)
                for _, stream in doomed:
                    await stream.reset()

    async def _drop_aged(self) -> None:
        oldest = trio.current_time() - self._max_age
        for key, lane in list(self._lanes.items()):
            doomed = [stream for since, stream in lane.idle if since < oldest]
            lane.idle = [(since, stream) for since, stream in lane.idle if since >= oldest]
            self._forget_if_unused(key, lane)
            for stream in doomed:
                await stream.close()


@asynccontextmanager
async def open_stream_pool(
    host: Host, *, max_streams: int = 16, max_idle: int = 4, max_age: float = 60.0
) -> AsyncIterator[StreamPool]:
    """A tended `StreamPool`; its idle streams are let go at the end."""
    pool = StreamPool(host, max_streams=max_streams, max_idle=max_idle, max_age=max_age)
    async with open_owned_nursery() as nursery:
        nursery.start_soon(pool.tend)
        try:
            yield pool
        finally:
            with trio.CancelScope(shield=True):
                await pool.aclose()
