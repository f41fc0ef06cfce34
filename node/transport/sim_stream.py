"""One simulated connection and its streams, on trio's clock and without a task of their own.

Bytes carry the time at which they arrive; a reader sleeps until then. So an idle connection costs
nothing, and a thousand hosts fit in one process.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from ...dht.host import Buffer
from ...dht.peer_id import PeerId
from ...errors import PeerError

if TYPE_CHECKING:
    from .sim import SimHost

_SEGMENT = 64 * 1024


@dataclass(frozen=True, slots=True)
class SimLink:
    """What lies between two hosts, the same in both directions.

    Latency and jitter in seconds one way, bandwidth in bytes per second for all streams together,
    window in bytes that may be under way or unread on one stream before its writer has to wait.
    """

    latency: float = 0.0005
    bandwidth: float = float("inf")
    jitter: float = 0.0
    window: int = 256 * 1024


@dataclass(slots=True, eq=False)
class SimDirection:
    """One way along a link: a queue that all its streams share."""

    link: SimLink
    rng: random.Random
    free_at: float = 0.0
    last_arrival: float = 0.0

    def transmit(self, size: int) -> float:
        """Queue `size` bytes now; returns when the last of them arrives (in order)."""
        now = trio.current_time()
        self.free_at = max(now, self.free_at) + size / self.link.bandwidth
        arrival = self.free_at + self.link.latency + self.rng.random() * self.link.jitter
        self.last_arrival = max(arrival, self.last_arrival)
        return self.last_arrival

    def delay(self) -> float:
        """Time for one small packet, past what is queued."""
        queued = max(0.0, self.free_at - trio.current_time())
        return queued + self.link.latency + self.rng.random() * self.link.jitter


@dataclass(slots=True, eq=False)
class SimConnection:
    """A live connection between two hosts."""

    ends: tuple[SimHost, SimHost]
    ways: dict[PeerId, SimDirection]
    """By sender."""
    streams: set[SimStream] = field(default_factory=set)
    alive: bool = True
    changed: trio.Event = field(default_factory=trio.Event)
    """Set and replaced when the connection breaks or traffic on it can flow again."""

    def other(self, host: SimHost) -> SimHost:
        return self.ends[1] if self.ends[0] is host else self.ends[0]

    def notify(self) -> None:
        self.changed.set()
        self.changed = trio.Event()
        for stream in self.streams:
            stream.wake()

    async def round_trip(self, asking: SimHost) -> None:
        """The time a question and its answer take; waits while the link is blocked.

        Raises:
            PeerError: the connection broke meanwhile.
        """
        other = self.other(asking)
        wait = self.ways[asking.peer_id].delay() + self.ways[other.peer_id].delay()
        until = trio.current_time() + wait
        while self.alive:
            if asking.network.blocked(asking, other):
                await self.changed.wait()
            elif trio.current_time() >= until:
                return
            else:
                with trio.move_on_at(until):
                    await self.changed.wait()
        raise PeerError(f"The connection to peer {other.peer_id.short} was lost.")


class SimStream:
    """One end of a simulated stream; implements `Stream`."""

    __slots__ = (
        "_closed",
        "_connection",
        "_credits",
        "_failure",
        "_host",
        "_inbox",
        "_open_window",
        "_peer_host",
        "_protocol",
        "_readable",
        "_reading",
        "_twin",
        "_writable",
        "inbound",
    )

    def __init__(
        self, host: SimHost, connection: SimConnection, protocol: str, *, inbound: bool
    ) -> None:
        self._host = host
        self._connection = connection
        self._peer_host = connection.other(host)
        self._protocol = protocol
        self._twin: SimStream = self
        self._inbox: deque[tuple[float, bytes]] = deque()
        self._credits: deque[tuple[float, int]] = deque()
        self._open_window = connection.ways[host.peer_id].link.window
        self._failure: str | None = None
        self._closed = False
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()
        self._reading: trio.CancelScope | None = None
        self.inbound = inbound
        connection.streams.add(self)

    @classmethod
    def pair(
        cls, host: SimHost, connection: SimConnection, protocol: str
    ) -> tuple[SimStream, SimStream]:
        """The ends of a new stream that `host` opens: its own, and the peer's inbound one."""
        near = cls(host, connection, protocol, inbound=False)
        far = cls(connection.other(host), connection, protocol, inbound=True)
        near._twin, far._twin = far, near
        return near, far

    @property
    def peer(self) -> PeerId:
        return self._peer_host.peer_id

    @property
    def protocol(self) -> str:
        return self._protocol

    def wake(self) -> None:
        self._readable.unpark_all()
        self._writable.unpark_all()

    def _deliver(self, arrival: float, data: bytes) -> None:
        """Put bytes (or the end of the stream) under way to this end's reader."""
        self._inbox.append((arrival, data))
        if self._reading is not None and not self._blocked():
            # The reader sleeps until then: waking it now would only make it look at the clock.
            self._reading.deadline = min(self._reading.deadline, arrival)

    def break_off(self, why: str) -> None:
        """Fail this end: whatever it reads or writes from now on is a PeerError."""
        if self._failure is None:
            self._failure = why
        self._inbox.clear()
        self._connection.streams.discard(self)
        self.wake()

    async def read_some(self, max_bytes: int = 65536) -> bytes:
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        try:
            await self._host.running()
            await trio.lowlevel.checkpoint()
            while True:
                self._check()
                arrival = self._inbox[0][0] if self._inbox else float("inf")
                if arrival <= trio.current_time() and not self._blocked():
                    return self._pop(max_bytes)
                deadline = float("inf") if self._blocked() else arrival
                with trio.move_on_at(deadline) as self._reading:
                    await self._readable.park()
        except trio.Cancelled:
            self._reset_now()
            raise
        finally:
            self._reading = None

    def _pop(self, max_bytes: int) -> bytes:
        arrival, data = self._inbox.popleft()
        if not data:
            self._inbox.append((arrival, b""))  # the end of the stream stays the end
            return b""
        if len(data) > max_bytes:
            self._inbox.appendleft((arrival, data[max_bytes:]))
            data = data[:max_bytes]
        back = self._connection.ways[self._host.peer_id].delay()
        self._twin._credits.append((trio.current_time() + back, len(data)))
        self._twin._writable.unpark_all()
        return data

    async def write(self, data: Buffer) -> None:
        try:
            await self._host.running()
            await trio.lowlevel.checkpoint()
            view = memoryview(data).cast("B")
            while view:
                room = await self._window()
                size = min(room, _SEGMENT, len(view))
                self._open_window -= size
                arrival = self._connection.ways[self._host.peer_id].transmit(size)
                self._twin._deliver(arrival, bytes(view[:size]))
                view = view[size:]
            self._check_writable()
        except trio.Cancelled:
            self._reset_now()
            raise

    async def _window(self) -> int:
        """Wait until the peer takes more; returns how many bytes."""
        stall = trio.current_time() + self._host.limits.stall_timeout
        while True:
            self._check_writable()
            now = trio.current_time()
            while self._credits and self._credits[0][0] <= now:
                self._open_window += self._credits.popleft()[1]
            if self._open_window:
                return self._open_window
            if now >= stall:
                self._reset_now()
                raise PeerError(
                    f"Peer {self.peer.short} took nothing on {self.protocol} for "
                    f"{self._host.limits.stall_timeout:g} s."
                )
            coming = self._credits[0][0] if self._credits else float("inf")
            with trio.move_on_at(min(stall, coming)):
                await self._writable.park()

    def _blocked(self) -> bool:
        return self._host.network.blocked(self._host, self._peer_host)

    def _check(self) -> None:
        if self._failure is not None:
            raise PeerError(self._failure)

    def _check_writable(self) -> None:
        self._check()
        if self._closed:
            raise PeerError(f"The {self.protocol} stream to peer {self.peer.short} is closed.")

    async def close(self) -> None:
        if self._failure is None and not self._closed:
            self._closed = True
            arrival = self._connection.ways[self._host.peer_id].transmit(0)
            self._twin._deliver(arrival, b"")
            if self._twin._closed:
                self._connection.streams.discard(self)
                self._connection.streams.discard(self._twin)
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def reset(self) -> None:
        self._reset_now()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _reset_now(self) -> None:
        ended = f"The {self.protocol} stream to peer {{}} was reset."
        self.break_off(ended.format(self.peer.short))
        self._twin.break_off(ended.format(self._host.peer_id.short))
