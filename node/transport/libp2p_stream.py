"""One stream of a real connection; implements `Stream`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ...dht.host import Buffer
from ...dht.peer_id import PeerId
from ...errors import PeerError
from .native_stream import NativeStream

if TYPE_CHECKING:
    from .libp2p_connection import Libp2pConnection


class Libp2pStream:
    """A `NativeStream` with the face of `Stream`.

    A cancelled read or write resets the stream: below, nothing would be lost, but nobody could tell
    where in its protocol the stream stands.
    """

    __slots__ = ("_connection", "_failure", "_muxed", "_protocol", "_unread")

    def __init__(self, connection: Libp2pConnection, muxed: NativeStream, protocol: str) -> None:
        self._connection = connection
        self._muxed = muxed
        self._protocol = protocol
        self._unread = b""
        self._failure: str | None = None

    @property
    def peer(self) -> PeerId:
        return self._connection.peer

    @property
    def protocol(self) -> str:
        return self._protocol

    @property
    def finished(self) -> bool:
        """Nothing of it is left on the connection."""
        return self._failure is not None or self._muxed.finished

    def begin(self, protocol: str, unread: bytes) -> None:
        """Start the life of the stream after negotiation, with what was read beyond that."""
        self._protocol = protocol
        self._unread = unread

    async def read_some(self, max_bytes: int = 65536) -> bytes:
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        self._check()
        try:
            if self._unread:
                await trio.lowlevel.checkpoint()
                data, self._unread = self._unread[:max_bytes], self._unread[max_bytes:]
                return data
            return await self._muxed.read(max_bytes)
        except trio.Cancelled:
            self._abandon("a read on it was cancelled")
            raise
        except PeerError as error:
            raise self._failed(error) from error

    async def read_into(self, target: memoryview) -> int:
        """As `read_some`, without a copy in between; returns how many bytes of `target` came."""
        if self._unread or not target:
            data = await self.read_some(len(target))
            target[: len(data)] = data
            return len(data)
        self._check()
        try:
            return await self._muxed.read_into(target)
        except trio.Cancelled:
            self._abandon("a read on it was cancelled")
            raise
        except PeerError as error:
            raise self._failed(error) from error

    async def write(self, data: Buffer) -> None:
        self._check()
        try:
            await self._muxed.write(data)
        except trio.Cancelled:
            self._abandon("a write on it was cancelled")
            raise
        except PeerError as error:
            raise self._failed(error) from error

    async def close(self) -> None:
        if self._failure is None:
            self._muxed.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def reset(self) -> None:
        self._abandon("it was reset here")
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _check(self) -> None:
        if self._failure is not None:
            raise PeerError(self._failure)

    def _abandon(self, why: str) -> None:
        """Give the stream up and tell the peer."""
        if self._failure is None:
            self._failure = self._describe(why)
            self._unread = b""
            self._muxed.reset(why)

    def _failed(self, error: PeerError) -> PeerError:
        self._abandon(error.message)
        return PeerError(self._failure or error.message)

    def _describe(self, why: str) -> str:
        return f"The {self._protocol} stream to peer {self.peer.short} failed: {why}."
