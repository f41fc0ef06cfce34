"""A multiplexed, encrypted connection on a socket: the tasks around `YamuxCore` and Noise.

Whoever has something to send makes frames of it, seals them and offers them to the kernel at once;
what the kernel does not take waits for the writer task. None of that waits in the caller, so a
cancelled write cuts no frame. Reading is one task, one buffer, and never waits for writing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from ...dht.host import Buffer
from ...dht.peer_id import PeerId
from ...errors import PeerError
from .native_socket import NativeSocket
from .native_stream import NativeStream
from .yamux import (
    PeerGoesAway,
    StreamChanged,
    StreamOpened,
    YamuxCore,
)
from .yamux_frames import GO_AWAY_NORMAL, GO_AWAY_PROTOCOL_ERROR, YamuxError
from .yamux_limits import YamuxLimits

_RECEIVE_BUFFER: Final = 256 * 1024
_BATCH: Final = 512 * 1024
"""Plaintext sealed at a time: what waits encrypted, and delays control frames, is about this."""
_MAX_STARVED: Final = 3
"""Stall deadlines in a row, without any credit in between, that a connection survives."""
_ROUNDS: Final = 4
"""Batches one caller sends before other tasks get their turn."""


def new_scratch() -> memoryview:
    """A receive buffer, to be shared by the connections of one host."""
    return memoryview(bytearray(_RECEIVE_BUFFER))


class Session(Protocol):
    """The keys of a connection; see `noise.NoiseSession`."""

    def seal(self, pieces: Sequence[Buffer]) -> Sequence[Buffer]:
        """Frames that carry `pieces`, ready to be sent."""
        ...

    def open(self, received: memoryview) -> tuple[list[bytes], int]:
        """What all whole frames carried, and how many bytes of `received` they took."""
        ...


class NativeConnection:
    """Streams to one peer until closed, lost, or the peer breaks the rules.

    Args:
        session: made by the handshake; `early` is what it has decrypted beyond that.
        unopened: bytes received and not decrypted yet.
        scratch: where bytes are received and decrypted from; never across a wait, so one serves
            all connections of a host. Room for one Noise frame at least.
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
        scratch: memoryview | None = None,
        violated: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.peer = peer
        self.stall_timeout = stall_timeout
        self.why_closed: str | None = None
        self._wire = wire
        self._session = session
        self._core = YamuxCore(initiator, limits or YamuxLimits(), trio.current_time)
        self._violated = violated
        self._early = early
        self._scratch = new_scratch() if scratch is None else scratch
        self._unopened = unopened
        self._streams: dict[int, NativeStream] = {}
        self._unsent: deque[Buffer] = deque()
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
        self._core.stranger = True

    def trust(self) -> None:
        self._core.stranger = False

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

        Counted once a deadline however many wait; a peer that gives no credit on any stream through
        several of them reads nothing, and is let go.
        """
        now = trio.current_time()
        if self._core.credit_received != self._credit_then:
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

    def close(self, why: str, code: int = GO_AWAY_NORMAL) -> None:
        """End at once: streams fail with `why`, the socket is closed. Idempotent."""
        if self.why_closed is not None:
            return
        self.why_closed = why
        self._say_goodbye(code)
        self._wire.close()
        self._core.fail(why)
        self._unsent.clear()
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
                self._unsent.extend(self._session.seal(self._core.take_outgoing(0)))
                self._push()
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
                if not self._push():
                    break
                if not (pieces := self._core.take_outgoing(_BATCH)):
                    return
                self._unsent.extend(self._session.seal(pieces))
                self._wake_drained()
        except PeerError as error:
            self.close(error.message)
        self._work.set()

    def _wake_drained(self) -> None:
        for state in self._core.take_drained():
            if (stream := self._streams.get(state.id)) is not None:
                stream.wake_writer()

    def _push(self) -> bool:
        """Offer the kernel what is sealed; whether it took all."""
        unsent = self._unsent
        while unsent:
            sent = self._wire.try_send(list(unsent))
            while unsent and sent >= len(unsent[0]):
                sent -= len(unsent.popleft())
            if unsent:
                # A short count means a full buffer: asking again would only be told so.
                unsent[0] = memoryview(unsent[0])[sent:]
                self._blocked = True
                return False
        return True

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work = trio.Event()
            if self._blocked:
                try:
                    await self._wire.wait_writable(self.stall_timeout)
                except PeerError as error:
                    self.close(error.message)
                    return
                self._blocked = False
            self.flush()

    # --- reading ------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            self._take(self._early)
            while True:
                if self._receive():
                    # There is more: whoever got something has its turn before.
                    await trio.lowlevel.checkpoint()
                else:
                    await self._wire.wait_readable()
        except YamuxError as error:
            self._break(error)
        except PeerError as error:
            self.close(error.message)

    def _receive(self) -> bool:
        """Take in what the kernel has, without waiting; whether it may have more."""
        scratch = self._scratch
        kept = len(self._unopened)
        size = self._wire.try_receive_into(scratch[kept:])
        if size is None:
            return False
        if not size:
            raise PeerError("the connection was lost")
        scratch[:kept] = self._unopened
        filled = kept + size
        try:
            pieces, used = self._session.open(scratch[:filled])
        except PeerError:
            self._violated("bad_noise_frame")
            raise
        self._unopened = bytes(scratch[used:filled])
        self._take(pieces)
        return filled == len(scratch)

    def _take(self, pieces: Sequence[bytes] | bytes) -> None:
        if not pieces:
            return
        for event in self._core.receive(pieces):
            match event:
                case StreamChanged(state):
                    if (stream := self._streams.get(state.id)) is not None:
                        stream.wake()
                case StreamOpened():
                    self._acceptable.set()
                case PeerGoesAway():
                    if not self._core.streams:
                        self.close("the peer went away")
        if self._core.has_outgoing:
            self.flush()
