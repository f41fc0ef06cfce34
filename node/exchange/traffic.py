"""All bodies that leave and enter this node: one place where they wait for limits and lanes.

What leaves is shaped as it is written, slice by slice. What enters is shaped by asking for less:
bytes that were asked for come as fast as the sender likes and fill windows of megabytes; reading
them slowly would spare the line nothing and let the sender run into its stall deadline.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import trio

from ...dht.peer_id import PeerId
from ..transport.owned_nursery import open_owned_nursery
from .lanes import Lane
from .settings import PIECE_BYTES
from .shaper import Shaper, Ticket

_PIECE_SECS = 0.1
_LEAST_PIECE = 64 * 1024
_ASKED_SECS = 0.5
_ASKED_BYTES = 1024 * 1024
_SENDING_SECS = 4.0
_SENDING_SECS_BELOW = 1.0


@dataclass(frozen=True, slots=True)
class BandwidthLimits:
    """Bytes of bodies per second; 0: no limit."""

    upload: int = 0
    download: int = 0
    per_peer_upload: int = 0
    per_peer_download: int = 0


class Pipe:
    """A `Shaper` on trio's time: those who have to wait are tasks."""

    def __init__(self, shaper: Shaper) -> None:
        self.shaper = shaper
        self._round = trio.CancelScope()

    async def run(self) -> None:
        """Grant what is granted later; until cancelled."""
        while True:
            with trio.CancelScope() as self._round:
                self._round.deadline = self.shaper.grant(trio.current_time())
                await trio.sleep_forever()

    def _changed(self) -> None:
        if self.shaper.waiting:
            self._round.deadline = self.shaper.grant(trio.current_time())

    def set_limits(self, total: float, per_peer: float) -> None:
        self.shaper.set_limits(total, per_peer, trio.current_time())
        self._changed()

    @property
    def rate(self) -> float:
        """Bytes per second just now."""
        return self.shaper.meter.rate(trio.current_time())

    @property
    def total(self) -> int:
        """Bytes since the start."""
        return self.shaper.meter.total

    @property
    def best(self) -> float:
        """What the line is known to bear, as far as the limit allows it. Bytes per second."""
        return min(self.shaper.meter.best(trio.current_time()), self.shaper.limit)

    def moved(self, size: int) -> None:
        """`size` bytes came or went."""
        self.shaper.meter.add(size, trio.current_time())

    def charge(self, peer: PeerId, size: int) -> None:
        """`size` bytes came or go that waited for nothing; negative: fewer than were granted."""
        self.shaper.charge(peer, size, trio.current_time())

    @contextmanager
    def body(self, lane: Lane) -> Iterator[None]:
        """A body is on the way, waiting or not: lower lanes yield to it."""
        self.shaper.began(lane)
        try:
            yield
        finally:
            self.ended(lane)

    def ended(self, lane: Lane) -> None:
        """A body is on the way no longer."""
        self.shaper.ended(lane, trio.current_time())
        self._changed()

    async def invite(self, peer: PeerId, lane: Lane, size: int) -> Invitation:
        """Wait until a body of `size` bytes may be asked for or offered."""
        self.shaper.began(lane)
        try:
            if size and not self.take_now(lane, size):
                await self.take(peer, lane, size)
        except BaseException:
            self.ended(lane)
            raise
        return Invitation(self, peer, lane, size)

    def take_now(self, lane: Lane, size: int) -> int:
        """As many bytes as may move without waiting; 0: see `take`."""
        # The first lane asks no clock.
        return self.shaper.take_now(lane, size, trio.current_time() if lane else 0.0)

    async def take(self, peer: PeerId, lane: Lane, size: int) -> int:
        """Wait until some of `size` bytes may move; returns how many."""
        granted = trio.Event()
        ticket = Ticket(peer, lane, size, granted.set)
        self.shaper.add(ticket)
        self._changed()
        try:
            await granted.wait()
        except BaseException:
            if ticket.granted is None:
                self.shaper.remove(ticket)
            else:  # in the same instant as the cancellation
                self.charge(peer, -ticket.granted)
                self.landed(lane, ticket.granted)
            raise
        assert ticket.granted is not None
        return ticket.granted

    def landed(self, lane: Lane, size: int) -> None:
        """Of a pipe with a cap: `size` granted bytes are in flight no longer."""
        self.shaper.landed(lane, size)
        self._changed()

    @property
    def in_flight(self) -> int:
        """Bytes granted and not landed, and bytes that wait; of a pipe with a cap."""
        return self.shaper.in_flight

    def backlog(self, lane: Lane) -> float:
        """Seconds that one more body would wait for its first slice."""
        return self.shaper.backlog(lane, trio.current_time())

    def seconds(self, size: int) -> float:
        """How long `size` bytes take at the limit; 0.0 without one."""
        limit = min(self.shaper.limit, self.shaper.peer_limit)
        return size / limit if limit < math.inf else 0.0


class Invitation:
    """Bytes that a peer may send us, or expects of us, until it is `over`."""

    __slots__ = ("_lane", "_peer", "_pipe", "_size")

    def __init__(self, pipe: Pipe, peer: PeerId, lane: Lane, size: int) -> None:
        self._pipe: Pipe | None = pipe
        self._peer = peer
        self._lane = lane
        self._size = size

    def over(self, moved: int) -> None:
        """Nothing more comes; `moved` bytes did. Further calls do nothing."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.charge(self._peer, moved - self._size)
            pipe.ended(self._lane)
            pipe.landed(self._lane, self._size)


class Traffic:
    """See the module. `open_traffic` makes one and lives with it."""

    def __init__(self) -> None:
        now = trio.current_time()
        self.limits = BandwidthLimits()
        self.up = Pipe(Shaper(now, slice_bytes=PIECE_BYTES))
        """Bodies that leave."""
        self.down = Pipe(Shaper(now, whole=True, cap=self._asked, slice_bytes=PIECE_BYTES))
        """Bodies that are asked for."""
        self.offers = Pipe(
            Shaper(now, whole=True, cap=self._sending, slice_bytes=PIECE_BYTES, lanes=False)
        )
        """Bodies that peers may expect from us: no more than `up` can carry in good time, for they
        do not wait for ever."""

    def set_limits(self, limits: BandwidthLimits) -> None:
        """From now on, also for what is under way."""
        self.limits = limits
        self.up.set_limits(limits.upload, limits.per_peer_upload)
        self.down.set_limits(limits.download, limits.per_peer_download)
        self.offers.set_limits(0, 0)  # its cap depends on ours

    def piece(self) -> int:
        """The most to ask for at once, so that a limited line stays smooth; 0: anything."""
        limit = min(self.down.shaper.limit, self.down.shaper.peer_limit)
        return max(int(limit * _PIECE_SECS), _LEAST_PIECE) if limit < math.inf else 0

    def _asked(self, lane: Lane, now: float) -> float:
        """What was asked for cannot be held back any more, so lower lanes ask for little ahead."""
        if not lane.yields:
            return math.inf
        bears = min(self.down.shaper.meter.best(now), self.down.shaper.limit)
        return max(_ASKED_SECS * bears, float(_ASKED_BYTES))

    def _sending(self, lane: Lane, now: float) -> float:
        shaper = self.up.shaper
        if not lane.yields:
            return shaper.limit * _SENDING_SECS
        return min(shaper.meter.best(now), shaper.limit) * _SENDING_SECS_BELOW


@asynccontextmanager
async def open_traffic(limits: BandwidthLimits | None = None) -> AsyncIterator[Traffic]:
    """Traffic that is shaped for the length of the block."""
    traffic = Traffic()
    traffic.set_limits(limits or BandwidthLimits())
    async with open_owned_nursery() as nursery:
        for pipe in (traffic.up, traffic.down, traffic.offers):
            nursery.start_soon(pipe.run)
        yield traffic
