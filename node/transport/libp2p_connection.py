"""One live connection to a peer: its streams, its liveness, its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog
import trio

from ...dht.host import StreamHandler
from ...dht.peer_id import PeerId
from ...errors import PeerError
from . import multistream
from .libp2p_stream import Libp2pStream
from .limits import HostLimits
from .native_connection import NativeConnection
from .native_stream import NativeStream
from .streams import BufferedStream

_log = structlog.get_logger(__name__)

_LINGER = 30.0
"""Seconds a stream closed here may wait for the peer to close its side too."""
_FAREWELL = 1.0
"""Seconds a peer has to end a connection that we leave; then we do, unless it has streams."""


@dataclass(slots=True)
class HandlerCounts:
    """What went wrong while serving peers, over all connections of a host."""

    failed: int = 0
    refused: int = 0
    handshakes: Counter[str] = field(default_factory=Counter)
    """Inbound connections without a finished handshake: "late", "displaced", "failed"."""
    violations: Counter[str] = field(default_factory=Counter)
    """What peers did against the protocol, by reason. Each ended a connection, but for "no_credit":
    a stall deadline in which a peer gave a waiting stream none."""


Admits = Callable[[PeerId, str], Awaitable[bool]]
"""Whether a peer may be served a protocol."""


class Libp2pConnection:
    """Serves the peer's streams and opens ours, until closed, lost, or silent for too long.

    Args:
        remote: the peer's end of it, as a multiaddr.
    """

    def __init__(
        self,
        muxer: NativeConnection,
        *,
        inbound: bool,
        remote: str,
        limits: HostLimits,
        handlers: Mapping[str, StreamHandler],
        admits: Admits,
        handler_nursery: trio.Nursery,
        counts: HandlerCounts,
    ) -> None:
        self.peer: PeerId = muxer.peer
        self.inbound = inbound
        self.remote = remote
        self.opened_at = trio.current_time()
        self.used_at = self.opened_at
        """When it last had a stream, to within a keep-alive interval."""
        self.closed = False
        self.leaving = False
        """Nobody uses it, and the peer has been told that it ends."""
        self.spare = False
        """There is a better one to the same peer. If we dialled this one, it goes once unused."""
        self._muxer = muxer
        self._limits = limits
        self._handlers = handlers
        self._admits = admits
        self._handler_nursery = handler_nursery
        self._counts = counts
        self._nursery: trio.Nursery | None = None
        self._ended: Callable[[Libp2pConnection], None] | None = None
        self._ours: set[Libp2pStream] = set()
        self._theirs: set[Libp2pStream] = set()
        self._serving = 0
        self._lingering: list[tuple[float, Libp2pStream]] = []

    @property
    def usable(self) -> bool:
        """Whether it takes new streams; one that does not may still have live ones."""
        return not (self.closed or self.leaving or self._muxer.leaving or self._muxer.why_closed)

    @property
    def streams(self) -> int:
        """Streams that live on it, whoever opened them."""
        return self._muxer.streams

    def distrust(self) -> None:
        """Keep little memory for the peer until `trust`."""
        self._muxer.distrust()

    def trust(self) -> None:
        self._muxer.trust()

    async def run(
        self,
        opened: Callable[[Libp2pConnection], None],
        ended: Callable[[Libp2pConnection], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Live until the connection ends. Calls `opened` at once, and `ended` as it closes."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                nursery.start_soon(self._run_muxer)
                self._ended = ended
                opened(self)
                task_status.started()
                nursery.start_soon(self._keep_alive)
                await self._accept_streams()
            finally:
                self.close("the connection was lost")

    def close(self, why: str) -> None:
        """End the connection at once: streams fail with PeerError, the socket is closed."""
        if self.closed:
            return
        self.closed = True
        self._muxer.close(why)
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        if self._ended is not None:
            self._ended(self)

    def leave(self) -> None:
        """End the connection in order: no new streams of ours, and what the peer has begun ends."""
        if self._nursery is None or not self.usable:
            return
        self.leaving = True
        self._muxer.leave()
        self._nursery.start_soon(self._say_farewell)

    def make_room(self) -> None:
        """End the connection for the sake of another one."""
        self.close("nobody used the connection, and another one was to be had")

    async def _say_farewell(self) -> None:
        while True:
            await trio.sleep(_FAREWELL)
            if not self.streams:
                self.close("nobody used the connection")
                return

    async def open_stream(self, protocol: str) -> Libp2pStream:
        """Open a stream and agree on its protocol.

        Raises:
            PeerError: refused, too many are open, no answer in time, or the connection is lost.
        """
        if self._count(self._ours) >= self._limits.max_streams_per_peer:
            raise PeerError(
                f"{self._limits.max_streams_per_peer} streams to peer {self.peer.short} "
                "are open already."
            )
        with trio.move_on_after(self._limits.negotiation_timeout):
            stream = Libp2pStream(self, self._open_muxed(), protocol)
            self._ours.add(stream)
            self.used_at = trio.current_time()
            try:
                buffered = BufferedStream(stream)
                await multistream.propose(buffered, protocol)
            except BaseException:
                await stream.reset()
                raise
            stream.begin(protocol, buffered.take_rest())
            return stream
        raise PeerError(
            f"Peer {self.peer.short} did not answer the request for a {protocol} stream within "
            f"{self._limits.negotiation_timeout:g} s."
        )

    def _count(self, streams: set[Libp2pStream]) -> int:
        if len(streams) >= self._limits.max_streams_per_peer:
            streams.difference_update([stream for stream in streams if stream.finished])
        return len(streams)

    def _open_muxed(self) -> NativeStream:
        try:
            return self._muxer.open()
        except PeerError as error:
            raise PeerError(
                f"No stream to peer {self.peer.short} can be opened: {error.message}."
            ) from error

    async def _run_muxer(self) -> None:
        await self._muxer.run()
        self.close("the connection was lost")

    async def _keep_alive(self) -> None:
        """Ping at every interval; two intervals without any traffic from the peer end it.

        Intervals are counted rather than time, because when this process itself was held up, what
        the peer sent meanwhile has not been read yet.
        """
        silent_intervals = unused_intervals = 0
        while True:
            pinged_at = trio.current_time()
            await trio.sleep(self._limits.keepalive)
            silent_intervals = 0 if self._muxer.last_received > pinged_at else silent_intervals + 1
            if silent_intervals == 2:
                silent = trio.current_time() - self._muxer.last_received
                self.close(f"the peer was silent for {silent:.0f} s")
                return
            if self.streams:
                self.used_at = trio.current_time()
            unused = self.spare and not self.inbound and not self.streams
            unused_intervals = unused_intervals + 1 if unused else 0
            if unused_intervals == 2:
                # For so long both sides have known the better one, and used it.
                self.close("another connection to the peer is in use")
                return
            await self._end_lingering()
            self._muxer.ping()

    async def _end_lingering(self) -> None:
        oldest = trio.current_time() - _LINGER
        overdue = [stream for since, stream in self._lingering if since < oldest]
        self._lingering = [
            entry for entry in self._lingering if entry[0] >= oldest and not entry[1].finished
        ]
        for stream in overdue:
            if not stream.finished:
                await stream.reset()

    async def _accept_streams(self) -> None:
        while True:
            try:
                muxed = await self._muxer.accept()
            except PeerError:
                return
            most = self._limits.max_streams_per_peer
            # A stream that is over counts until its handler has noticed: peers can reset faster.
            if self._serving >= most or self._count(self._theirs) >= most:
                self._counts.refused += 1
                self._muxer.refuse(muxed)
                continue
            stream = Libp2pStream(self, muxed, "unnegotiated")
            self._theirs.add(stream)
            self._serving += 1
            self._handler_nursery.start_soon(self._serve, stream)

    async def _serve(self, stream: Libp2pStream) -> None:
        """Task of one inbound stream; ends alone, whatever the peer sends or the handler does."""
        try:
            handler = await self._negotiate(stream)
            await handler(stream)
        except PeerError as error:
            _log.debug("stream_failed", protocol=stream.protocol, error=error.message)
            await stream.reset()
        except Exception:  # noqa: BLE001 - task boundary: a bug in a handler costs its stream
            self._counts.failed += 1
            _log.warning(
                "stream_handler_failed",
                protocol=stream.protocol,
                peer=str(self.peer),
                exc_info=True,
            )
            await stream.reset()
        else:
            await stream.close()
            if not stream.finished:
                self._lingering.append((trio.current_time(), stream))
        finally:
            self._serving -= 1
            self.used_at = trio.current_time()

    async def _negotiate(self, stream: Libp2pStream) -> StreamHandler:
        with trio.move_on_after(self._limits.negotiation_timeout):
            buffered = BufferedStream(stream)
            protocol = await multistream.answer(
                buffered, self._handlers, lambda proposal: self._admits(self.peer, proposal)
            )
            stream.begin(protocol, buffered.take_rest())
            return self._handlers[protocol]
        raise PeerError("The peer opened a stream and named no protocol in time.")
