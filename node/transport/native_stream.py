"""Waiting on one Yamux stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from ...dht.host import Buffer
from ...errors import PeerError
from .native_gate import Gate
from .yamux_stream import YamuxStream

if TYPE_CHECKING:
    from .native_connection import NativeConnection


LEAST_PROGRESS: Final = 4096
"""Bytes that must move in a stall deadline to count as progress: a peer that gives a byte of credit
now and then would hold a writer for ever."""
_YIELD_AFTER: Final = 128 * 1024
_CHECKPOINT: Final = trio.lowlevel.checkpoint_if_cancelled
_CALL_COST: Final = 8192
"""What one call counts for, in bytes: so a task yields after some ten milliseconds at most."""


class NativeStream:
    """Reads and writes that wait. One reader and one writer at a time; more take turns.

    A cancelled read has taken nothing. Of a cancelled write, whole frames may have gone and nothing
    else will: connection and stream stay in order, but only the protocol on top could tell how much
    the peer has got.
    """

    __slots__ = (
        "_connection",
        "_readers",
        "_turns",
        "_unyielded",
        "_writers",
        "_writing",
        "state",
    )

    def __init__(self, connection: NativeConnection, state: YamuxStream) -> None:
        self.state = state
        self._connection = connection
        self._readers = Gate()
        self._writers = Gate()
        self._turns = Gate()
        self._writing = False
        self._unyielded = 0

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
        if self.state.readable or self.state.sink is not None:
            await self._readable()
            size = self.state.read_into(target)
        else:
            size = await self._sink(target)
        self._after_read()
        return size or 0

    async def _sink(self, target: memoryview) -> int | None:
        """Wait for bytes where they can be decrypted right into `target`.

        Whatever comes there wakes this in the same turn, and whoever gives up takes `target` back
        at once: so a cancellation finds nothing, and the next reader loses nothing.
        """
        state = self.state
        state.sink = target
        while not (state.sunk or state.readable):
            await self._readers.wait(given_up=state.release_sink)
            self._unyielded = 0
        return state.release_sink() or state.read_into(target)

    async def _readable(self) -> None:
        # The only places to be cancelled are before anything is taken.
        state = self.state
        if state.readable:
            await (trio.lowlevel.checkpoint if self._yields(0) else _CHECKPOINT)()
        while not state.readable:
            await self._readers.wait()
            self._unyielded = 0

    def _yields(self, size: int) -> bool:
        """Whether it is time to let other tasks run, after `size` bytes more: a turn of the
        scheduler costs as much as moving a small message."""
        self._unyielded += size + _CALL_COST
        if self._unyielded < _YIELD_AFTER:
            return False
        self._unyielded = 0
        return True

    def _after_read(self) -> None:
        if not self._connection.corked and self._connection.owes_frames:
            self._connection.flush()
        if self.state.finished:
            self._connection.forget(self)

    async def write(self, data: Buffer) -> None:
        """Return once all of `data` is in sealed frames; it may then change.

        Raises:
            PeerError: reset, closed, lost, or no credit for the stall deadline.
        """
        await (trio.lowlevel.checkpoint if self._yields(len(data)) else _CHECKPOINT)()
        while self._writing:
            await self._turns.wait()
        state, connection = self.state, self._connection
        self._writing = True
        try:
            state.begin_write(data)
            if state.pending is not None or not connection.corked:
                connection.flush()
            if state.pending is not None:
                await self._wait_until_sealed()
        finally:
            self._writing = False
            if state.pending is not None or state.fin_due:
                state.abandon_write()
                if connection.owes_frames:  # the end, when it was closed meanwhile
                    connection.flush()
            self._turns.wake()
        if state.failure is not None:
            raise PeerError(state.failure)

    async def _wait_until_sealed(self) -> None:
        """Wait for all of the current write; PeerError when the peer gives too little credit.

        A stream with credit waits for its turn on the socket, and that is watched for all streams
        together.
        """
        state, stall = self.state, self._connection.stall_timeout
        while (pending := state.pending) is not None:
            goal = len(pending) - LEAST_PROGRESS
            with trio.move_on_after(stall):
                while (pending := state.pending) is not None and len(pending) > goal:
                    await self._writers.wait()
            pending = state.pending
            if pending is not None and len(pending) > goal and not state.send_window:
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

    def wake(self) -> bool:
        """Something has come, or it is over; whether somebody had waited to read."""
        self._writers.wake()
        if self.state.finished:
            self._connection.forget(self)
        return self._readers.wake()

    def wake_writer(self) -> None:
        self._writers.wake()
