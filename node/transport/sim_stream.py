"""One simulated connection and its streams, on trio's clock and without a task of their own.

Bytes carry the time at which they arrive; a reader sleeps until then. So an idle connection costs
nothing, and a thousand hosts fit in one process.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import ceil, inf
from typing import TYPE_CHECKING, Protocol

import trio

from ...dht.host import Buffer
from ...dht.peer_id import PeerId
from ...errors import PeerError
from .idle_choice import Standing

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
    bandwidth: float = inf
    jitter: float = 0.0
    window: int = 256 * 1024

    @property
    def is_steady(self) -> bool:
        """Whether every packet takes the same time, whatever else is under way."""
        return self.bandwidth == inf and not self.jitter


class SimDirection(Protocol):
    """One way along a link."""

    @property
    def link(self) -> SimLink: ...
    def transmit(self, size: int) -> float:
        """Queue `size` bytes now; returns when the last of them arrives (in order)."""
        ...

    def delay(self) -> float:
        """Time for one small packet, past what is queued."""
        ...


@dataclass(frozen=True, slots=True)
class SteadyDirection:
    """One way along a steady link: no state, so all directions of such a link are one object."""

    link: SimLink

    def transmit(self, size: int) -> float:
        return trio.current_time() + self.link.latency

    def delay(self) -> float:
        return self.link.latency


@dataclass(slots=True, eq=False)
class QueuedDirection:
    """One way along a link with a bandwidth or jitter: a queue that all its streams share."""

    link: SimLink
    rng: random.Random
    free_at: float = 0.0
    last_arrival: float = 0.0

    def transmit(self, size: int) -> float:
        now = trio.current_time()
        self.free_at = max(now, self.free_at) + size / self.link.bandwidth
        arrival = self.free_at + self.link.latency + self.rng.random() * self.link.jitter
        self.last_arrival = max(arrival, self.last_arrival)
        return self.last_arrival

    def delay(self) -> float:
        queued = max(0.0, self.free_at - trio.current_time())
        return queued + self.link.latency + self.rng.random() * self.link.jitter


class _Wakeable(Protocol):
    def wake(self) -> None: ...


class _Sleeper:
    """A task that waits for a time."""

    __slots__ = ("_task",)

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self._task: trio.lowlevel.Task | None = task

    def wake(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def forget(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


class Postman:
    """Wakes whoever waits for an arrival: one timer for the whole network.

    A timer of trio for each waiting reader costs several times more than all else a simulated
    packet needs. With a `tick`, arrivals are rounded up to multiples of it, so that those of many
    hosts share one step of the clock.
    """

    def __init__(self, tick: float) -> None:
        self._tick = tick
        self._due: list[tuple[float, int, _Wakeable]] = []
        self._number = count()
        self._round = trio.CancelScope()

    def rounded(self, at: float) -> float:
        """When what arrives at `at` is delivered."""
        return ceil(at / self._tick - 1e-6) * self._tick if self._tick else at

    def wake_at(self, at: float, waiting: _Wakeable) -> None:
        """Call `waiting.wake()` at `at`, a time of trio's clock."""
        heappush(self._due, (at, next(self._number), waiting))
        if at < self._round.deadline:
            self._round.deadline = at

    async def sleep_until(self, at: float) -> None:
        """As trio's, for times on the way."""
        sleeper = _Sleeper(trio.lowlevel.current_task())
        self.wake_at(at, sleeper)
        await trio.lowlevel.wait_task_rescheduled(sleeper.forget)

    async def run(self) -> None:
        """Deliver until cancelled."""
        due = self._due
        while True:
            now = trio.current_time()
            while due and due[0][0] <= now:
                heappop(due)[2].wake()
            with trio.CancelScope(deadline=due[0][0] if due else inf) as self._round:
                await trio.sleep_forever()


@dataclass(slots=True, eq=False)
class SimConnection:
    """A live connection between two hosts."""

    ends: tuple[SimHost, SimHost]
    ways: dict[PeerId, SimDirection]
    """By sender."""
    streams: set[SimStream] = field(default_factory=set)
    alive: bool = True
    used_at: float = 0.0
    """When a stream was last asked for, or ended."""
    _changed: trio.Event | None = None

    def __post_init__(self) -> None:
        self.used_at = trio.current_time()

    def standing(self, way_back: bool) -> Standing[SimConnection]:
        """For the choice of idle connections, seen from the end that could dial again or not."""
        idle = None if self.streams else trio.current_time() - self.used_at
        return Standing(self, idle, way_back=way_back)

    def ended(self, stream: SimStream) -> None:
        """One end of a stream is over."""
        self.streams.discard(stream)
        self.used_at = trio.current_time()

    def other(self, host: SimHost) -> SimHost:
        return self.ends[1] if self.ends[0] is host else self.ends[0]

    def notify(self) -> None:
        """The connection broke, or traffic on it can flow again."""
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()
        for stream in self.streams:
            stream.wake()

    async def quick_round_trip(self, asking: SimHost) -> bool:
        """Try `round_trip` without a deadline: False when something was in the way."""
        self.used_at = trio.current_time()
        if not self._flows():
            return False
        postman = asking.network.postman
        wait = sum(way.delay() for way in self.ways.values())
        await postman.sleep_until(postman.rounded(trio.current_time() + wait))
        return self._flows()

    def _flows(self) -> bool:
        return self.alive and not self.ends[0].network.blocked(*self.ends)

    async def round_trip(self, asking: SimHost) -> None:
        """The time a question and its answer take; waits while the link is blocked.

        Raises:
            PeerError: the connection broke meanwhile.
        """
        other, network = self.other(asking), asking.network
        wait = self.ways[asking.peer_id].delay() + self.ways[other.peer_id].delay()
        until = network.postman.rounded(trio.current_time() + wait)
        while self.alive:
            if network.blocked(asking, other):
                if self._changed is None:
                    self._changed = trio.Event()
                await self._changed.wait()
            elif trio.current_time() >= until:
                return
            else:
                await network.postman.sleep_until(until)
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
        "_reader",
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
        self._reader: trio.lowlevel.Task | None = None
        self._writable: trio.lowlevel.ParkingLot | None = None
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
        """Something may have arrived, or never will: let the reader and the writer look."""
        reader, self._reader = self._reader, None
        if reader is not None:
            trio.lowlevel.reschedule(reader)
        if self._writable is not None:
            self._writable.unpark_all()

    def _deliver(self, arrival: float, data: bytes) -> None:
        """Put bytes (or the end of the stream) under way to this end's reader."""
        arrival = self._host.network.postman.rounded(arrival)
        if self._reader is not None and not self._inbox:
            self._host.network.postman.wake_at(arrival, self)
        self._inbox.append((arrival, data))

    def break_off(self, why: str) -> None:
        """Fail this end: whatever it reads or writes from now on is a PeerError."""
        if self._failure is None:
            self._failure = why
        self._inbox.clear()
        self._connection.ended(self)
        self.wake()

    async def read_some(self, max_bytes: int = 65536) -> bytes:
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        try:
            if not self._host.is_running:
                await self._host.running()
            # Cancellable, but no turn for others: this is memory, and turns are most of its cost.
            await trio.lowlevel.checkpoint_if_cancelled()
            while True:
                self._check()
                if self._inbox and not self._blocked():
                    arrival = self._inbox[0][0]
                    if arrival <= trio.current_time():
                        return self._pop(max_bytes)
                    self._host.network.postman.wake_at(arrival, self)
                self._reader = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._stop_reading)
        except trio.Cancelled:
            self._reset_now()
            raise

    def _stop_reading(self, _: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

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
        if self._twin._writable is not None:
            self._twin._writable.unpark_all()
        return data

    async def write(self, data: Buffer) -> None:
        try:
            if not self._host.is_running:
                await self._host.running()
            await trio.lowlevel.checkpoint_if_cancelled()
            view = memoryview(data).cast("B")
            while view:
                room = await self._window()
                size = min(room, _SEGMENT, len(view))
                self._open_window -= size
                self._host.bytes_sent += size
                arrival = self._connection.ways[self._host.peer_id].transmit(size)
                self._twin._deliver(arrival, bytes(view[:size]))
                view = view[size:]
            self._check_writable()
        except trio.Cancelled:
            self._reset_now()
            raise

    async def _window(self) -> int:
        """Wait until the peer takes more; returns how many bytes."""
        stall = inf
        while True:
            self._check_writable()
            now = trio.current_time()
            while self._credits and self._credits[0][0] <= now:
                self._open_window += self._credits.popleft()[1]
            if self._open_window:
                return self._open_window
            stall = min(stall, now + self._host.limits.stall_timeout)
            if now >= stall:
                self._reset_now()
                raise PeerError(
                    f"Peer {self.peer.short} took nothing on {self.protocol} for "
                    f"{self._host.limits.stall_timeout:g} s."
                )
            coming = self._credits[0][0] if self._credits else inf
            if self._writable is None:
                self._writable = trio.lowlevel.ParkingLot()
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
                self._connection.ended(self)
                self._connection.ended(self._twin)
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def reset(self) -> None:
        self._reset_now()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _reset_now(self) -> None:
        ended = f"The {self.protocol} stream to peer {{}} was reset."
        self.break_off(ended.format(self.peer.short))
        self._twin.break_off(ended.format(self._host.peer_id.short))
