"""Members that are not where we last knew them: the mesh is asked, in the background.

What others say of a peer can be old: it has moved, or nobody named an address at all. Whoever could
not reach a peer says so here and goes on with others; when the peer is found it is connected, which
is all that the next attempt needs.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Protocol

import structlog
import trio

from ..dht.peer_id import PeerId
from ..errors import MeshError, PeerError
from .transport.dialing import Backoff

log = structlog.get_logger(__name__)

_AT_ONCE = 4
_MOST_WAITING = 64
_WITHIN_SECS = 10.0
_PAUSE_SECS = 30.0
_LONGEST_PAUSE_SECS = 900.0


class _Dht(Protocol):
    async def find_peer(self, peer: PeerId) -> Sequence[str]: ...


class _Host(Protocol):
    def connected_peers(self) -> frozenset[PeerId]: ...
    async def connect(self, peer: PeerId) -> None: ...


class Seeker:
    """See the module; `run` is its one task.

    A peer is sought once at a time, for 10 s at most, and again only after a pause that doubles
    each time in vain: whom records name may not exist at all.
    """

    def __init__(self, host: _Host, dht: _Dht) -> None:
        self._host = host
        self._dht = dht
        self._sought: dict[PeerId, trio.Event] = {}
        self._backoff = Backoff(_PAUSE_SECS, _LONGEST_PAUSE_SECS, random.Random())
        self._send, self._receive = trio.open_memory_channel[PeerId](_MOST_WAITING)

    def unreachable(self, peer: PeerId) -> None:
        """`peer` does not answer at any address we have. Returns at once."""
        if peer in self._sought or peer in self._host.connected_peers():
            return
        try:
            self._backoff.check(peer)
            self._send.send_nowait(peer)
        except (PeerError, trio.WouldBlock):
            return
        self._sought[peer] = trio.Event()

    def seeks(self, peer: PeerId) -> bool:
        """Whether `peer` may be found soon."""
        return peer in self._sought

    async def sought(self, peers: Collection[PeerId]) -> None:
        """Wait, 10 s at most, until those of `peers` that are being sought were found or not."""
        with trio.move_on_after(_WITHIN_SECS):
            for peer in peers:
                if (over := self._sought.get(peer)) is not None:
                    await over.wait()

    async def run(self) -> None:
        """Seek until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(self._seek_in_turn)

    async def _seek_in_turn(self) -> None:
        async for peer in self._receive:
            try:
                await self._seek(peer)
            except Exception as error:  # task boundary: the next one may be found
                log.warning("peer_search_crashed", peer=str(peer), exc_info=True)
                self._backoff.failed(peer, repr(error))
            finally:
                self._sought.pop(peer).set()

    async def _seek(self, peer: PeerId) -> None:
        reason = f"Peer {peer.short} is nowhere to be found."
        with trio.move_on_after(_WITHIN_SECS):
            try:
                if await self._dht.find_peer(peer):
                    await self._host.connect(peer)
            except MeshError as error:
                reason = error.message
        if peer in self._host.connected_peers():
            self._backoff.clear(peer)
            log.info("peer_found", peer=str(peer))
        else:
            self._backoff.failed(peer, reason)
