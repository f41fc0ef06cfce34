"""`/yamux/1.0.0` without sockets: bytes of the peer in, events and frames to send out.

Specification: https://github.com/hashicorp/yamux/blob/master/spec.md; initial window, credit in the
first window update and the rules for ids as in https://github.com/libp2p/specs/tree/master/yamux.

Nothing waits here and nothing is copied that need not be. Every rule a peer can break ends in
`YamuxError` with a reason to count; every buffer has a bound in `YamuxLimits`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from ...dht.host import Buffer
from ...errors import PeerError
from .yamux_budget import ReceiveBudget
from .yamux_credit import ReceiveCredit
from .yamux_events import Event, Events, PeerGoesAway, Pong, StreamChanged, StreamOpened
from .yamux_frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    GO_AWAY_NORMAL,
    HEADER,
    INITIAL_WINDOW,
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
from .yamux_outbox import Outbox
from .yamux_strays import Refusals, ResetStreams
from .yamux_stream import YamuxStream

PROTOCOL: Final = "/yamux/1.0.0"
_MAX_STREAM_ID: Final = (1 << 32) - 1


class YamuxCore:
    """One end of a connection.

    Args:
        initiator: whether we dialled: our streams then have odd ids.
        clock: seconds, for round trips and the growth of windows.
        shared: bounds what all connections of the host hold; alone without it.
    """

    def __init__(
        self,
        initiator: bool,
        limits: YamuxLimits,
        clock: Callable[[], float] = lambda: 0.0,
        shared: ReceiveBudget | None = None,
    ) -> None:
        self.peer_leaves = False
        self.credit_received = 0
        """In bytes, over all streams; grows as long as the peer reads."""
        self.credit = ReceiveCredit(limits, shared or ReceiveBudget(), clock)
        self.outbox = Outbox(self._forget_if_finished)
        self._limits = limits
        self._clock = clock
        self._streams: dict[int, YamuxStream] = {}
        self._next_id = 1 if initiator else 2
        self._peer_ids = PeerIds(2 if initiator else 1)
        self._inbound = 0
        self._backlog: deque[YamuxStream] = deque()
        self._refusals = Refusals(limits.max_refused)
        self._over = ResetStreams()
        self._pings = 0
        self._pinged_at: float | None = None
        self._failure: str | None = None
        # Incoming: a header in pieces, or the rest of a data frame.
        self._partial = bytearray()
        self._body_left = 0
        self._body_stream: YamuxStream | None = None
        self._body_flags = 0
        self._events: Events = {}

    # --- streams ------------------------------------------------------------------------------

    @property
    def streams(self) -> int:
        """How many live."""
        return len(self._streams)

    @property
    def buffered(self) -> int:
        """Unread bytes of all streams, also of those that are over."""
        return self.credit.unread

    @property
    def refused(self) -> int:
        """Streams of the peer that were reset for want of room, or by itself before they were
        accepted."""
        return self._refusals.total

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
        self.outbox.control.append(
            frame(WINDOW_UPDATE, SYN, stream.id, self.credit.announce(stream))
        )
        return stream

    def accept(self) -> YamuxStream | None:
        """The next stream of the peer, if any.

        One that the peer has reset meanwhile is handed over if something came before that: bytes
        first, then the failure, as on a stream accepted in time.
        """
        while self._backlog:
            stream = self._backlog.popleft()
            stream.waiting = False
            if stream.failure is None:
                self._refusals.accepted()
                delta = self.credit.announce(stream)
                self.outbox.control.append(frame(WINDOW_UPDATE, ACK, stream.id, delta))
                return stream
            if stream.buffered:
                return stream
        return None

    def refuse(self, stream: YamuxStream) -> None:
        """Reset the stream just accepted, for want of room.

        Raises:
            YamuxError: it has been told so too often: a flood.
        """
        over = stream.failure is not None  # and counted when its reset came
        stream.reset("there is no room for it")
        if not over:
            self._refusals.undo()

    def reset(self, stream: YamuxStream, why: str) -> None:
        if stream.failure is not None or stream.id not in self._streams:
            stream.discard()
            return
        if not stream.fin_received:
            # What is under way to it is dropped as it comes, up to the credit the peer has.
            self._over.remember(stream.id, stream.receive_credit)
        stream.fail(why)
        stream.discard()
        self._forget(stream)
        self.outbox.reset(stream)

    def fail(self, why: str) -> list[YamuxStream]:
        """The connection is over: so is every stream. Returns those that lived."""
        if self._failure is None:
            self._failure = why
        lost = list(self._streams.values())
        for stream in lost:
            stream.fail(why)
        self.credit.end()
        self._streams.clear()
        self._backlog.clear()
        self.outbox.clear()
        return lost

    def _add(self, stream_id: int, *, ours: bool) -> YamuxStream:
        stream = YamuxStream(self, stream_id, ours=ours, now=self._clock())
        self._streams[stream_id] = stream
        self._inbound += not ours
        return stream

    def _forget(self, stream: YamuxStream) -> None:
        if self._streams.pop(stream.id, None) is not None:
            self._inbound -= not stream.ours
            self.credit.release(stream)

    def _forget_if_finished(self, stream: YamuxStream) -> None:
        if stream.finished:
            self._forget(stream)

    def consumed(self, stream: YamuxStream, size: int) -> None:
        """`size` bytes of a stream were read, or never will be."""
        self.credit.consumed(size)
        if stream.failure is not None:
            self.credit.release(stream)
        elif stream.fin_received:
            self._forget_if_finished(stream)
        else:
            self.credit.earned(stream)

    # --- outgoing -----------------------------------------------------------------------------

    @property
    def has_outgoing(self) -> bool:
        outbox = self.outbox
        return bool(outbox.frames or outbox.control or outbox.ready or self.credit.due)

    def take_outgoing(self, max_bytes: int) -> list[Buffer]:
        """Frames to send next: see `Outbox.take`."""
        return self.outbox.take(self.credit.take_updates(), max_bytes)

    def ping(self) -> None:
        """Ask for a sign of life; at most one question is on its way."""
        self._pings = (self._pings + 1) & 0xFFFF_FFFF
        self._pinged_at = self._clock()
        self.outbox.control.append(frame(PING, SYN, 0, self._pings))

    def go_away(self, code: int = GO_AWAY_NORMAL) -> None:
        self.outbox.control.append(frame(GO_AWAY, 0, 0, code))

    # --- incoming -----------------------------------------------------------------------------

    def receive(self, data: Sequence[bytes] | bytes) -> list[Event]:
        """Take in decrypted bytes, cut anywhere. Pieces are kept, not copied: never change them.

        Raises:
            YamuxError: the peer broke a rule; the connection cannot go on.
        """
        for piece in (data,) if isinstance(data, bytes) else data:
            self.take(piece)
        return self.take_events()

    def take(self, piece: bytes) -> None:
        """Take in some decrypted bytes; `take_events` tells later what they brought.

        Raises:
            YamuxError: as `receive`.
        """
        position, size = 0, len(piece)
        while position < size:
            if self._body_left:
                position = self._take_body(piece, position)
            elif self._partial or size - position < HEADER.size:
                end = min(position + HEADER.size - len(self._partial), size)
                self._partial += piece[position:end]
                position = end
                if len(self._partial) == HEADER.size:
                    header = bytes(self._partial)
                    self._partial.clear()
                    self._take_header(header, 0)
            else:
                self._take_header(piece, position)
                position += HEADER.size

    def take_events(self) -> list[Event]:
        """What came since the last call.

        Raises:
            YamuxError: as `receive`.
        """
        self._check_control()
        events, self._events = self._events, {}
        return list(events.values())

    def room(self, size: int) -> memoryview | None:
        """Where the next `size` bytes go without a copy, when somebody waits for just these.

        Put them there and say `filled`, or give all of them to `take`.
        """
        stream = self._body_stream
        if not 0 < size <= self._body_left or stream is None or stream.failure is not None:
            return None
        return stream.room(size)

    def filled(self, size: int) -> None:
        """`size` bytes are where `room` said."""
        stream = self._body_stream
        assert stream is not None
        stream.sunk += size
        self._came(stream, size)
        if not self._body_left:
            self._body_stream = None

    def _take_body(self, piece: bytes, start: int) -> int:
        end = min(start + self._body_left, len(piece))
        stream = self._body_stream
        if stream is not None and stream.failure is None:
            if kept := stream.received(piece, start, end):
                self.credit.received(kept)
            self._came(stream, end - start)
        else:
            self._body_left -= end - start
        if not self._body_left:
            self._body_stream = None
        return end

    def _came(self, stream: YamuxStream, size: int) -> None:
        """`size` bytes more of the frame under way are with their stream."""
        self._body_left -= size
        stream.coming = self._body_left
        if stream not in self._events:
            self._events[stream] = StreamChanged(stream)
        if stream.sunk:
            self.credit.earned(stream)
        if not self._body_left and self._body_flags:
            self._take_flags(stream, self._body_flags)

    def _take_header(self, piece: bytes, position: int) -> None:
        version, kind, flags, stream_id, length = HEADER.unpack_from(piece, position)
        if version or flags or kind != DATA or not stream_id:
            check_header(version, kind, flags, stream_id)
        if kind == PING:
            self._take_ping(flags, length)
        elif kind == GO_AWAY:
            self.peer_leaves = True
            event = PeerGoesAway(length)
            self._events[event] = event
        else:
            if flags & SYN:
                self._take_syn(stream_id)
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
                self._events[stream] = StreamChanged(stream)

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
                # Whether or not somebody looks at it yet: it cost us as much as one refused.
                self._refusals.count()
        elif flags & FIN:
            stream.fin_received = True
            self.credit.forgo(stream)
            self._forget_if_finished(stream)

    def _take_syn(self, stream_id: int) -> None:
        self._peer_ids.use(stream_id)
        if self._inbound >= self._limits.max_inbound or (
            len(self._backlog) >= self._limits.accept_backlog
        ):
            self._over.remember(stream_id, INITIAL_WINDOW)
            self.outbox.control.append(frame(WINDOW_UPDATE, RST, stream_id, 0))
            self._refusals.count()
            return
        stream = self._add(stream_id, ours=False)
        stream.waiting = True
        self._backlog.append(stream)
        event = StreamOpened(stream)
        self._events[event] = event

    def _take_stray(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """A frame for a stream that is over here, and may not be at the peer's end yet."""
        if stream_id % 2 == self._next_id % 2:
            known = stream_id < self._next_id
        else:
            known = self._peer_ids.used(stream_id)
        if not known:
            raise YamuxError("unknown_stream", "It sent a frame on a stream nobody opened.")
        if kind == DATA and length:
            self._over.take(stream_id, length)
            self._body_left, self._body_stream, self._body_flags = length, None, 0
        if flags & (FIN | RST):
            self._over.forget(stream_id)

    def _take_ping(self, flags: int, number: int) -> None:
        if flags & SYN:
            self._check_control()
            self.outbox.control.append(frame(PING, ACK, 0, number))
        elif flags & ACK and self._pinged_at is not None and number == self._pings:
            took = self._clock() - self._pinged_at
            self.credit.rtt = min(self.credit.rtt or took, took)
            self._pinged_at = None
            event = Pong()
            self._events[event] = event

    def _check_control(self) -> None:
        if self.outbox.unsolicited > self._limits.max_control:
            raise YamuxError("control_flood", "It asks for answers and does not read them.")
