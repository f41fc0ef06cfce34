"""One stream to a peer with many requests on it.

Two tasks own the stream, one reads, one writes; the tasks that ask only leave a `Pending` and wait.
So cancelling a request never cancels a read or a write, which would cost the stream and everything
else on it. The peer is told by CANCEL, and whatever it answers still is read and dropped: at most
one body of one chunk per request given up, at most `max_abandoned` of them. A body of which a long
rest is to come costs its stream; others who wait on it are asked to go to another one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
import trio

from ...dht.host import Buffer, Stream
from ...dht.peer_id import PeerId
from ...errors import DeadlineError, FormatError, MeshError, PeerError
from ..transport.streams import BufferedStream
from .frame_writer import FrameWriter
from .lanes import Lane
from .messages import (
    MAX_REQUEST_ID,
    AskInfo,
    Body,
    Cancel,
    Data,
    Get,
    Have,
    Proceed,
    Put,
)
from .metered import MeteredStream
from .pending import Arrival, Pending, Question, wait_with_progress
from .settings import ExchangeSettings
from .stats import PeerStats
from .traffic import Invitation, Traffic
from .wire import PREFIX_BYTES, decode_answer, encode, header_rest

_log = structlog.get_logger(__name__)

_CUT_BYTES = 256 * 1024
_CUT_SECS = 0.25
"""A body given up of which more than this is to come costs its stream, if nobody else is on it."""
_MOVE_SECS = 0.5
"""The same where others are on it, who have to ask again on another stream."""
_PRESUMED_UPLOAD_RATE = 1e6
_LEAST_UPLOAD_RATE = 64e3


@dataclass(slots=True, eq=False)
class PeerActivity:
    """What the streams to one peer know together: they share its line, and its patience."""

    heard_at: float
    """When it last sent anything."""
    unacknowledged: int = 0
    """Body bytes queued or written in Puts that are not answered yet."""


class StreamGivenUp(PeerError):
    """Nothing is wrong with the peer: ask again, on another stream."""


class StreamLink:
    """See the module. Created by `PeerChannel`, which also runs it."""

    def __init__(
        self,
        stream: Stream,
        settings: ExchangeSettings,
        stats: PeerStats,
        activity: PeerActivity,
        traffic: Traffic,
        lane: Lane,
    ) -> None:
        self.lane = lane
        self._metered = MeteredStream(stream, self._heard)
        self._activity = activity
        self._reader = BufferedStream(self._metered)
        self._settings = settings
        self._stats = stats
        self._pending: dict[int, Pending] = {}
        self._abandoned = 0
        self._next_id = 1
        self._up, self._down = traffic.up, traffic.down
        self._writer = FrameWriter(
            self._metered, stats, traffic.up, lane, self._asking, self._held_up
        )
        self._metered_bytes = 0
        self._body_secs = 0.0
        self._body_began: float | None = None
        self._watched: tuple[Arrival, int, int] | None = None
        """The body that comes in now, if somebody watches: (where to tell, `bytes_read` when it
        began, its length)."""
        self._incoming: tuple[Pending, int, int] | None = None
        """The body that comes in now: (whose, `bytes_read` when it began, and when it is here)."""
        self._last_used = trio.current_time()
        self._retired = False
        self._idle = False
        self._scope = trio.CancelScope()
        self.failure: MeshError | None = None
        """Why the stream broke; set once and for ever."""
        self.load = 0
        """Body bytes that requests on this stream are waiting for."""

    @property
    def peer(self) -> PeerId:
        return self._metered.peer

    @property
    def usable(self) -> bool:
        return self.failure is None and not self._retired and not self._idle

    @property
    def _live(self) -> int:
        return len(self._pending) - self._abandoned

    # --- for the tasks that ask ---

    async def ask(
        self, question: Question, invitation: Invitation | None, limit: trio.CancelScope
    ) -> Pending:
        """Send a request (and its body, for a Put) and wait for the final answer.

        Args:
            invitation: is over when nothing more comes or goes for the request, which may be later
                than this returns.
            limit: around all of the request.

        Raises:
            StreamGivenUp: the stream was ended for the sake of this request and others.
            PeerError: the stream broke, or the peer spoke nonsense on it.
            DeadlineError: silence for too long.
        """
        pending = self._submit(question, invitation, limit)
        try:
            await self._first_byte(pending, question.first_byte_timeout)
            if pending.proceed and not pending.done.is_set():
                self._send_body(pending, question.data)
                await self._final_answer(pending, question.first_byte_timeout)
            else:
                await self._final_answer(pending, question.progress_timeout)
        finally:
            self._release(pending)
        if pending.failure is not None:
            if isinstance(pending.failure, StreamGivenUp):
                raise StreamGivenUp(pending.failure.message)
            raise PeerError(pending.failure.message, hint=pending.failure.hint)
        return pending

    async def _first_byte(self, pending: Pending, timeout: float) -> None:
        if not await wait_with_progress(pending.began, lambda: self._moved(pending), timeout):
            raise self._silent(pending, "the first byte of an answer", timeout)

    async def _final_answer(self, pending: Pending, timeout: float) -> None:
        if not await wait_with_progress(pending.done, lambda: self._moved(pending), timeout):
            raise self._silent(pending, "the rest of an answer", timeout)

    def _heard(self) -> None:
        self._activity.heard_at = trio.current_time()
        self._down.moved(self._metered.bytes_read - self._metered_bytes)
        self._metered_bytes = self._metered.bytes_read
        if self._watched is not None:
            arrival, before, length = self._watched
            arrival.update(min(self._metered.bytes_read - before, length))

    def _moved(self, pending: Pending) -> float:
        """When `pending` last had reason to hope.

        Anything the peer sends, on whichever stream, shows that it lives: answers may queue behind
        others, and requests wait their turn behind those of other streams. What we write shows
        nothing once our own frame is out: a frozen peer's window takes it too.
        """
        moved = max(pending.sent_at or pending.queued_at, self._activity.heard_at)
        if pending.sent_at is None:
            if self._writer.holding:
                return trio.current_time()  # we keep it waiting ourselves
            moved = max(moved, self._metered.last_write_at)
        return moved + self._upload_secs()

    def _upload_secs(self) -> float:
        """How long the peer may take to get the bodies that it has not acknowledged yet.

        Written is not received: buffers between us hold megabytes, and on a slow line those are
        many seconds in which a healthy peer has nothing to say.
        """
        if not self._activity.unacknowledged:
            return 0.0
        measured = self._stats.upload.rate()
        rate = _PRESUMED_UPLOAD_RATE if measured is None else measured / 4
        return self._activity.unacknowledged / max(rate, _LEAST_UPLOAD_RATE)

    def _silent(self, pending: Pending, what: str, timeout: float) -> DeadlineError:
        # Other requests here keep their own deadlines, new ones get a fresh stream.
        self._retired = True
        asked = type(pending.request).__name__.upper()
        return DeadlineError(
            f"Peer {self.peer.short} was silent for {timeout:g} s; waited for {what} to {asked}.",
            hint="It may be overloaded, frozen or unreachable; other peers are not affected.",
        )

    def _submit(
        self, question: Question, invitation: Invitation | None, limit: trio.CancelScope
    ) -> Pending:
        request = question.make(self._next_id)
        self._next_id += 1
        self._retired |= self._next_id > MAX_REQUEST_ID
        pending = Pending(request, question.expected_bytes, trio.current_time())
        pending.on_sent, pending.arrival = question.on_sent, question.arrival
        pending.into = question.into
        pending.invitation, pending.limit = invitation, limit
        self._pending[request.id] = pending
        self.load += question.expected_bytes
        if isinstance(request, Put) and request.inline:
            self._enqueue_body(encode(request), question.data, pending)
        else:
            self._writer.enqueue(encode(request), b"", pending)
        return pending

    def _asking(self, pending: Pending) -> None:
        """The writer is about to begin with the request."""
        pending.sending = True
        pending.asked_at = trio.current_time()
        pending.busy_when_asked = self._busy_secs()
        if isinstance(pending.request, Get):
            # From the question on, not from the first byte: what the transport has buffered by the
            # time a body is read takes almost no time to read.
            pending.download_began = True
            self._stats.download.began()

    def _held_up(self, secs: float) -> None:
        """Our own limits kept the writer waiting, and all that is queued behind."""
        for pending in self._pending.values():
            if pending.limit is not None:
                pending.limit.deadline += secs

    def _send_body(self, pending: Pending, data: Buffer) -> None:
        pending.sent_at = None
        pending.queued_at = trio.current_time()
        self._enqueue_body(encode(Body(pending.request.id, len(data))), data, pending)

    def _enqueue_body(self, header: bytes, data: Buffer, pending: Pending) -> None:
        pending.unacknowledged = len(data)
        self._activity.unacknowledged += len(data)
        self._writer.enqueue(header, data, pending)

    def _release(self, pending: Pending) -> None:
        """The asking task is done with `pending`, answered or not."""
        self.load -= pending.expected_bytes
        self._activity.unacknowledged -= pending.unacknowledged
        self._last_used = trio.current_time()
        if pending.upload_began:
            # Not when the transport's buffers had taken it all, but when the peer had answered.
            self._stats.upload.ended(pending.uploaded, counts=not pending.held)
        if pending.download_began:
            self._stats.download.ended(pending.downloaded)
        if not pending.done.is_set():
            self._abandon(pending)
        self._end_if_retired()

    def _abandon(self, pending: Pending) -> None:
        self._writer.drop(pending)
        ident = pending.request.id
        if not pending.sending:
            del self._pending[ident]  # the peer never hears of it
            pending.over()
            return
        if pending.waited is None:
            self._stats.gave_up(trio.current_time() - pending.asked_at)
        pending.abandoned = True
        self._abandoned += 1
        self._writer.enqueue(encode(Cancel(ident)), b"", None)
        # A new stream is cheaper than the rest of a long body.
        rest = self._rest_secs()
        self._retired |= not self._live and rest > _CUT_SECS
        self._retired |= self._abandoned > self._settings.max_abandoned
        if self._live and rest > _MOVE_SECS and self._movable():
            why = f"A long body from peer {self.peer.short} was given up, and its stream with it."
            self.end(StreamGivenUp(why))

    def _movable(self) -> bool:
        """Whether all live requests may be asked again: none has begun to be answered or changes
        what the peer keeps, and no body that somebody wants is under way."""
        if self._incoming is not None and not self._incoming[0].abandoned:
            return False
        return all(
            pending.abandoned
            or not pending.sending
            or (isinstance(pending.request, Have | Get | AskInfo) and not pending.began.is_set())
            for pending in self._pending.values()
        )

    def _rest_secs(self) -> float:
        """How long the rest of the body takes that comes in or goes out now."""
        stats, secs = self._stats, 0.0
        if self._incoming is not None:
            rest = self._incoming[2] - self._metered.bytes_read
            if rest > _CUT_BYTES:
                secs = rest / (stats.download.rate() or _PRESUMED_UPLOAD_RATE)
        if (writing := self._writer.writing) is not None:
            rest = writing.unacknowledged - writing.uploaded
            if rest > _CUT_BYTES:
                rate = stats.upload.rate() or _PRESUMED_UPLOAD_RATE
                secs = max(secs, rest / rate, self._up.seconds(rest))
        return secs

    def _end_if_retired(self) -> None:
        if self._retired and not self._live:
            self.end(PeerError(f"The stream to peer {self.peer.short} was given up."))

    # --- the life of the stream ---

    async def run(self) -> None:
        """Read and write until the stream breaks, is idle for long, or this is cancelled."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._guard, self._writer.run)
                    nursery.start_soon(self._guard, self._read_answers)
                    nursery.start_soon(self._end_when_idle)
        finally:
            self.end(PeerError(f"The stream to peer {self.peer.short} was closed."))
            with trio.CancelScope(shield=True):
                await (self._reader.close() if self._idle else self._reader.reset())

    def end(self, error: MeshError) -> None:
        """Stop using the stream; requests in flight fail with `error`."""
        if self.failure is None:
            self.failure = error
            if self._incoming is not None:
                incoming, begin, _ = self._incoming
                incoming.downloaded = self._metered.bytes_read - begin
            for pending in self._pending.values():
                pending.fail(error)
                pending.over()
            self._scope.cancel()

    async def _guard(self, loop: Callable[[], Awaitable[None]]) -> None:
        try:
            await loop()
        except PeerError as error:
            self.end(error)
        except FormatError as error:
            self.end(PeerError(f"Peer {self.peer.short} spoke nonsense: {error.message}"))
        except Exception as error:  # noqa: BLE001 - task boundary: one stream ends, not the node
            _log.exception("chunk_stream_failed", peer=str(self.peer))
            self.end(PeerError(f"The stream to peer {self.peer.short} failed: {error!r}"))

    async def _end_when_idle(self) -> None:
        while True:
            if self._pending:
                await trio.sleep(self._settings.idle_secs)
            elif (left := self._last_used + self._settings.idle_secs - trio.current_time()) > 0:
                await trio.sleep(left)
            else:
                self._idle = True
                self.end(PeerError(f"The idle stream to peer {self.peer.short} was closed."))
                return

    # --- reading ---

    async def _read_answers(self) -> None:
        while not await self._reader.at_end():
            prefix = await self._reader.read_exactly(PREFIX_BYTES)
            rest = await self._reader.read_exactly(header_rest(prefix, request=False))
            self._stats.bytes_received += PREFIX_BYTES + len(rest)
            answer = decode_answer(prefix[4:] + rest)
            pending = self._pending.get(answer.id)
            if pending is None or not pending.sending:
                raise FormatError(f"It answered request {answer.id}, which was not asked.")
            pending.check(answer)
            self._note_first_byte(pending)
            if isinstance(answer, Proceed):
                pending.proceed = True
                pending.began.set()
                continue
            if isinstance(answer, Data):
                await self._read_body(pending, answer.length)
            self._forget(pending)
            pending.settle(answer)
            self._end_if_retired()
        raise PeerError(f"Peer {self.peer.short} ended the stream.")

    def _note_first_byte(self, pending: Pending) -> None:
        if pending.waited is None:
            waited = trio.current_time() - pending.asked_at
            pending.waited = max(waited - (self._busy_secs() - pending.busy_when_asked), 0.0)
            # What a Put waits for is the peer's disk or memory, not what a reader would wait for.
            if not pending.abandoned and not isinstance(pending.request, Put):
                self._stats.first_byte(pending.waited)

    async def _read_body(self, pending: Pending, length: int) -> None:
        pending.began.set()
        # The peer announced `length`, but it is bounded by what was asked and by the largest chunk,
        # and the pages are touched only as bytes come in.
        into = None if pending.abandoned else pending.into
        body = bytearray(length) if into is None else into()
        self._body_began = trio.current_time()
        before = self._metered.bytes_read
        self._incoming = (pending, before, before + length)
        if pending.arrival is not None:
            pending.arrival.update(0)
            self._watched = (pending.arrival, before, length)
        received = 0
        try:
            await self._reader.read_into(memoryview(body))
            received = length
        finally:
            received = received or min(self._metered.bytes_read - before, length)
            self._watched = self._incoming = None
            self._body_secs += trio.current_time() - self._body_began
            self._body_began = None
            pending.downloaded = received
            self._stats.bytes_received += received
        if pending.abandoned:
            self._stats.duplicates += 1
        else:
            pending.body = body

    def _forget(self, pending: Pending) -> None:
        del self._pending[pending.request.id]
        self._abandoned -= pending.abandoned
        pending.over()

    def _busy_secs(self) -> float:
        """Seconds this stream has spent delivering bodies, up to now."""
        current = 0.0 if self._body_began is None else trio.current_time() - self._body_began
        return self._body_secs + current
