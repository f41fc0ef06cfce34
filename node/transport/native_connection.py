"""A multiplexed, encrypted connection on a socket: the tasks around `YamuxCore` and Noise.

Whoever has something to send makes frames of it, seals them and offers them to the kernel at once;
what the kernel does not take waits for the writer task. None of that waits in the caller, so a
cancelled write cuts no frame. Reading is one task, one buffer, and never waits for writing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from ...dht.host import Buffer
from ...dht.peer_id import PeerId
from ...errors import PeerError
from .native_socket import NativeSocket
from .native_stream import LEAST_PROGRESS, NativeStream
from .noise_session import Reader
from .yamux import YamuxCore
from .yamux_budget import ReceiveBudget
from .yamux_events import PeerGoesAway, StreamChanged, StreamOpened
from .yamux_frames import GO_AWAY_NORMAL, GO_AWAY_PROTOCOL_ERROR, YamuxError
from .yamux_limits import YamuxLimits

_RECEIVE_BUFFER: Final = 256 * 1024
_BATCH: Final = 256 * 1024
"""Plaintext sealed at a time: what waits encrypted, and delays control frames, is about this."""
_SEALED_BUFFER: Final = _BATCH + 128 * 1024
_MAX_STARVED: Final = 3
"""Stall deadlines in a row, without any credit in between, that a connection survives."""
_SMALL_TALK: Final = 64 * 1024
"""Streams that have received less than this together are likely to answer each other's messages."""
_ROUNDS: Final = 8
"""Batches one caller sends before other tasks get their turn."""


class Scratch:
    """Where bytes are received, and sealed, by all connections of one host.

    Nothing is kept here across a wait, so one is enough; and it stays in the processor's cache.
    """

    __slots__ = ("received", "sealed")

    def __init__(self) -> None:
        self.received = memoryview(bytearray(_RECEIVE_BUFFER))
        self.sealed = memoryview(bytearray(_SEALED_BUFFER))


def new_scratch() -> Scratch:
    """Buffers to be shared by the connections of one host."""
    return Scratch()


class Session(Protocol):
    """The keys of a connection; see `noise.NoiseSession`."""

    def seal_into(self, pieces: Sequence[Buffer], scratch: memoryview) -> Buffer:
        """Frames that carry `pieces`, to be sent or copied before the next call."""
        ...

    def open_to(self, reader: Reader, received: memoryview) -> int:
        """Hand over what all whole frames carried; how many bytes of `received` they took."""
        ...


class NativeConnection:
    """Streams to one peer until closed, lost, or the peer breaks the rules.

    Args:
        session: made by the handshake; `early` is what it has decrypted beyond that.
        unopened: bytes received and not decrypted yet.
        scratch: shared by all connections of a host; has room for one Noise frame at least.
        budget: bounds what all connections of a host hold; alone without it.
        stall_timeout: seconds without progress after which a peer that takes no bytes (or gives a
            stream no credit) is given up.
        violated: told the reason, for counting, when the peer breaks the rules.
    """

    def __init__(
        self,
        peer: PeerId,
        wire: NativeSocket,
        session: Session,
        *,
        initiator: bool,
        stall_timeout: float,
        limits: YamuxLimits | None = None,
        early: bytes = b"",
        unopened: bytes = b"",
        scratch: Scratch | None = None,
        budget: ReceiveBudget | None = None,
        violated: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.peer = peer
        self.stall_timeout = stall_timeout
        self.why_closed: str | None = None
        self.corked = False
        """Several streams are about to write: small writes need not `flush`, it will be done."""
        self._wire = wire
        self._session = session
        self._core = YamuxCore(initiator, limits or YamuxLimits(), trio.current_time, budget)
        self._violated = violated
        self._early = early
        self._scratch = scratch or Scratch()
        self._unopened = unopened
        self._streams: dict[int, NativeStream] = {}
        self._unsent: Buffer = b""
        self._blocked = False
        self._work = trio.Event()
        self._acceptable = trio.Event()
        self._scope = trio.CancelScope()
        self._starved = 0
        self._starved_at = -math.inf
        self._credit_then = 0

    @property
    def last_received(self) -> float:
        return self._wire.last_received

    @property
    def leaving(self) -> bool:
        """The peer has said that it takes no new streams."""
        return self._core.peer_leaves

    @property
    def owes_frames(self) -> bool:
        """Whether `flush` has something to do."""
        return self._core.has_outgoing

    @property
    def streams(self) -> int:
        return self._core.streams

    @property
    def buffered(self) -> int:
        """Bytes received and not read."""
        return self._core.buffered

    def distrust(self) -> None:
        """Keep little memory for the peer until `trust`; see `YamuxLimits.stranger_unread`."""
        self._core.credit.stranger = True

    def trust(self) -> None:
        self._core.credit.stranger = False

    async def run(self) -> None:
        """Move frames until the connection ends; never raises what the peer caused."""
        with self._scope:
            if self.why_closed is not None:
                return
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    self.ping()
                    await self._read()
            finally:
                self.close("the connection was lost")

    # --- streams ------------------------------------------------------------------------------

    def open(self) -> NativeStream:
        """A new stream; PeerError when there can be none."""
        stream = self._core.open()
        self.flush()
        return self._wrap(NativeStream(self, stream))

    async def accept(self) -> NativeStream:
        """The next stream the peer opens; PeerError at the end of the connection."""
        await trio.lowlevel.checkpoint()
        while (stream := self._core.accept()) is None:
            if self.why_closed is not None:
                raise PeerError(self.why_closed)
            self._acceptable = trio.Event()
            await self._acceptable.wait()
        self.flush()
        return self._wrap(NativeStream(self, stream))

    def refuse(self, stream: NativeStream) -> None:
        """Reset the stream just accepted for want of room; a flood of them ends the connection."""
        try:
            self._core.refuse(stream.state)
        except YamuxError as error:
            self._break(error)
        self.forget(stream)
        self.flush()

    def _wrap(self, stream: NativeStream) -> NativeStream:
        if not stream.finished:
            self._streams[stream.state.id] = stream
        return stream

    def forget(self, stream: NativeStream) -> None:
        self._streams.pop(stream.state.id, None)
        if self._core.peer_leaves and not self._core.streams:
            self.close("the peer went away")

    def ping(self) -> None:
        """Ask for a sign of life; it shows in `last_received`."""
        self._core.ping()
        self.flush()

    def starved(self) -> None:
        """A writer has waited for credit through a whole stall deadline.

        Counted once a deadline however many wait; a peer that gives next to no credit on any stream
        through several of them reads nothing, and is let go.
        """
        now = trio.current_time()
        if self._core.credit_received - self._credit_then >= LEAST_PROGRESS:
            self._credit_then = self._core.credit_received
            self._starved = 0
        elif now - self._starved_at < self.stall_timeout:
            return
        self._starved_at = now
        self._starved += 1
        self._violated("no_credit")
        if self._starved > _MAX_STARVED:
            self._break(YamuxError("window_shut", "It gives no credit on any stream."))

    # --- the end ------------------------------------------------------------------------------

    def leave(self) -> None:
        """Ask the peer for no more streams: one of ours ends the connection when it has none left.

        What it opened before it heard of this is served.
        """
        self._core.go_away()
        self.flush()

    def close(self, why: str, code: int = GO_AWAY_NORMAL) -> None:
        """End at once: streams fail with `why`, the socket is closed. Idempotent."""
        if self.why_closed is not None:
            return
        self.why_closed = why
        self._say_goodbye(code)
        self._wire.close()
        self._core.fail(why)
        self._unsent = b""
        for stream in list(self._streams.values()):
            stream.wake()
        self._streams.clear()
        self._acceptable.set()
        self._scope.cancel()

    def _say_goodbye(self, code: int) -> None:
        """A go-away, as far as the kernel takes it now; nobody waits for it."""
        self._core.go_away(code)
        try:
            if self._push():
                self._seal(0)
        except PeerError:
            return  # it is lost already: there is nobody to tell

    def _break(self, error: YamuxError) -> None:
        self._violated(error.reason)
        self.close(
            f"the peer broke the protocol: {error.message.removesuffix('.')}",
            GO_AWAY_PROTOCOL_ERROR,
        )

    # --- writing ------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what is due, as far as the kernel takes it; the writer task sends the rest."""
        if self._blocked or self.why_closed is not None:
            return
        try:
            for _ in range(_ROUNDS):
                if not self._seal(_BATCH):
                    break
                if not self._core.outbox.ready:
                    return
        except PeerError as error:
            self.close(error.message)
        self._work.set()

    def _seal(self, max_bytes: int) -> bool:
        """Seal and send about `max_bytes`, when nothing is unsent; whether the kernel took all."""
        if not (pieces := self._core.take_outgoing(max_bytes)):
            return True
        sealed = self._session.seal_into(pieces, self._scratch.sealed)
        for state in self._core.outbox.take_drained():
            if (stream := self._streams.get(state.id)) is not None:
                stream.wake_writer()
        sent = self._wire.try_send(sealed)
        if sent == len(sealed):
            return True
        self._unsent = bytes(memoryview(sealed)[sent:])
        self._blocked = True
        return False

    def _push(self) -> bool:
        """Offer the kernel what it did not take before; whether it takes all now."""
        if self._unsent:
            sent = self._wire.try_send(self._unsent)
            self._unsent = memoryview(self._unsent)[sent:]
        self._blocked = len(self._unsent) > 0
        return not self._blocked

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work = trio.Event()
            try:
                while self._blocked:
                    await self._wire.wait_writable(self.stall_timeout)
                    self._push()
            except PeerError as error:
                self.close(error.message)
                return
            self.flush()

    # --- reading ------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            self._core.take(self._early)
            self._tell()
            while True:
                if self._receive():
                    # There is more: whoever got something has its turn before.
                    await trio.lowlevel.checkpoint()
                elif not self.corked:
                    await self._wire.wait_readable()
                if self.corked:
                    await self._gather()
        except YamuxError as error:
            self._break(error)
        except PeerError as error:
            self.close(error.message)

    async def _gather(self) -> None:
        """Let those who were woken write before anything is sent: their frames share a packet.

        Tasks of one turn run in either order, so the second turn is when all have run.
        """
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        self.corked = False
        self.flush()

    def _receive(self) -> bool:
        """Take in what the kernel has, without waiting; whether it may have more."""
        scratch = self._scratch.received
        kept = len(self._unopened)
        size = self._wire.try_receive_into(scratch[kept:] if kept else scratch)
        if size is None:
            return False
        if not size:
            raise PeerError("the connection was lost")
        if kept:
            scratch[:kept] = self._unopened
        filled = kept + size
        try:
            used = self._session.open_to(self._core, scratch[:filled])
        except PeerError:
            self._violated("bad_noise_frame")
            raise
        self._unopened = bytes(scratch[used:filled])
        self._tell()
        return filled == len(scratch)

    def _tell(self) -> None:
        """Wake those for whom something has come."""
        woken = 0
        for event in self._core.take_events():
            if type(event) is StreamChanged:
                if (stream := self._streams.get(event.stream.id)) is not None:
                    woken += stream.wake()
            elif type(event) is StreamOpened:
                self._acceptable.set()
            elif type(event) is PeerGoesAway and not self._core.streams:
                self.close("the peer went away")
        if self._core.has_outgoing:
            self.flush()
        if woken > 1 and self._core.credit.unread < _SMALL_TALK:
            self.corked = True
