"""What one end of a Yamux connection has to send, and in which order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from ...dht.host import Buffer
from .yamux_frames import (
    DATA,
    FIN,
    HEADER,
    MAX_PAYLOAD,
    RST,
    TURN_PAYLOAD,
    WINDOW_UPDATE,
    frame,
    payload_size,
)
from .yamux_stream import YamuxStream

_SMALL: Final = 4096
"""A write so small becomes a frame at once: copying it costs less than keeping it in line."""
_MAX_SMALL: Final = 32 * 1024
"""Small writes waiting to be sent, all streams together; further ones wait with their caller."""
_AMPLE_CREDIT: Final = 4 * MAX_PAYLOAD


class Outbox:
    """Answers and openings first; then, in their order, small frames of streams (writes, ends,
    resets); then the streams that have more to say take turns.

    Args:
        ended: told of each stream whose end has become a frame.
    """

    __slots__ = ("_drained", "_ended", "_small", "control", "frames", "ready")

    def __init__(self, ended: Callable[[YamuxStream], None]) -> None:
        self.control: list[bytes] = []
        """Frames that go before all others."""
        self.frames: list[bytes] = []
        """Small frames of streams."""
        self.ready: deque[YamuxStream] = deque()
        """Streams that take turns."""
        self._small = 0
        self._drained: list[YamuxStream] = []
        self._ended = ended

    @property
    def unsolicited(self) -> int:
        """Frames that need nobody's credit, and are bounded by nothing but the peer's patience."""
        return len(self.control) + len(self.frames)

    def send(self, stream: YamuxStream, data: memoryview) -> None:
        """Put `data` (not empty) in line; `pending` is what has not become a frame at once."""
        size = len(data)
        if size <= _SMALL and size <= stream.send_window and self._small < _MAX_SMALL:
            stream.send_window -= size
            self._small += HEADER.size + size
            self.frames.append(HEADER.pack(0, DATA, 0, stream.id, size) + data)
        else:
            stream.pending = data
            self.enqueue(stream)

    def enqueue(self, stream: YamuxStream) -> None:
        """Give a stream its turn, unless it is in line or has no credit."""
        if not stream.queued and stream.send_window:
            stream.queued = True
            self.ready.append(stream)

    def finish(self, stream: YamuxStream) -> None:
        """Send FIN once nothing of the stream is in line."""
        if stream.pending is None and stream.fin_due:
            self.frames.append(self._fin(stream))

    def reset(self, stream: YamuxStream) -> None:
        self.frames.append(frame(WINDOW_UPDATE, RST, stream.id, 0))

    def _fin(self, stream: YamuxStream) -> bytes:
        stream.fin_due, stream.fin_sent = False, True
        self._ended(stream)
        return frame(WINDOW_UPDATE, FIN, stream.id, 0)

    def take(self, updates: bytes, max_bytes: int) -> list[Buffer]:
        """Frames to send next, `updates` of credit among them.

        Data are views of what was given to `send`: seal or copy them at once. The result exceeds
        `max_bytes` by at most one frame, `updates`, and what takes no turns.
        """
        out: list[Buffer] = []
        if self.control or self.frames or updates:
            out.append(b"".join((*self.control, updates, *self.frames)))
            self.control.clear()
            self.frames.clear()
            self._small = 0
        ready = self.ready
        while ready and max_bytes > 0:
            stream = ready.popleft()
            pending = stream.pending
            if pending is None:  # reset or abandoned while it was in line
                stream.queued = False
                continue
            # Each frame costs both sides as much as a small message: one that need not share the
            # line has as much in it as there is room for. But most peers give credit for whole
            # frames: one as large as their window would have us wait for it every time.
            most = TURN_PAYLOAD
            if not ready and stream.send_window >= _AMPLE_CREDIT:
                most = max(TURN_PAYLOAD, min(MAX_PAYLOAD, max_bytes))
            size = min(payload_size(len(pending), most), stream.send_window)
            out.append(HEADER.pack(0, DATA, 0, stream.id, size))
            max_bytes -= size
            stream.send_window -= size
            if size == len(pending):
                out.append(pending)
                stream.pending = None
                stream.queued = False
                self._drained.append(stream)
                if stream.fin_due:
                    out.append(self._fin(stream))
            else:
                out.append(pending[:size])
                stream.pending = pending[size:]
                stream.queued = stream.send_window > 0
                if stream.queued:
                    ready.append(stream)
        return out

    def take_drained(self) -> list[YamuxStream]:
        """Streams whose write has wholly become frames since the last call."""
        drained, self._drained = self._drained, []
        return drained

    def clear(self) -> None:
        self.control.clear()
        self.frames.clear()
        self.ready.clear()
