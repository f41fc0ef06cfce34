"""The library's Yamux behind a narrow face, with its faults kept on this side.

What is weaker than the specification in it, and stays so until it is replaced: a peer may overrun
its receive window (memory is then bounded by its patience alone), and a write that meets a closed
window polls for it, 5 s at most.
"""

from __future__ import annotations

import struct
from typing import cast

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_SYN,
    TYPE_PING,
    YAMUX_HEADER_FORMAT,
    Yamux,
    YamuxStream,
)

from ...dht.host import Buffer
from ...dht.peer_id import PeerId
from ...errors import PeerError

LIBRARY_ERRORS = (
    BaseLibp2pError,
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    KeyError,  # its tables of streams are changed by one task while another looks something up
    RuntimeError,
    ValueError,
)


class MuxedStream:
    """One Yamux stream. Every failure is a PeerError; nothing here heeds the connection's end."""

    __slots__ = ("_yamux",)

    def __init__(self, yamux: YamuxStream) -> None:
        self._yamux = yamux

    @property
    def finished(self) -> bool:
        """Both directions are closed, or it was reset."""
        return self._yamux.closed

    async def read(self, max_bytes: int) -> bytes:
        try:
            return await self._yamux.read(max_bytes)
        except MuxedStreamEOF as error:
            self._tidy()
            # The library reports a reset, and the loss of the connection, as a clean end.
            if self._yamux.conn.event_shutting_down.is_set():
                raise PeerError("the connection was lost") from error
            if self._yamux.reset_received:
                raise PeerError("it was reset by the peer") from error
            return b""
        except LIBRARY_ERRORS as error:
            self._tidy()
            raise PeerError(_reason(error)) from error

    def _tidy(self) -> None:
        # A reader woken by the end of its stream puts the stream's event back into the table.
        if self._yamux.stream_id not in self._yamux.conn.streams:
            self._yamux.conn.stream_events.pop(self._yamux.stream_id, None)

    async def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        try:
            # It only slices, measures and joins: a view saves one copy of everything sent.
            await self._yamux.write(cast(bytes, view))
        except LIBRARY_ERRORS as error:
            raise PeerError(_reason(error)) from error

    async def close(self) -> None:
        try:
            await self._yamux.close()
        except LIBRARY_ERRORS as error:
            raise PeerError(_reason(error)) from error

    async def reset(self) -> None:
        try:
            await self._yamux.reset()
        except LIBRARY_ERRORS as error:
            raise PeerError(_reason(error)) from error


class Muxer:
    """An authenticated connection that carries streams."""

    def __init__(self, peer: PeerId, yamux: Yamux) -> None:
        self.peer = peer
        self._yamux = yamux
        self._pings = 0

    async def run(self) -> None:
        """Move frames until the connection ends."""
        await self._yamux.start()

    async def wait_running(self) -> None:
        await self._yamux.event_started.wait()

    async def open(self) -> MuxedStream:
        """Open a stream; PeerError when the connection is going down."""
        try:
            return MuxedStream(await self._yamux.open_stream())
        except LIBRARY_ERRORS as error:
            raise PeerError(_reason(error)) from error

    async def accept(self) -> MuxedStream:
        """The next stream the peer opens; PeerError at the end of the connection."""
        try:
            return MuxedStream(cast(YamuxStream, await self._yamux.accept_stream()))
        except LIBRARY_ERRORS as error:
            raise PeerError(_reason(error)) from error

    async def ping(self) -> None:
        """Send a Yamux ping; the answer shows as traffic. The library's own pings ignore theirs."""
        self._pings += 1
        # The upper half of the numbers, so that the library's own pings do not meet these answers.
        number = 0x8000_0000 | self._pings & 0x7FFF_FFFF
        frame = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_PING, FLAG_SYN, 0, number)
        try:
            await self._yamux._write_frame(frame)
        except LIBRARY_ERRORS as error:
            raise PeerError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
