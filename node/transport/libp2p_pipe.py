"""The socket under the library's Noise and Yamux."""

from __future__ import annotations

import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError

_READ_SIZE = 256 * 1024


class RawPipe(ReadWriteCloser):
    """A TCP connection whose writes are whole or the end of it.

    The library writes a frame as one or more `write` calls and can be cancelled inside any of them;
    what had left by then would shift the peer's view of every later frame. So a write here is
    shielded from cancellation and bounded instead: when the peer's machine takes nothing for
    `stall_timeout` seconds, the connection is closed.

    Reads are served from one large buffer, because the library asks for two bytes at a time.
    """

    def __init__(self, stream: trio.SocketStream, stall_timeout: float) -> None:
        self._stream = stream
        self._stall_timeout = stall_timeout
        self._buffer = b""
        self._position = 0
        self.last_received = trio.current_time()
        """When the peer was last heard of, on trio's clock."""

    async def read(self, n: int | None = None) -> bytes:
        if n == 0:
            return b""
        if self._position == len(self._buffer):
            self._buffer, self._position = await self._receive(), 0
            self.last_received = trio.current_time()
        end = len(self._buffer) if n is None else self._position + n
        data = self._buffer[self._position : end]
        self._position += len(data)
        return data

    async def _receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(_READ_SIZE))
        except trio.BrokenResourceError as error:
            raise ConnectionClosedError("reset by the peer", transport="tcp") from error
        except trio.ClosedResourceError:
            return b""

    async def write(self, data: bytes) -> None:
        stalled = trio.CancelScope(deadline=trio.current_time() + self._stall_timeout, shield=True)
        with stalled:
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionClosedError("closed while writing", transport="tcp") from error
        if stalled.cancelled_caught:
            self.abort()
            raise ConnectionClosedError("the peer's machine takes no bytes", transport="tcp")

    async def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        """Close the socket now; whoever reads or writes on it is woken."""
        self._stream.socket.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        try:
            address = self._stream.socket.getpeername()
        except OSError:
            return None
        return str(address[0]), int(address[1])
