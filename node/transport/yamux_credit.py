"""How much the peer may send: the receive windows of one connection, and what is unread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .yamux_budget import ReceiveBudget
from .yamux_frames import INITIAL_WINDOW, WINDOW_UPDATE, YamuxError, frame
from .yamux_limits import YamuxLimits
from .yamux_stream import YamuxStream

_GROW_WITHIN: Final = 4
"""Round trips in which half a window must be read for it to double (as go-yamux does)."""


class ReceiveCredit:
    """Gives streams credit out of the connection's budget and the one it shares with others.

    Invariant until `end`: what all streams hold beyond their first window (`extra`) plus `left` is
    the connection's budget.
    """

    __slots__ = (
        "_clock",
        "_ended",
        "_limits",
        "_shared",
        "due",
        "left",
        "rtt",
        "stranger",
        "unread",
    )

    def __init__(
        self, limits: YamuxLimits, shared: ReceiveBudget, clock: Callable[[], float]
    ) -> None:
        self.rtt: float | None = None
        """Shortest round trip so far, in seconds; no window grows before the first."""
        self.stranger = False
        self.unread = 0
        """Bytes received and not read, over all streams."""
        self.left = limits.budget
        self._limits = limits
        self._shared = shared
        self._clock = clock
        self.due: dict[YamuxStream, None] = {}
        """Streams whose peer waits for credit that it has earned."""
        self._ended = False

    # --- windows ------------------------------------------------------------------------------

    def announce(self, stream: YamuxStream) -> int:
        """Widen the window of a new stream; returns by how much, for its first frame."""
        self._widen(stream, self._limits.window - INITIAL_WINDOW)
        stream.receive_credit += stream.extra
        return stream.extra

    def _widen(self, stream: YamuxStream, most: int) -> None:
        # A quarter of what is left: the first streams get all they want, the last ones some.
        most = min(most, self.left // 4)
        if most > 0 and not self.stranger:
            delta = self._shared.take(most)
            self.left -= delta
            stream.extra += delta
            stream.window += delta

    def release(self, stream: YamuxStream) -> None:
        """Take the credit of a stream that is over."""
        self.due.pop(stream, None)
        if not stream.buffered:
            self.left += stream.extra
            if not self._ended:
                self._shared.give_back(stream.extra)
            stream.extra = 0

    # --- updates ------------------------------------------------------------------------------

    def earned(self, stream: YamuxStream) -> None:
        """Bytes of a stream that may go on were read: it gets credit for half a window at once."""
        if 2 * stream.owed >= stream.window:
            self.due[stream] = None

    def forgo(self, stream: YamuxStream) -> None:
        """The stream needs no more credit."""
        self.due.pop(stream, None)

    def take_updates(self) -> bytes:
        """Frames with all the credit that is due."""
        if not self.due:
            return b""
        updates = b"".join([self._update(stream) for stream in self.due])
        self.due.clear()
        return updates

    def _update(self, stream: YamuxStream) -> bytes:
        now = self._clock()
        if self.rtt is not None and now - stream.granted_at < _GROW_WITHIN * self.rtt:
            self._widen(stream, min(stream.window, self._limits.max_window - stream.window))
        stream.granted_at = now
        delta = stream.owed
        stream.receive_credit += delta
        return frame(WINDOW_UPDATE, 0, stream.id, delta)

    # --- unread bytes -------------------------------------------------------------------------

    def received(self, size: int) -> None:
        """Raises YamuxError when the peer makes us hold too much."""
        if not self._ended:
            self._shared.hold(self.unread, size)
        self.unread += size
        if self.stranger and self.unread > self._limits.stranger_unread:
            raise YamuxError("stranger_flood", "It sends more than a stranger needs to.")
        if self._shared.crowding(self.unread):
            raise YamuxError("memory_flood", "It holds more of this node's memory than others may.")

    def consumed(self, size: int) -> None:
        """`size` bytes were read, or never will be."""
        if size and not self._ended:
            self._shared.let_go(self.unread, size)
        self.unread -= size

    def end(self) -> None:
        """The connection is over: whatever is still read of it is no longer shared."""
        if not self._ended:
            self._ended = True
            self.due.clear()
            self._shared.give_back(self._limits.budget - self.left)
            if self.unread:
                self._shared.let_go(self.unread, self.unread)
