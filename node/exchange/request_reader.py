"""What comes in on one served stream: requests find a place, bodies find their memory.

What comes too early waits: first in its task, then (the peer's line or memory being full) by no
longer being read, for `memory_wait_secs` at most: a peer whose bytes nobody takes for longer would
take the stream for dead. And a body that is owed comes on this stream too, behind what is not read,
and others of the peer may wait for its memory or turn. So while one is owed, reading goes on. What
finds no place in time is refused.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

from ...errors import FormatError
from ..transport.streams import BufferedStream
from .answer_writer import AnswerWriter
from .lanes import Lane
from .limits import Accounts, PeerAccount
from .messages import Body, Cancel, Have, Put, Reason, Release
from .metered import MeteredStream
from .service import Refusal
from .serving import Served, ServerCounts, Serving
from .settings import ServerLimits
from .traffic import Pipe
from .wire import PREFIX_BYTES, decode_request, header_rest

LINE_RETRY_SECS = 2.0
MEMORY_RETRY_SECS = 1.0
_BUSY_RETRY_SECS = 0.25
_DIGESTS_PER_UNIT = 64
_DRAIN_BYTES = 64 * 1024


class RequestReader:
    """See the module. One task reads; the tasks that serve tell it what they owe and when they end.

    Args:
        stream: `touch` must be called whenever bytes come in on it.
        writer: for refusals, which the reader writes itself, so that a peer that floods us without
            reading answers only stops being read.
        closing: whether the server is about to stop.
    """

    def __init__(
        self,
        stream: MeteredStream,
        writer: AnswerWriter,
        accounts: Accounts,
        account: PeerAccount,
        limits: ServerLimits,
        counts: ServerCounts,
        down: Pipe,
        closing: Callable[[], bool],
    ) -> None:
        self._stream = stream
        self._down = down
        self._reader = BufferedStream(stream)
        self._writer = writer
        self._accounts = accounts
        self._account = account
        self._limits = limits
        self._counts = counts
        self._closing = closing
        self._reading = trio.CancelScope()
        self._owed: set[Serving] = set()
        """Those whose bodies may be sent and are not in yet."""
        self._paused = False
        """The reader does something else, which has its own deadline or is our turn."""
        self._held = trio.CancelScope()
        """Around a wait of the reader that must end when a body is owed."""
        self.requests: dict[int, Serving] = {}
        """By id: those without a final answer."""
        self.active = 0
        """Requests under way."""

    async def run(self, start: Callable[[Serving], None]) -> None:
        """Read until the peer ends the stream or stalls; `start` is given each request that was let
        in, and sees to it that `finish` is called.

        Raises:
            FormatError: the peer broke the protocol.
            PeerError: the stream is lost.
        """
        self.touch()
        with self._reading:
            while not await self._reader.at_end():
                prefix = await self._reader.read_exactly(PREFIX_BYTES)
                rest = await self._reader.read_exactly(header_rest(prefix, request=True))
                self._counts.bytes_received += PREFIX_BYTES + len(rest)
                request = decode_request(prefix[4:] + rest)
                match request:
                    case Cancel(ident):
                        self._account.bucket.take(1.0, trio.current_time())
                        self._cancel(ident)
                    case Body(ident, length):
                        await self._take_body(ident, length)
                    case _:
                        await self._accept(request, start)
                await self._wait_off_debt()

    def touch(self) -> None:
        """Something moved: set how long the next silence of the peer may last."""
        now = trio.current_time()
        if self._paused:
            self._reading.deadline = math.inf
        elif self._owed:
            due = min(serving.body_due for serving in self._owed)
            self._reading.deadline = min(now + self._limits.body_stall_secs, due)
        elif self.active:
            self._reading.deadline = math.inf  # it is our turn
        else:
            self._reading.deadline = now + self._limits.idle_secs

    def forget(self, ident: int) -> None:
        """The final answer to `ident` goes out: the peer may use the id again."""
        self.requests.pop(ident, None)

    def finish(self, serving: Serving) -> None:
        """The request is over, answered or not."""
        ident = serving.request.id
        if self.requests.get(ident) is serving:  # and not a later one of the same id
            self.forget(ident)
        self._owe_no_longer(serving)
        self._account.leave_turn(serving)
        self._accounts.release(self._account, serving.reserved, serving.lane)
        self._account.line.give_back(serving.cost, serving.lane)
        self.active -= 1
        self.touch()

    # --- waiting ---

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Around what keeps the reader from reading: this is no silence of the peer."""
        self._paused = True
        self.touch()
        try:
            yield
        finally:
            self._paused = False
            self.touch()

    async def _wait_off_debt(self) -> None:
        """A peer deep in debt is not read for a while."""
        if (debt := self._account.bucket.overdrawn(trio.current_time())) > 0.0:
            with self._pause():
                await trio.sleep(debt)
                for serving in self._owed:
                    serving.body_due += debt

    async def _wait_unless_owed(self, wait: Callable[[], Awaitable[None]]) -> bool:
        """Read no further until `wait` returns; False: a body is owed that must be read first, or
        it would take so long that the peer's transport took this stream for stalled."""
        if self._owed:
            return False
        with self._pause(), trio.move_on_after(self._limits.memory_wait_secs) as self._held:
            await wait()
            return True
        return False

    # --- requests ---

    async def _accept(self, request: Served, start: Callable[[Serving], None]) -> None:
        if request.id in self.requests:
            raise FormatError(f"Request id {request.id} is in use.")
        self._counts.requests += 1
        size = request.length if isinstance(request, Put) and request.inline else 0
        serving = Serving(request, reserved=size)
        refusal = await self._admit(serving)
        if refusal is not None:
            await self._drain(size)
            with self._pause():
                await self._writer.refuse(serving, refusal)
            return
        self.requests[request.id] = serving
        self.active += 1
        self.touch()
        started = False
        try:
            if isinstance(request, Put) and request.inline:
                await self._wait_for_limits(serving, size)
                self.owe(serving, size)
                await self._read_body(serving, size)
            start(serving)
            started = True
        finally:
            if not started:
                self.finish(serving)

    async def _wait_for_limits(self, serving: Serving, size: int) -> None:
        """Of a body that comes along, and could not be asked for later: to leave it unread for a
        while makes the peer slower, if not at once."""
        peer, lane = self._stream.peer, serving.lane

        async def wait() -> None:
            (await self._down.invite(peer, lane, size)).over(size)

        # A limit is rare, and without one nothing is charged.
        if self._down.seconds(size) and not await self._wait_unless_owed(wait):
            self._down.charge(peer, size)

    async def _admit(self, serving: Serving) -> Refusal | None:
        """Find a place in the peer's line, and memory for a body that comes along."""
        account, limits = self._account, self._limits
        request, lane = serving.request, serving.lane
        cost = 1
        if isinstance(request, Have | Release):
            cost += len(request.digests) // _DIGESTS_PER_UNIT
        wait = account.bucket.take(cost, trio.current_time())
        if self._closing():
            return Refusal(Reason.SHUTTING_DOWN, "")
        if wait > limits.request_wait_secs:
            return Refusal(Reason.BUSY, "too many requests a second", wait)
        serving.not_before = trio.current_time() + wait
        serving.cost = min(cost, account.line.most(lane))
        if not account.line.try_take(serving.cost, lane) and not await self._wait_unless_owed(
            lambda: account.line.take(serving.cost, lane)
        ):
            return Refusal(Reason.BUSY, "too many requests at once", _BUSY_RETRY_SECS)
        reserved = False
        try:
            reserved = await self._reserve(serving.reserved, lane)
        finally:
            if not reserved:
                account.line.give_back(serving.cost, lane)
        if reserved:
            return None
        return Refusal(Reason.BUSY, "too many bytes in memory", MEMORY_RETRY_SECS)

    async def _reserve(self, size: int, lane: Lane) -> bool:
        """Memory for a body that comes along: not waited for while others have it."""
        memory = self._account.memory
        if not memory.try_take(size, lane) and not await self._wait_unless_owed(
            lambda: memory.take(size, lane)
        ):
            return False
        if self._accounts.memory.try_take(size, lane):
            return True
        memory.give_back(size, lane)
        return False

    def _cancel(self, ident: int) -> None:
        serving = self.requests.get(ident)
        if serving is not None:
            serving.cancelled = True
            if not serving.committed:
                serving.scope.cancel()

    # --- bodies ---

    def owe(self, serving: Serving, length: int) -> None:
        """The peer may send this body now: behind all others that it owes, at `least_rate`."""
        self._account.owed_bytes += length
        secs = self._account.owed_bytes / self._limits.least_rate + self._limits.rate_grace_secs
        serving.body_due = trio.current_time() + secs
        self._owed.add(serving)
        self._held.cancel()
        self.touch()

    def _owe_no_longer(self, serving: Serving) -> None:
        if serving in self._owed:
            assert isinstance(serving.request, Put)
            self._owed.discard(serving)
            self._account.owed_bytes -= serving.request.length

    async def _drain(self, size: int) -> None:
        while size:
            size -= len(await self._reader.read_exactly(min(size, _DRAIN_BYTES)))

    async def _take_body(self, ident: int, length: int) -> None:
        serving = self.requests.get(ident)
        # One that is cancelled waits no longer, though its task may not have ended yet.
        waits = serving is not None and serving in self._owed and not serving.cancelled
        if serving is None or not waits or serving.body_began:
            raise FormatError(f"A body came for request {ident}, which waits for none.")
        assert isinstance(serving.request, Put)
        if length != serving.request.length:
            raise FormatError(f"A body of {length} bytes came; {serving.request.length} are due.")
        await self._read_body(serving, length)

    async def _read_body(self, serving: Serving, length: int) -> None:
        """Read a body for which memory is reserved, and which is owed."""
        body = bytearray(length)
        serving.body_began = serving.committed = True
        self.touch()
        await self._reader.read_into(memoryview(body))
        self._counts.bytes_received += length
        serving.body = body
        self._owe_no_longer(serving)
        self.touch()
        serving.body_came.set()
