"""One stream of a Yamux connection: its windows, what is unread, what is unsent."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from ...dht.host import Buffer
from ...errors import PeerError
from .yamux_frames import INITIAL_WINDOW, MAX_WINDOW, YamuxError

if TYPE_CHECKING:
    from .yamux import YamuxCore

_PIN_BYTES: Final = 4096
_COALESCED: Final = 16 * 1024


class YamuxStream:
    """State of one stream; made by `YamuxCore`. No method waits.

    What was received goes into the memory of the reader that waits for it (`sink`), or is kept as
    views of the decrypted frames it came in, unless these would hold more than twice their own size
    in memory: small pieces are gathered instead.
    """

    __slots__ = (
        "_chunks",
        "_core",
        "buffered",
        "coming",
        "extra",
        "failure",
        "fin_due",
        "fin_received",
        "fin_sent",
        "granted_at",
        "id",
        "ours",
        "pending",
        "queued",
        "receive_credit",
        "send_window",
        "sink",
        "sunk",
        "waiting",
        "window",
    )

    def __init__(self, core: YamuxCore, stream_id: int, *, ours: bool, now: float) -> None:
        self._core = core
        self._chunks: deque[Buffer] = deque()
        self.pending: memoryview | None = None
        """What of the current write has not become frames yet."""
        self.id = stream_id
        self.ours = ours
        self.buffered = 0
        """Bytes received and not read yet."""
        self.sink: memoryview | None = None
        """Where a reader waits for bytes, when nothing is buffered: they go there at once."""
        self.sunk = 0
        """How many of `sink` have come."""
        self.window = INITIAL_WINDOW
        """The most the peer may have sent and we not have read."""
        self.extra = 0
        """The part of `window` taken from the connection's budget."""
        self.receive_credit = INITIAL_WINDOW
        """Bytes the peer may still send."""
        self.coming = 0
        """Bytes announced by the header of the frame under way, and not received yet."""
        self.send_window = INITIAL_WINDOW
        """Bytes we may still send."""
        self.granted_at = now
        self.failure: str | None = None
        """Why it was reset or lost; None while it lives and after a clean end."""
        self.fin_due = self.fin_sent = self.fin_received = False
        self.waiting = False
        """Whether it is the peer's and nobody has accepted it yet."""
        self.queued = False
        """Whether the core has it in line to send."""

    # --- state --------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Reset, lost, or closed on both sides with everything read."""
        return self.failure is not None or (
            self.fin_sent and self.fin_received and not self.buffered
        )

    @property
    def readable(self) -> bool:
        """Whether `read` has an answer now: bytes, the end, or a failure."""
        return self.buffered > 0 or self.fin_received or self.failure is not None

    @property
    def owed(self) -> int:
        """Credit that could be given: what was read since the last time."""
        return self.window - self.receive_credit - self.coming - self.buffered

    # --- reading ------------------------------------------------------------------------------

    def read(self, max_bytes: int) -> bytes | None:
        """Up to `max_bytes`; `b""` at the end of the stream; None when there is nothing yet.

        Raises:
            PeerError: the stream was reset, or the connection lost and everything read.
        """
        if not self.buffered:
            return self._nothing()
        chunks = self._chunks
        first = chunks[0]
        if len(first) <= max_bytes and (len(chunks) == 1 or len(first) >= _COALESCED):
            # As it is: joining large pieces is for those who need them in one.
            del chunks[0]
            data = bytes(first)
        else:
            # What is large stays where it is for `read_into`, when something small comes before it.
            parts: list[Buffer] = []
            left = max_bytes
            while chunks and left and not (parts and len(chunks[0]) >= _COALESCED):
                part = self._shift(left)
                parts.append(part)
                left -= len(part)
            data = b"".join(parts)
        self._consumed(len(data))
        return data

    def read_into(self, target: memoryview) -> int | None:
        """As `read`, copied straight into `target`; returns how many bytes."""
        if not self.buffered:
            return None if self._nothing() is None else 0
        done, size = 0, len(target)
        while self._chunks and done < size:
            part = self._shift(size - done)
            target[done : done + len(part)] = part
            done += len(part)
        self._consumed(done)
        return done

    def release_sink(self) -> int:
        """Nothing more shall go into `sink`; returns how many bytes are there."""
        sunk, self.sink, self.sunk = self.sunk, None, 0
        return sunk

    def room(self, size: int) -> memoryview | None:
        """The part of `sink` for the next `size` bytes, if that is where they belong."""
        if self.sink is None or self.buffered or len(self.sink) - self.sunk < size:
            return None
        return self.sink[self.sunk : self.sunk + size]

    def _nothing(self) -> bytes | None:
        if self.failure is not None:
            raise PeerError(self.failure)
        return b"" if self.fin_received else None

    def _shift(self, limit: int) -> Buffer:
        """Take the first chunk, or the first `limit` bytes of it."""
        first = self._chunks[0]
        if len(first) <= limit:
            return self._chunks.popleft()
        if isinstance(first, bytearray):
            part = bytes(memoryview(first)[:limit])
            del first[:limit]
            return part
        view = memoryview(first)
        self._chunks[0] = view[limit:]
        return view[:limit]

    def _consumed(self, size: int) -> None:
        self.buffered -= size
        self._core.consumed(self, size)

    def received(self, piece: bytes, start: int, end: int) -> int:
        """Take `piece[start:end]`, for which credit has been checked.

        Returns:
            How many bytes are kept until they are read; the others have gone into `sink`.
        """
        if self.sink is not None and not self.buffered:
            size = min(len(self.sink) - self.sunk, end - start)
            self.sink[self.sunk : self.sunk + size] = memoryview(piece)[start : start + size]
            self.sunk += size
            start += size
        size = end - start
        if size:
            self._keep(piece, start, end)
        return size

    def _keep(self, piece: bytes, start: int, end: int) -> None:
        size = end - start
        self.buffered += size
        chunks = self._chunks
        if size >= _PIN_BYTES and 2 * size >= len(piece):
            chunks.append(piece if size == len(piece) else memoryview(piece)[start:end])
        elif chunks and type(last := chunks[-1]) is not memoryview and len(last) < _COALESCED:
            if not isinstance(last, bytearray):
                last = chunks[-1] = bytearray(last)
            last += memoryview(piece)[start:end]
        else:
            chunks.append(piece[start:end])

    # --- writing ------------------------------------------------------------------------------

    def begin_write(self, data: Buffer) -> None:
        """Put all of `data` in line. It must not change while `pending` is not None.

        Raises:
            PeerError: reset, lost, or closed for writing.
        """
        if self.failure is not None:
            raise PeerError(self.failure)
        if self.fin_due or self.fin_sent:
            raise PeerError("it was closed here")
        if self.pending is not None:
            raise RuntimeError("a write is under way already")
        if len(view := memoryview(data).cast("B")):
            self._core.outbox.send(self, view)

    def abandon_write(self) -> None:
        """Take back what has not become frames; what has goes out whole."""
        self.pending = None
        if self.failure is None:
            self._core.outbox.finish(self)

    def widen(self, delta: int) -> None:
        """The peer gives more credit."""
        if self.send_window + delta > MAX_WINDOW:
            raise YamuxError("window_overflow", "It gave more Yamux credit than can be counted.")
        self.send_window += delta
        if delta and self.pending is not None:
            self._core.outbox.enqueue(self)

    def close(self) -> None:
        """Nothing more will be written: FIN follows what is in line. Idempotent."""
        if self.failure is not None:
            self.discard()
        elif not (self.fin_due or self.fin_sent):
            self.fin_due = True
            self._core.outbox.finish(self)

    def reset(self, why: str = "it was reset here") -> None:
        """Drop both directions and tell the peer. Idempotent."""
        self._core.reset(self, why)

    def fail(self, why: str) -> None:
        """The end, for the core's use. What arrived before can still be read."""
        if self.failure is None:
            self.failure = why
        self.pending = None

    def discard(self) -> None:
        """Drop what was received and not read."""
        self._chunks.clear()
        dropped, self.buffered = self.buffered, 0
        self._core.consumed(self, dropped)
