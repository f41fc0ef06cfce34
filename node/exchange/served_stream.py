"""One stream of one peer, served: many requests at once, answers as they become ready.

One task reads; each request has a task of its own; a lock lets one answer at a time onto the
stream. Everything is bounded: requests and bodies in memory per peer (`limits.py`), a refusal is
written by the reader itself, so that a peer that floods us only stops being read.

What comes too early waits: first in its task, then (the peer's line or memory being full) by no
longer being read. But a body that is owed comes on this stream too, behind what is not read, and
others of the peer may wait for its memory or turn. So while one is owed, reading goes on, and what
finds no place is refused.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import structlog
import trio

from ...dht.host import Buffer, Stream
from ...errors import FormatError, PeerError
from ..transport.streams import BufferedStream
from .limits import Accounts, PeerAccount
from .messages import (
    Answer,
    AskInfo,
    Body,
    Cancel,
    Data,
    Get,
    Have,
    Proceed,
    Put,
    Reason,
    Refused,
    Release,
    Reserved,
)
from .metered import MeteredStream
from .service import ChunkService, Refusal
from .settings import PIECE_BYTES, ServerLimits
from .wire import PREFIX_BYTES, decode_request, encode, header_rest

_log = structlog.get_logger(__name__)

_BUSY_RETRY_SECS = 0.25
_MEMORY_RETRY_SECS = 1.0
_DIGESTS_PER_UNIT = 64
_DRAIN_BYTES = 64 * 1024
_JOIN_BYTES = 16 * 1024


_Served = Get | Have | Put | AskInfo | Release | Reserved


@dataclass(slots=True, eq=False)
class _Serving:
    """One request being served."""

    request: _Served
    reserved: int = 0
    """Bytes of memory for a body that came along."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    not_before: float = 0.0
    """Earliest turn, by the rate of the peer."""
    cost: int = 1
    has_turn: bool = False
    committed: bool = False
    """A CANCEL comes too late: bytes are being written, or a body has been taken in."""
    cancelled: bool = False
    body_due: float = math.inf
    """When a body that is owed must be in."""
    body_began: bool = False
    body: bytearray | None = None
    body_came: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class ServerCounts:
    """Since the start."""

    requests: int = 0
    cancelled: int = 0
    protocol_errors: int = 0
    """Streams ended because the peer broke the protocol."""
    faults: int = 0
    """Requests that failed by a fault of this node."""
    bytes_received: int = 0
    bytes_sent: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    """By reason."""


class ServedStream:
    """See the module.

    Args:
        closing: whether the server is about to stop.
        on_finished: called when a request is over.
    """

    def __init__(
        self,
        stream: Stream,
        service: ChunkService,
        accounts: Accounts,
        account: PeerAccount,
        limits: ServerLimits,
        counts: ServerCounts,
        closing: Callable[[], bool],
        on_finished: Callable[[], None],
    ) -> None:
        self._stream = MeteredStream(stream, self._touch)
        self._reader = BufferedStream(self._stream)
        self._service = service
        self._accounts = accounts
        self._account = account
        self._limits = limits
        self._counts = counts
        self._closing = closing
        self._on_finished = on_finished
        self._requests: dict[int, _Serving] = {}
        self._lock = trio.Lock()
        self._scope = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._owed: set[_Serving] = set()
        """Those whose bodies may be sent and are not in yet."""
        self._paused = False
        """The reader does something else, which has its own deadline or is our turn."""
        self._held = trio.CancelScope()
        """Around a wait of the reader that must end when a body is owed."""
        self.active = 0
        """Requests under way."""

    async def run(self) -> None:
        """Serve until the peer ends the stream, breaks the protocol or stalls."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                try:
                    self._touch()
                    with self._reading:
                        await self._read_requests(nursery)
                except PeerError as error:
                    _log.debug("chunk_stream_lost", peer=str(self._stream.peer), error=str(error))
                except FormatError as error:
                    self._counts.protocol_errors += 1
                    _log.warning(
                        "chunk_protocol_error", peer=str(self._stream.peer), error=str(error)
                    )
                nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await self._stream.reset()

    async def say_goodbye(self) -> None:
        """Write nothing more. The peer ends its side when it has read everything, and `run` ends;
        a reset would take back answers that are still on their way."""
        async with self._lock:
            await self._stream.close()

    def stop(self) -> None:
        """End the stream and all that is under way on it."""
        self._scope.cancel()

    def _touch(self) -> None:
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

    # --- reading ---

    async def _read_requests(self, nursery: trio.Nursery) -> None:
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
                    await self._accept(request, nursery)
            await self._wait_off_debt()

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Around what keeps the reader from reading: this is no silence of the peer."""
        self._paused = True
        self._touch()
        try:
            yield
        finally:
            self._paused = False
            self._touch()

    async def _wait_off_debt(self) -> None:
        """A peer deep in debt is not read for a while."""
        if (debt := self._account.bucket.overdrawn(trio.current_time())) > 0.0:
            with self._pause():
                await trio.sleep(debt)
                for serving in self._owed:
                    serving.body_due += debt

    async def _wait_unless_owed(self, wait: Callable[[], Awaitable[None]]) -> bool:
        """Read no further until `wait` returns; False: a body is owed that must be read first."""
        if self._owed:
            return False
        with self._pause(), trio.CancelScope() as self._held:
            await wait()
            return True
        return False

    async def _accept(self, request: _Served, nursery: trio.Nursery) -> None:
        if request.id in self._requests:
            raise FormatError(f"Request id {request.id} is in use.")
        self._counts.requests += 1
        size = request.length if isinstance(request, Put) and request.inline else 0
        serving = _Serving(request, reserved=size)
        refusal = await self._admit(serving)
        if refusal is not None:
            await self._drain(size)
            with self._pause():
                await self._refuse(serving, refusal)
            return
        self._requests[request.id] = serving
        self.active += 1
        self._touch()
        started = False
        try:
            if isinstance(request, Put) and request.inline:
                self._owe(serving, size)
                await self._read_body(serving, size)
            nursery.start_soon(self._serve, serving)
            started = True
        finally:
            if not started:
                self._finish(serving)

    async def _admit(self, serving: _Serving) -> Refusal | None:
        """Find a place in the peer's line, and memory for a body that comes along."""
        account, limits, request = self._account, self._limits, serving.request
        cost = 1
        if isinstance(request, Have | Release):
            cost += len(request.digests) // _DIGESTS_PER_UNIT
        wait = account.bucket.take(cost, trio.current_time())
        if self._closing():
            return Refusal(Reason.SHUTTING_DOWN, "")
        if wait > limits.request_wait_secs:
            return Refusal(Reason.BUSY, "too many requests a second", wait)
        serving.not_before = trio.current_time() + wait
        serving.cost = min(cost, account.line.total)
        if not account.line.try_take(serving.cost) and not await self._wait_unless_owed(
            lambda: account.line.take(serving.cost)
        ):
            return Refusal(Reason.BUSY, "too many requests at once", _BUSY_RETRY_SECS)
        reserved = False
        try:
            reserved = await self._reserve(serving.reserved)
        finally:
            if not reserved:
                account.line.give_back(serving.cost)
        if reserved:
            return None
        return Refusal(Reason.BUSY, "too many bytes in memory", _MEMORY_RETRY_SECS)

    async def _reserve(self, size: int) -> bool:
        """Memory for a body that comes along: not waited for while others have it."""
        memory = self._account.memory
        if not memory.try_take(size) and not await self._wait_unless_owed(
            lambda: memory.take(size)
        ):
            return False
        if self._accounts.memory.try_take(size):
            return True
        memory.give_back(size)
        return False

    def _finish(self, serving: _Serving) -> None:
        self._requests.pop(serving.request.id, None)
        self._owe_no_longer(serving)
        self._leave_turn(serving)
        self._accounts.release(self._account, serving.reserved)
        self._account.line.give_back(serving.cost)
        self.active -= 1
        self._touch()
        self._on_finished()

    # --- bodies that come in ---

    def _owe(self, serving: _Serving, length: int) -> None:
        """The peer may send this body now: behind all others that it owes, at `least_rate`."""
        self._account.owed_bytes += length
        secs = self._account.owed_bytes / self._limits.least_rate + self._limits.rate_grace_secs
        serving.body_due = trio.current_time() + secs
        self._owed.add(serving)
        self._held.cancel()
        self._touch()

    def _owe_no_longer(self, serving: _Serving) -> None:
        if serving in self._owed:
            assert isinstance(serving.request, Put)
            self._owed.discard(serving)
            self._account.owed_bytes -= serving.request.length

    async def _drain(self, size: int) -> None:
        while size:
            size -= len(await self._reader.read_exactly(min(size, _DRAIN_BYTES)))

    async def _take_body(self, ident: int, length: int) -> None:
        serving = self._requests.get(ident)
        # One that is cancelled waits no longer, though its task may not have ended yet.
        waits = serving is not None and serving in self._owed and not serving.cancelled
        if serving is None or not waits or serving.body_began:
            raise FormatError(f"A body came for request {ident}, which waits for none.")
        assert isinstance(serving.request, Put)
        if length != serving.request.length:
            raise FormatError(f"A body of {length} bytes came; {serving.request.length} are due.")
        await self._read_body(serving, length)

    async def _read_body(self, serving: _Serving, length: int) -> None:
        """Read a body for which memory is reserved, and which is owed."""
        body = bytearray(length)
        serving.body_began = serving.committed = True
        self._touch()
        await self._reader.read_into(memoryview(body))
        self._counts.bytes_received += length
        serving.body = body
        self._owe_no_longer(serving)
        self._touch()
        serving.body_came.set()

    def _cancel(self, ident: int) -> None:
        serving = self._requests.get(ident)
        if serving is not None:
            serving.cancelled = True
            if not serving.committed:
                serving.scope.cancel()

    # --- serving ---

    async def _take_turn(self, serving: _Serving) -> None:
        await self._account.turns.acquire()
        serving.has_turn = True

    def _leave_turn(self, serving: _Serving) -> None:
        if serving.has_turn:
            serving.has_turn = False
            self._account.turns.release()

    @asynccontextmanager
    async def _memory(self, serving: _Serving, size: int) -> AsyncIterator[None]:
        """Hold memory for a body; a request that has to wait for it lets others have its turn."""
        if self._accounts.try_reserve(self._account, size):
            try:
                yield
            finally:
                self._accounts.release(self._account, size)
            return
        self._leave_turn(serving)
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._accounts.reserved(self._account, size))
            except trio.TooSlowError:
                detail = "too many bytes in memory"
                raise Refusal(Reason.BUSY, detail, _MEMORY_RETRY_SECS) from None
            await self._take_turn(serving)
            yield

    async def _serve(self, serving: _Serving) -> None:
        """Answer one request; whatever goes wrong ends the request, or at most the stream."""
        ident = serving.request.id
        try:
            try:
                with serving.scope:
                    await trio.sleep_until(serving.not_before)
                    await self._take_turn(serving)
                    await self._answer(serving)
                if serving.scope.cancelled_caught:
                    self._counts.cancelled += 1
                    await self._refuse(serving, Refusal(Reason.CANCELLED, ""))
            except Refusal as refusal:
                await self._refuse(serving, refusal)
            except PeerError:
                raise
            except Exception:  # noqa: BLE001 - task boundary: one request fails, not the node
                self._counts.faults += 1
                _log.exception("chunk_request_failed", op=type(serving.request).__name__, id=ident)
                await self._refuse(serving, Refusal(Reason.FAILED, ""))
        except PeerError as error:
            _log.debug("chunk_stream_lost", peer=str(self._stream.peer), error=str(error))
            self.stop()
        finally:
            self._finish(serving)

    async def _answer(self, serving: _Serving) -> None:
        match serving.request:
            case Have() as have:
                await self._send(serving, await self._service.have(have))
            case AskInfo(ident):
                await self._send(serving, await self._service.info(ident))
            case Get() as get:
                await self._answer_get(serving, get)
            case Put() as put:
                await self._answer_put(serving, put)
            case Release() as release:
                answer = await self._service.release(release, self._stream.peer)
                await self._send(serving, answer)
            case Reserved():
                raise Refusal(Reason.UNSUPPORTED, "")

    async def _answer_get(self, serving: _Serving, get: Get) -> None:
        size = await self._service.size_for(get)
        async with self._memory(serving, size):
            data = await self._service.read(get, size)
            await self._send(serving, Data(get.id, size, len(data)), data)

    async def _answer_put(self, serving: _Serving, put: Put) -> None:
        owner = self._stream.peer
        stored = await self._service.consider(put, owner)
        if stored is None and serving.body is not None:
            stored = await self._service.keep(put, serving.body, owner)
        elif stored is None:
            async with self._memory(serving, put.length):
                stored = await self._service.keep(put, await self._body(serving), owner)
        await self._send(serving, stored)

    async def _body(self, serving: _Serving) -> bytearray:
        """Ask for the body of a Put, and wait for it; slowness ends the stream (`_touch`)."""
        assert isinstance(serving.request, Put)
        self._owe(serving, serving.request.length)
        await self._send(serving, Proceed(serving.request.id))
        await serving.body_came.wait()
        assert serving.body is not None
        return serving.body

    # --- writing ---

    async def _refuse(self, serving: _Serving, refusal: Refusal) -> None:
        counts = self._counts.refusals
        counts[refusal.reason] = counts.get(refusal.reason, 0) + 1
        after = refusal.retry_after
        retry_after_ms = None if after is None else min(math.ceil(after * 1000), 3_600_000)
        ident = serving.request.id
        await self._send(serving, Refused(ident, refusal.reason, retry_after_ms, refusal.detail))

    async def _send(self, serving: _Serving, answer: Answer, body: Buffer = b"") -> None:
        """Write one answer when its turn has come.

        Raises:
            PeerError: the stream is lost, or the peer reads slower than `least_rate`.
        """
        async with self._lock:
            # From here on nothing of this request may be cancelled but with the whole stream.
            serving.committed = True
            final = not isinstance(answer, Proceed)
            if final:
                # The peer may use the id again as soon as it has the answer.
                self._requests.pop(answer.id, None)
            most = self._limits.rate_grace_secs + len(body) / self._limits.least_rate
            with trio.move_on_after(most) as slow:
                await self._write(encode(answer), body)
            if slow.cancelled_caught:
                raise PeerError(f"Peer {self._stream.peer.short} reads too slowly.")
            serving.committed = final or serving.body_began
        if serving.cancelled and not serving.committed:
            serving.scope.cancel()

    async def _write(self, header: bytes, body: Buffer) -> None:
        view = memoryview(body)
        if len(view) <= _JOIN_BYTES:
            await self._stream.write(header + bytes(view))
        else:
            await self._stream.write(header)
            for start in range(0, len(view), PIECE_BYTES):
                await self._stream.write(view[start : start + PIECE_BYTES])
        self._counts.bytes_sent += len(header) + len(view)
