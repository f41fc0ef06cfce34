"""`/yamux/1.0.0` without sockets: bytes of the peer in, events and frames to send out.

Specification: https://github.com/hashicorp/yamux/blob/master/spec.md; initial window, credit in the
first window update and the rules for ids as in https://github.com/libp2p/specs/tree/master/yamux.

Nothing waits here and nothing is copied that need not be. Every rule a peer can break ends in
`YamuxError` with a reason to count; every buffer has a bound in `YamuxLimits`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ...dht.host import Buffer
from ...errors import PeerError
from .yamux_frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    GO_AWAY_NORMAL,
    HEADER,
    INITIAL_WINDOW,
    MAX_PAYLOAD,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    YamuxError,
    check_header,
    frame,
)
from .yamux_ids import PeerIds
from .yamux_limits import YamuxLimits
from .yamux_stream import YamuxStream

PROTOCOL: Final = "/yamux/1.0.0"

_MAX_STREAM_ID: Final = (1 << 32) - 1
_MAX_RESET: Final = 4096
_GROW_WITHIN: Final = 4
"""Round trips in which half a window must be read for it to double (as go-yamux does)."""


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream: it waits in the backlog."""

    stream: YamuxStream


@dataclass(frozen=True, slots=True)
class StreamChanged:
    """Bytes, credit, the end or a reset came: look at the stream again. Once a stream and call."""

    stream: YamuxStream


@dataclass(frozen=True, slots=True)
class Pong:
    """Our ping was answered."""


@dataclass(frozen=True, slots=True)
class PeerGoesAway:
    """The peer takes no new streams; `code` 0 is normal, 1 a protocol error, 2 an internal one."""

    code: int


Event = StreamOpened | StreamChanged | Pong | PeerGoesAway


class YamuxCore:
    """One end of a connection.

    Args:
        initiator: whether we dialled: our streams then have odd ids.
        clock: seconds, for round trips and the growth of windows.
    """

    def __init__(
        self, initiator: bool, limits: YamuxLimits, clock: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.refused = 0
        """Streams of the peer that were reset for want of room, or by itself before anybody saw."""
        self.rtt: float | None = None
        """Shortest round trip of a ping so far, in seconds."""
        self.peer_leaves = False
        self.stranger = False
        """Whether the peer is not trusted (yet), so that little is kept for it."""
        self.credit_received = 0
        """In bytes, over all streams; grows as long as the peer reads."""
        self._limits = limits
        self._clock = clock
        self._streams: dict[int, YamuxStream] = {}
        self._next_id = 1 if initiator else 2
        self._peer_ids = PeerIds(2 if initiator else 1)
        self._inbound = 0
        self._budget = limits.budget
        self._unread = 0
        self._backlog: deque[YamuxStream] = deque()
        self._refused_in_a_row = self._refused_before = 0
        self._reset_credit: OrderedDict[int, int] = OrderedDict()
        self._pings = 0
        self._pinged_at: float | None = None
        self._failure: str | None = None
        # Incoming: a header in pieces, or the rest of a data frame.
        self._partial = bytearray()
        self._body_left = 0
        self._body_stream: YamuxStream | None = None
        self._body_flags = 0
        # Outgoing, in this order.
        self._control: deque[bytes] = deque()
        self._credits: dict[YamuxStream, None] = {}
        self._ready: deque[YamuxStream] = deque()
        self._drained: list[YamuxStream] = []

    # --- streams ------------------------------------------------------------------------------

    @property
    def streams(self) -> int:
        """How many live."""
        return len(self._streams)

    @property
    def buffered(self) -> int:
        """Unread bytes of all streams, also of those that are over."""
        return self._unread

    def open(self) -> YamuxStream:
        """A new stream; usable at once.

        Raises:
            PeerError: the connection is lost, the peer is leaving, or the ids are used up.
        """
        if self._failure is not None:
            raise PeerError(self._failure)
        if self.peer_leaves or self._next_id > _MAX_STREAM_ID:
            raise PeerError("the connection takes no more streams")
        stream = self._add(self._next_id, ours=True)
        self._next_id += 2
        self._control.append(frame(WINDOW_UPDATE, SYN, stream.id, self._announce(stream)))
        return stream

    def accept(self) -> YamuxStream | None:
        """The next stream of the peer, if any."""
        while self._backlog:
            stream = self._backlog.popleft()
            if stream.failure is None:
                stream.waiting = False
                self._refused_before, self._refused_in_a_row = self._refused_in_a_row, 0
                delta = self._announce(stream)
                self._control.append(frame(WINDOW_UPDATE, ACK, stream.id, delta))
                return stream
        return None

    def refuse(self, stream: YamuxStream) -> None:
        """Reset the stream just accepted, for want of room.

        Raises:
            YamuxError: it has been told so too often: a flood.
        """
        stream.reset("there is no room for it")
        self._refused_in_a_row = self._refused_before
        self._count_refusal()

    def reset(self, stream: YamuxStream, why: str) -> None:
        stream.discard()
        if stream.failure is not None or stream.id not in self._streams:
            return
        if not stream.fin_received:
            # What is under way to it is dropped as it comes, up to the credit the peer has.
            self._remember_reset(stream.id, stream.receive_credit)
        stream.fail(why)
        self._forget(stream)
        self._control.append(frame(WINDOW_UPDATE, RST, stream.id, 0))

    def fail(self, why: str) -> list[YamuxStream]:
        """The connection is over: so is every stream. Returns those that lived."""
        if self._failure is None:
            self._failure = why
        lost = list(self._streams.values())
        for stream in lost:
            stream.fail(why)
        self._streams.clear()
        self._backlog.clear()
        self._ready.clear()
        self._credits.clear()
        self._control.clear()
        return lost

    def _add(self, stream_id: int, *, ours: bool) -> YamuxStream:
        stream = YamuxStream(self, stream_id, ours=ours, now=self._clock())
        self._streams[stream_id] = stream
        self._inbound += not ours
        return stream

    def _forget(self, stream: YamuxStream) -> None:
        if self._streams.pop(stream.id, None) is not None:
            self._inbound -= not stream.ours
            self._credits.pop(stream, None)
            self.release(stream)

    def release(self, stream: YamuxStream) -> None:
        """Give the credit of a stream that is over back to the budget, once nothing is unread."""
        if stream.id not in self._streams and not stream.buffered:
            self._budget += stream.extra
            stream.extra = 0

    def dropped(self, size: int) -> None:
        """`size` bytes will never be read."""
        self._unread -= size

    def _forget_if_finished(self, stream: YamuxStream) -> None:
        if stream.finished:
            self._forget(stream)

    # --- credit -------------------------------------------------------------------------------

    def _announce(self, stream: YamuxStream) -> int:
        """Widen the receive window of a new stream; returns by how much."""
        delta = min(self._limits.window - INITIAL_WINDOW, self._share)
        self._widen(stream, max(delta, 0))
        stream.receive_credit += stream.extra
        return stream.extra

    @property
    def _share(self) -> int:
        # A quarter of what is left: the first streams get all they want, the last ones some.
        return 0 if self.stranger else self._budget // 4

    def _widen(self, stream: YamuxStream, delta: int) -> None:
        self._budget -= delta
        stream.extra += delta
        stream.window += delta

    def consumed(self, stream: YamuxStream, size: int) -> None:
        """`size` bytes of a stream were read: give credit once half of the window is."""
        self._unread -= size
        if stream.failure is not None:
            self.release(stream)
        elif stream.fin_received:
            self._forget_if_finished(stream)
        elif 2 * stream.owed >= stream.window:
            self._credits[stream] = None

    def _credit_frame(self, stream: YamuxStream) -> bytes:
        now = self._clock()
        if self.rtt is not None and now - stream.granted_at < _GROW_WITHIN * self.rtt:
            room = self._limits.max_window - stream.window
            self._widen(stream, max(min(stream.window, room, self._share), 0))
        stream.granted_at = now
        delta = stream.owed
        stream.receive_credit += delta
        return frame(WINDOW_UPDATE, 0, stream.id, delta)

    # --- outgoing -----------------------------------------------------------------------------

    @property
    def has_outgoing(self) -> bool:
        return bool(self._control or self._credits or self._ready)

    def enqueue(self, stream: YamuxStream) -> None:
        """Put a stream in line to send, unless it is, or has no credit."""
        if not stream.queued and stream.send_window:
            stream.queued = True
            self._ready.append(stream)

    def finish(self, stream: YamuxStream) -> None:
        """Send FIN once nothing of the stream is in line."""
        if stream.pending is None and stream.fin_due:
            self._control.append(self._fin(stream))

    def _fin(self, stream: YamuxStream) -> bytes:
        stream.fin_due, stream.fin_sent = False, True
        self._forget_if_finished(stream)
        return frame(WINDOW_UPDATE, FIN, stream.id, 0)

    def take_outgoing(self, max_bytes: int) -> list[Buffer]:
        """Frames to send next: control first, then one data frame of each stream in turn.

        The data are views of what was given to `begin_write`: seal or copy them at once. The result
        exceeds `max_bytes` by at most one frame and the control frames.
        """
        out: list[Buffer] = []
        if self._control:
            out.append(b"".join(self._control))
            self._control.clear()
        if self._credits:
            out.append(b"".join([self._credit_frame(stream) for stream in self._credits]))
            self._credits.clear()
        ready = self._ready
        while ready and max_bytes > 0:
            stream = ready.popleft()
            pending = stream.pending
            if pending is None:  # reset or abandoned while it was in line
                stream.queued = False
                self._after_write(stream, out)
                continue
            size = min(len(pending), stream.send_window, MAX_PAYLOAD)
            out.append(HEADER.pack(0, DATA, 0, stream.id, size))
            max_bytes -= size
            stream.send_window -= size
            if size == len(pending):
                out.append(pending)
                stream.pending = None
                stream.queued = False
                self._drained.append(stream)
                self._after_write(stream, out)
            else:
                out.append(pending[:size])
                stream.pending = pending[size:]
                stream.queued = stream.send_window > 0
                if stream.queued:
                    ready.append(stream)
        return out

    def _after_write(self, stream: YamuxStream, out: list[Buffer]) -> None:
        if stream.fin_due and stream.failure is None:
            out.append(self._fin(stream))

    def take_drained(self) -> list[YamuxStream]:
        """Streams whose write has wholly become frames since the last call."""
        drained, self._drained = self._drained, []
        return drained

    def ping(self) -> None:
        """Ask for a sign of life; at most one question is on its way."""
        self._pings = (self._pings + 1) & 0xFFFF_FFFF
        self._pinged_at = self._clock()
        self._control.append(frame(PING, SYN, 0, self._pings))

    def go_away(self, code: int = GO_AWAY_NORMAL) -> None:
        self._control.append(frame(GO_AWAY, 0, 0, code))

    # --- incoming -----------------------------------------------------------------------------

    def receive(self, data: Sequence[bytes] | bytes) -> list[Event]:
        """Take in decrypted bytes, cut anywhere. Pieces are kept, not copied: never change them.

        Raises:
            YamuxError: the peer broke a rule; the connection cannot go on.
        """
        self._check_control()
        events: dict[Event | YamuxStream, Event] = {}
        for piece in (data,) if isinstance(data, bytes) else data:
            position, size = 0, len(piece)
            while position < size:
                if self._body_left:
                    position = self._take_body(piece, position, events)
                elif self._partial or size - position < HEADER.size:
                    end = min(position + HEADER.size - len(self._partial), size)
                    self._partial += piece[position:end]
                    position = end
                    if len(self._partial) == HEADER.size:
                        header = bytes(self._partial)
                        self._partial.clear()
                        self._take_header(header, 0, events)
                else:
                    self._take_header(piece, position, events)
                    position += HEADER.size
        return list(events.values())

    def _take_body(self, piece: bytes, start: int, events: dict[Event | YamuxStream, Event]) -> int:
        end = min(start + self._body_left, len(piece))
        self._body_left -= end - start
        stream = self._body_stream
        if stream is not None and stream.failure is None:
            stream.coming = self._body_left
            stream.received(piece, start, end)
            self._unread += end - start
            if self.stranger and self._unread > self._limits.stranger_unread:
                raise YamuxError("stranger_flood", "It sends more than a stranger needs to.")
            if stream not in events:
                events[stream] = StreamChanged(stream)
            if not self._body_left:
                self._take_flags(stream, self._body_flags)
        if not self._body_left:
            self._body_stream = None
        return end

    def _take_header(
        self, piece: bytes, position: int, events: dict[Event | YamuxStream, Event]
    ) -> None:
        version, kind, flags, stream_id, length = HEADER.unpack_from(piece, position)
        check_header(version, kind, flags, stream_id)
        if kind == PING:
            self._take_ping(flags, length, events)
        elif kind == GO_AWAY:
            self.peer_leaves = True
            event = PeerGoesAway(length)
            events[event] = event
        else:
            if flags & SYN:
                self._take_syn(stream_id, events)
            stream = self._streams.get(stream_id)
            if stream is None:
                self._take_stray(kind, flags, stream_id, length)
                return
            if kind == DATA:
                self._take_data(stream, flags, length)
            else:
                stream.widen(length)
                self.credit_received += length
                self._take_flags(stream, flags)
            if flags & (FIN | RST) or kind == WINDOW_UPDATE:
                events[stream] = StreamChanged(stream)

    def _take_data(self, stream: YamuxStream, flags: int, length: int) -> None:
        if length and stream.fin_received:
            raise YamuxError("data_after_close", "It sent bytes on a stream it had closed.")
        if length > stream.receive_credit:
            raise YamuxError(
                "window_overrun",
                f"It sent {length} bytes on a stream with credit for {stream.receive_credit}.",
            )
        stream.receive_credit -= length
        stream.coming = length
        if length:
            self._body_left, self._body_stream, self._body_flags = length, stream, flags
        else:
            self._take_flags(stream, flags)

    def _take_flags(self, stream: YamuxStream, flags: int) -> None:
        if flags & RST:
            stream.fail("it was reset by the peer")
            self._forget(stream)
            if stream.waiting:
                # Nobody will ever see it: it cost us as much as one refused.
                stream.discard()
                self._count_refusal()
        elif flags & FIN:
            stream.fin_received = True
            self._credits.pop(stream, None)
            self._forget_if_finished(stream)

    def _take_syn(self, stream_id: int, events: dict[Event | YamuxStream, Event]) -> None:
        self._peer_ids.use(stream_id)
        if self._inbound >= self._limits.max_inbound or (
            len(self._backlog) >= self._limits.accept_backlog
        ):
            self._remember_reset(stream_id, INITIAL_WINDOW)
            self._control.append(frame(WINDOW_UPDATE, RST, stream_id, 0))
            self._count_refusal()
            return
        stream = self._add(stream_id, ours=False)
        stream.waiting = True
        self._backlog.append(stream)
        event = StreamOpened(stream)
        events[event] = event

    def _take_stray(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """A frame for a stream that is over here, and may not be at the peer's end yet."""
        if stream_id % 2 == self._next_id % 2:
            known = stream_id < self._next_id
        else:
            known = self._peer_ids.used(stream_id)
        if not known:
            raise YamuxError("unknown_stream", "It sent a frame on a stream nobody opened.")
        if kind == DATA and length:
            credit = self._reset_credit.get(stream_id, 0)
            if length > credit:
                raise YamuxError("data_after_close", "It sent bytes on a stream that was over.")
            self._reset_credit[stream_id] = credit - length
            self._body_left, self._body_stream, self._body_flags = length, None, 0
        if flags & (FIN | RST):
            self._reset_credit.pop(stream_id, None)

    def _take_ping(self, flags: int, number: int, events: dict[Event | YamuxStream, Event]) -> None:
        if flags & SYN:
            self._check_control()
            self._control.append(frame(PING, ACK, 0, number))
        elif flags & ACK and self._pinged_at is not None and number == self._pings:
            took = self._clock() - self._pinged_at
            self.rtt = took if self.rtt is None else min(self.rtt, took)
            self._pinged_at = None
            event = Pong()
            events[event] = event

    def _check_control(self) -> None:
        if len(self._control) > self._limits.max_control:
            raise YamuxError("control_flood", "It asks for answers and does not read them.")

    def _remember_reset(self, stream_id: int, credit: int) -> None:
        self._reset_credit[stream_id] = credit
        if len(self._reset_credit) > _MAX_RESET:
            self._reset_credit.popitem(last=False)

    def _count_refusal(self) -> None:
        self.refused += 1
        self._refused_in_a_row += 1
        if self._refused_in_a_row > self._limits.max_refused:
            raise YamuxError("stream_flood", "It keeps opening streams that are refused or reset.")
