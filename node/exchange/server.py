"""The server side of the chunk protocol: this node's chunks, for its peers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog
import trio

from ...dht.host import Host, Stream
from ..store.protocol import ChunkStore
from .limits import Accounts
from .messages import PROTOCOL
from .receipts import Signer
from .served_stream import ServedStream
from .service import ChunkService, InfoProvider, OnRelease, OnStored
from .serving import ServerCounts
from .settings import ServerLimits
from .traffic import Traffic, open_traffic

_log = structlog.get_logger(__name__)


class ChunkServer:
    """Serves `/meshnode/chunk/1` between the start and the end of `serving()`.

    Args:
        identity: signs receipts.
        info_provider: what we say of ourselves.
        on_stored: awaited for every chunk a peer put here, before its receipt is signed.
        on_release: lets go of what is kept for a peer; None: RELEASE is refused.
        traffic: shared with the client side, so that both keep the same limits and lanes.
        wall: Unix seconds, for receipts.
    """

    def __init__(
        self,
        host: Host,
        store: ChunkStore,
        *,
        identity: Signer,
        info_provider: InfoProvider,
        limits: ServerLimits | None = None,
        on_stored: OnStored | None = None,
        on_release: OnRelease | None = None,
        traffic: Traffic | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.limits = limits or ServerLimits()
        self.counts = ServerCounts()
        self._host = host
        self._service = ChunkService(
            store, identity, self.limits, info_provider, on_stored, on_release, wall
        )
        self._accounts = Accounts(self.limits)
        self._streams: set[ServedStream] = set()
        self._traffic = traffic
        self._closing = False
        self._changed = trio.Event()
        """Set when a request or a stream is over."""

    @property
    def bytes_in_memory(self) -> int:
        """Of bodies being received or sent."""
        return self._accounts.memory.taken

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[ChunkServer]:
        """Serve; at the end, let what is under way finish for `shutdown_grace_secs`."""
        async with AsyncExitStack() as stack:
            if (traffic := self._traffic) is None:
                traffic = await stack.enter_async_context(open_traffic())
            self._host.set_handler(PROTOCOL, partial(self._handle, traffic))
            try:
                yield self
            finally:
                self._closing = True
                with trio.CancelScope(shield=True):
                    await self._shut_down()

    async def _shut_down(self) -> None:
        with trio.move_on_after(self.limits.shutdown_grace_secs):
            await self._wait_until(lambda: not any(s.active for s in self._streams))
            async with trio.open_nursery() as nursery:
                for stream in self._streams:
                    nursery.start_soon(stream.say_goodbye)
            await self._wait_until(lambda: not self._streams)
        for stream in self._streams:
            stream.stop()

    async def _wait_until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._changed = trio.Event()
            await self._changed.wait()

    async def _handle(self, traffic: Traffic, stream: Stream) -> None:
        account = self._accounts.of(bytes(stream.peer))
        if self._closing or account.streams >= self.limits.streams_per_peer:
            _log.debug("chunk_stream_refused", peer=str(stream.peer), open=account.streams)
            await stream.reset()
            return
        served = ServedStream(
            stream,
            self._service,
            self._accounts,
            account,
            self.limits,
            self.counts,
            traffic,
            lambda: self._closing,
            lambda: self._changed.set(),
        )
        account.streams += 1
        self._streams.add(served)
        try:
            await served.run()
        finally:
            self._streams.discard(served)
            account.streams -= 1
            self._changed.set()


@asynccontextmanager
async def serve(
    host: Host,
    store: ChunkStore,
    *,
    identity: Signer,
    info_provider: InfoProvider,
    limits: ServerLimits | None = None,
    on_stored: OnStored | None = None,
    on_release: OnRelease | None = None,
    traffic: Traffic | None = None,
) -> AsyncIterator[ChunkServer]:
    """A `ChunkServer` that serves for the length of the block."""
    server = ChunkServer(
        host,
        store,
        identity=identity,
        info_provider=info_provider,
        limits=limits,
        on_stored=on_stored,
        on_release=on_release,
        traffic=traffic,
    )
    async with server.serving():
        yield server
