"""Who is in the mesh right now: keeps connections to known peers and knows what each offers.

In a mesh of known machines a put needs no lookup to find places for its chunks: the members are
connected already. Of a larger one some are: as many as may be idle, within `_FEWEST` and `_MOST`.
These are asked now and then what they offer, which keeps their connections in use; all other
connections end when nobody uses them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from ..dht.host import ConnectionEvent, Host
from ..dht.peer_id import PeerId
from ..errors import MeshError
from .exchange import PeerInfo, PeerStatsTable
from .transfer import Member

log = structlog.get_logger(__name__)

REFRESH_SECS = 10.0
_INFO_AGE_SECS = 30.0
_ASK_TIMEOUT_SECS = 3.0
_ASK_BRIEFLY_SECS = 0.5
_FEWEST = 20
_MOST = 128
_AT_ONCE = 8


class _KnownPeer(Protocol):
    @property
    def peer(self) -> PeerId: ...


class _Dht(Protocol):
    def peers(self) -> Sequence[_KnownPeer]: ...


class _Exchange(Protocol):
    @property
    def stats(self) -> PeerStatsTable: ...
    async def info(self, peer: PeerId) -> PeerInfo: ...


@dataclass(frozen=True, slots=True)
class _Known:
    info: PeerInfo
    asked: float


class Members:
    """The live members; `run` is its one task.

    Args:
        idle_connections: so many the host keeps however idle they are.
    """

    def __init__(
        self, host: Host, dht: _Dht, exchange: _Exchange, idle_connections: int = _MOST
    ) -> None:
        self._host = host
        self._dht = dht
        self._exchange = exchange
        self._known: dict[PeerId, _Known] = {}
        self._most = min(_MOST, max(_FEWEST, idle_connections))

    def members(self) -> list[Member]:
        """Members with a live connection that have said what they offer."""
        connected = self._host.connected_peers()
        return [
            Member(peer, known.info.zone, known.info.available_bytes, self._throughput(peer))
            for peer, known in self._known.items()
            if peer in connected
        ]

    def known(self) -> set[PeerId]:
        """Everyone who may keep something for us, connected or not."""
        return {entry.peer for entry in self._dht.peers()} | self._host.connected_peers()

    def connected(self) -> frozenset[PeerId]:
        return self._host.connected_peers()

    def info(self, peer: PeerId) -> PeerInfo | None:
        """What `peer` last said of itself, if it ever did."""
        known = self._known.get(peer)
        return known.info if known else None

    async def refresh_connected(self) -> None:
        """Ask connected members that have not been asked lately; quick, because a put waits."""
        with trio.move_on_after(_ASK_BRIEFLY_SECS):
            await self._each(self._stale(), self._ask)

    async def refresh(self) -> None:
        """Connect to known peers that are not connected, then ask all for news."""
        connected = self._host.connected_peers()
        room = max(0, self._most - len(connected))
        absent = [e.peer for e in self._dht.peers() if e.peer not in connected]
        await self._each(absent[:room], self._connect)
        await self._each(self._stale(), self._ask)

    async def run(self) -> None:
        """Refresh until cancelled: on every new connection and every `REFRESH_SECS`."""
        async with self._host.events() as events:
            while True:
                await self.refresh()
                with trio.move_on_after(REFRESH_SECS):
                    self._note(await events.receive())
                    # A burst of events (a mesh that comes up) is worth one round, not one each.
                    with contextlib.suppress(trio.WouldBlock):
                        while True:
                            self._note(events.receive_nowait())

    def _note(self, event: ConnectionEvent) -> None:
        if event.peer not in self._host.connected_peers():
            self._known.pop(event.peer, None)

    def _stale(self) -> list[PeerId]:
        """Who is due to be asked, of the members that are kept connected."""
        now = trio.current_time()
        connected = self._host.connected_peers()
        kept = [peer for peer in self._known if peer in connected]
        due = [peer for peer in kept if now - self._known[peer].asked > _INFO_AGE_SECS]
        room = max(0, self._most - len(kept))
        return due + sorted(connected.difference(kept))[:room]

    async def _each(self, peers: Sequence[PeerId], work: _Work) -> None:
        limit = trio.CapacityLimiter(_AT_ONCE)

        async def one(peer: PeerId) -> None:
            async with limit:
                await work(peer)

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(one, peer)

    async def _connect(self, peer: PeerId) -> None:
        try:
            await self._host.connect(peer)
        except MeshError as error:
            log.debug("member_unreachable", peer=peer.short, error=str(error))

    async def _ask(self, peer: PeerId) -> None:
        try:
            with trio.fail_after(_ASK_TIMEOUT_SECS):
                info = await self._exchange.info(peer)
        except (MeshError, trio.TooSlowError) as error:
            log.debug("member_silent", peer=peer.short, error=repr(error))
            return
        self._known[peer] = _Known(info, trio.current_time())

    def _throughput(self, peer: PeerId) -> float:
        """Bytes per second, from how long a mebibyte is expected to take."""
        seconds = self._exchange.stats.expected_seconds(peer, 1 << 20)
        return (1 << 20) / seconds if 0 < seconds < math.inf else 0.0


class _Work(Protocol):
    async def __call__(self, peer: PeerId, /) -> None: ...
