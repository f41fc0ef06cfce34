"""A TCP socket without trio's stream around it: reads into our buffer, writes that never wait."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

import trio

from ...dht.host import Buffer
from ...errors import PeerError

_UNSENT: Final = 256 * 1024
"""What the kernel takes ahead of what it can send: a whole batch of the connection. trio allows
16 KiB, for which every batch was cut short and its rest cost another wake-up and system call."""


class NativeSocket:
    """Owns the descriptor taken from `stream`.

    `try_send` is not a coroutine: a frame is either in the kernel, or in the hands of whoever
    called, and no cancellation can come between.
    """

    __slots__ = ("_socket", "last_received")

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)
        with contextlib.suppress(AttributeError, OSError):  # not everywhere, and of TCP alone
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        self.last_received = trio.current_time()
        """When the peer was last heard of, on trio's clock."""

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    async def receive_into(self, target: memoryview) -> int:
        """Wait for bytes; returns how many came, 0 at the end of the connection.

        Raises:
            PeerError: the connection was lost.
        """
        while True:
            if (size := self.try_receive_into(target)) is not None:
                return size
            await self.wait_readable()

    def try_receive_into(self, target: memoryview) -> int | None:
        """As `receive_into`, without waiting: None when nothing has come."""
        try:
            size = self._socket.recv_into(target)
        except BlockingIOError:
            return None
        except OSError as error:
            raise PeerError(f"the connection was lost ({_reason(error)})") from error
        self.last_received = trio.current_time()
        return size

    async def wait_readable(self) -> None:
        self._check_open()
        try:
            await trio.lowlevel.wait_readable(self._socket)
        except (trio.ClosedResourceError, OSError) as error:
            raise PeerError("the connection was closed here") from error

    def try_send(self, data: Buffer) -> int:
        """Give the kernel what it takes of `data` now; returns how many bytes, maybe 0.

        Raises:
            PeerError: the connection was lost.
        """
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PeerError(f"the connection was lost ({_reason(error)})") from error

    async def send_all(self, data: Buffer, stall_timeout: float) -> None:
        """Write all of a handshake message; cancelled, the connection is of no further use.

        Raises:
            PeerError: the connection was lost, or the peer took nothing for `stall_timeout` s.
        """
        view = memoryview(data)
        while view:
            view = view[self.try_send(view) :]
            if view:
                await self.wait_writable(stall_timeout)

    async def wait_writable(self, stall_timeout: float) -> None:
        """Wait until the kernel takes bytes again.

        Raises:
            PeerError: it did not within `stall_timeout` seconds, or the socket was closed.
        """
        self._check_open()
        try:
            with trio.move_on_after(stall_timeout) as scope:
                await trio.lowlevel.wait_writable(self._socket)
        except (trio.ClosedResourceError, OSError) as error:
            raise PeerError("the connection was closed here") from error
        if scope.cancelled_caught:
            raise PeerError("the peer's machine takes no bytes")

    def _check_open(self) -> None:
        # trio must never be asked to wait for descriptor -1: it would remember that for ever.
        if self.closed:
            raise PeerError("the connection was closed here")

    def close(self) -> None:
        """Close now; whoever waits is woken. Idempotent."""
        if not self.closed:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


def _reason(error: OSError) -> str:
    return (error.strerror or os.strerror(error.errno or 0)).lower()
