"""Waiting on one Yamux stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ...dht.host import Buffer
from ...errors import PeerError
from .yamux_stream import YamuxStream

if TYPE_CHECKING:
    from .native_connection import NativeConnection


class NativeStream:
    """Reads and writes that wait. One reader and one writer at a time; more take turns.

    A cancelled read has taken nothing. Of a cancelled write, whole frames may have gone and nothing
    else will: connection and stream stay in order, but only the protocol on top could tell how much
    the peer has got.
    """

    __slots__ = ("_connection", "_readers", "_turns", "_writers", "_writing", "state")

    def __init__(self, connection: NativeConnection, state: YamuxStream) -> None:
        self.state = state
        self._connection = connection
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()
        self._turns = trio.lowlevel.ParkingLot()
        self._writing = False

    @property
    def finished(self) -> bool:
        """Nothing of it is left on the connection."""
        return self.state.finished

    async def read(self, max_bytes: int) -> bytes:
        """Between 1 and `max_bytes` bytes; `b""` at the end.

        Raises:
            PeerError: reset, or the connection was lost; what had come before is read first.
        """
        await self._readable()
        data = self.state.read(max_bytes)
        self._after_read()
        return data or b""

    async def read_into(self, target: memoryview) -> int:
        """As `read`, without a copy in between; returns how many bytes of `target` were filled."""
        await self._readable()
        size = self.state.read_into(target)
        self._after_read()
        return size or 0

    async def _readable(self) -> None:
        # The only places to be cancelled are before anything is taken.
        if self.state.readable:
            await trio.lowlevel.checkpoint()
        while not self.state.readable:
            await self._readers.park()

    def _after_read(self) -> None:
        if self._connection.owes_frames:
            self._connection.flush()
        if self.state.finished:
            self._connection.forget(self)

    async def write(self, data: Buffer) -> None:
        """Return once all of `data` is in sealed frames; it may then change.

        Raises:
            PeerError: reset, closed, lost, or no credit for the stall deadline.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._writing:
            await self._turns.park()
        state = self.state
        self._writing = True
        try:
            state.begin_write(data)
            self._connection.flush()
            if state.pending is None:
                # The bytes are on their way: other tasks get their turn after that, not before.
                await trio.lowlevel.cancel_shielded_checkpoint()
            while state.pending is not None:
                await self._wait_for_progress()
        finally:
            state.abandon_write()
            self._writing = False
            if self._connection.owes_frames:  # the end, when it was closed meanwhile
                self._connection.flush()
            self._turns.unpark()
        if state.failure is not None:
            raise PeerError(state.failure)

    async def _wait_for_progress(self) -> None:
        """Wait to be woken; PeerError when the peer gives no credit for too long.

        A stream with credit waits for its turn on the socket, and that is watched for all streams
        together.
        """
        state = self.state
        starved = not state.send_window
        with trio.move_on_after(self._connection.stall_timeout) as scope:
            await self._writers.park()
        if scope.cancelled_caught and starved and not state.send_window:
            self._connection.starved()
            raise PeerError("the peer gave its window no credit in time")

    def close(self) -> None:
        """Say that nothing more will be written. Never waits."""
        self.state.close()
        self._connection.flush()
        if self.state.finished:
            self._connection.forget(self)

    def reset(self, why: str = "it was reset here") -> None:
        """Drop both directions and tell the peer. Never waits."""
        self.state.reset(why)
        self.wake()
        self._connection.flush()
        self._connection.forget(self)

    def wake(self) -> None:
        """Something has come, or it is over."""
        self._readers.unpark_all()
        self._writers.unpark_all()
        if self.state.finished:
            self._connection.forget(self)

    def wake_writer(self) -> None:
        self._writers.unpark_all()
