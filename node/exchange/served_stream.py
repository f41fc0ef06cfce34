"""One stream of one peer, served: many requests at once, answers as they become ready.

One task reads (`request_reader.py`); each request has a task of its own; a lock lets one answer at
a time onto the stream (`answer_writer.py`). Everything is bounded: requests and bodies in memory
per peer (`limits.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
import trio

from ...dht.host import Stream
from ...errors import FormatError, PeerError
from .answer_writer import AnswerWriter
from .limits import Accounts, PeerAccount
from .messages import AskInfo, Data, Get, Have, Proceed, Put, Reason, Release, Reserved
from .metered import MeteredStream
from .request_reader import LINE_RETRY_SECS, MEMORY_RETRY_SECS, RequestReader
from .service import ChunkService, Refusal
from .serving import ServerCounts, Serving
from .settings import ServerLimits
from .traffic import Traffic

_log = structlog.get_logger(__name__)


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
        traffic: Traffic,
        closing: Callable[[], bool],
        on_finished: Callable[[], None],
    ) -> None:
        self._stream = MeteredStream(stream, self._came)
        self._bytes_read = 0
        self._limits = limits
        self._traffic = traffic
        self._service = service
        self._accounts = accounts
        self._account = account
        self._counts = counts
        self._on_finished = on_finished
        self._writer = AnswerWriter(
            self._stream, limits, counts, traffic.up, lambda ident: self._reader.forget(ident)
        )
        self._reader = RequestReader(
            self._stream,
            self._writer,
            accounts,
            account,
            limits,
            counts,
            traffic.down,
            closing,
        )
        self._scope = trio.CancelScope()

    @property
    def active(self) -> int:
        """Requests under way."""
        return self._reader.active

    async def run(self) -> None:
        """Serve until the peer ends the stream, breaks the protocol or stalls."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                try:
                    await self._reader.run(lambda it: nursery.start_soon(self._serve, it))
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
        """Write nothing more; `run` ends when the peer has read everything and ends its side."""
        await self._writer.close()

    def stop(self) -> None:
        """End the stream and all that is under way on it."""
        self._scope.cancel()

    def _came(self) -> None:
        self._traffic.down.moved(self._stream.bytes_read - self._bytes_read)
        self._bytes_read = self._stream.bytes_read
        self._reader.touch()

    @asynccontextmanager
    async def _memory(self, serving: Serving, size: int) -> AsyncIterator[None]:
        """Hold memory for a body; a request that has to wait for it lets others have its turn."""
        accounts, account, lane = self._accounts, self._account, serving.lane
        if accounts.try_reserve(account, size, lane):
            try:
                yield
            finally:
                accounts.release(account, size, lane)
            return
        account.leave_turn(serving)
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(accounts.reserved(account, size, lane))
            except trio.TooSlowError:
                detail = "too many bytes in memory"
                raise Refusal(Reason.BUSY, detail, MEMORY_RETRY_SECS) from None
            await account.take_turn(serving)
            yield

    async def _serve(self, serving: Serving) -> None:
        """Answer one request; whatever goes wrong ends the request, or at most the stream."""
        ident = serving.request.id
        try:
            try:
                with serving.scope:
                    if serving.not_before > trio.current_time():
                        await trio.sleep_until(serving.not_before)
                    await self._account.take_turn(serving)
                    await self._answer(serving)
                if serving.scope.cancelled_caught:
                    self._counts.cancelled += 1
                    await self._writer.refuse(serving, Refusal(Reason.CANCELLED, ""))
            except Refusal as refusal:
                await self._writer.refuse(serving, refusal)
            except PeerError:
                raise
            except Exception:  # noqa: BLE001 - task boundary: one request fails, not the node
                self._counts.faults += 1
                _log.exception("chunk_request_failed", op=type(serving.request).__name__, id=ident)
                await self._writer.refuse(serving, Refusal(Reason.FAILED, ""))
        except PeerError as error:
            _log.debug("chunk_stream_lost", peer=str(self._stream.peer), error=str(error))
            self.stop()
        finally:
            self._reader.finish(serving)
            self._on_finished()

    async def _answer(self, serving: Serving) -> None:
        match serving.request:
            case Have() as have:
                await self._writer.send(serving, await self._service.have(have))
            case AskInfo(ident):
                await self._writer.send(serving, await self._service.info(ident))
            case Get() as get:
                await self._answer_get(serving, get)
            case Put() as put:
                await self._answer_put(serving, put)
            case Release() as release:
                answer = await self._service.release(release, self._stream.peer)
                await self._writer.send(serving, answer)
            case Reserved():
                raise Refusal(Reason.UNSUPPORTED, "")

    async def _answer_get(self, serving: Serving, get: Get) -> None:
        if await self._answer_whole(serving, get):
            return
        size = await self._service.size_for(get)
        if (wait := self._traffic.up.backlog(serving.lane)) > self._limits.request_wait_secs:
            # It would wait for its first byte for so long that the peer took us for dead.
            raise Refusal(Reason.BUSY, "the line is full", wait)
        async with self._memory(serving, size):
            data = await self._service.read(get, size)
            await self._writer.send(serving, Data(get.id, size, len(data)), data)

    async def _answer_whole(self, serving: Serving, get: Get) -> bool:
        """The usual case in one visit to the store: the peer knows how long the chunk is, and
        nothing has to be waited for. False: it is not that."""
        size, accounts, account = get.length, self._accounts, self._account
        if get.offset or size is None or self._traffic.up.backlog(serving.lane):
            return False
        if not accounts.try_reserve(account, size, serving.lane):
            return False
        try:
            data = await self._service.read_whole(get, size)
            if data is not None:
                await self._writer.send(serving, Data(get.id, size, size), data)
        finally:
            accounts.release(account, size, serving.lane)
        return data is not None

    async def _answer_put(self, serving: Serving, put: Put) -> None:
        owner = self._stream.peer
        stored = await self._service.consider(put, owner)
        if stored is None and serving.body is not None:
            stored = await self._service.keep(put, serving.body, owner)
        elif stored is None:
            async with self._memory(serving, put.length), self._invited(serving, put.length):
                stored = await self._service.keep(put, await self._body(serving), owner)
        await self._writer.send(serving, stored)

    @asynccontextmanager
    async def _invited(self, serving: Serving, size: int) -> AsyncIterator[None]:
        """Around a body that is to come, when our own limits and lanes allow it."""
        invitation = None
        with trio.move_on_after(self._limits.memory_wait_secs):
            invitation = await self._traffic.down.invite(self._stream.peer, serving.lane, size)
        if invitation is None:
            raise Refusal(Reason.BUSY, "the line is full", LINE_RETRY_SECS)
        try:
            yield
        finally:
            invitation.over(size if serving.body_began else 0)

    async def _body(self, serving: Serving) -> bytearray:
        """Ask for the body of a Put, and wait for it; slowness ends the stream."""
        assert isinstance(serving.request, Put)
        self._reader.owe(serving, serving.request.length)
        await self._writer.send(serving, Proceed(serving.request.id))
        await serving.body_came.wait()
        assert serving.body is not None
        return serving.body
