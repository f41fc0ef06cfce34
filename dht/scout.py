"""Looks for itself: at peers only one member named, at members said to be silent, at lost ones."""

from __future__ import annotations

from collections.abc import Iterable

import structlog
import trio

from ..errors import MembershipError, PeerError
from .boundary import as_peer_error
from .budget import KeyBudget
from .context import DhtContext
from .gossip_wire import MAX_SUSPECTS
from .health import EVICT_AFTER
from .member_map import MemberMap
from .peer_id import PeerId

_PROBE_PAUSE = 1.0
_PROBE_AGE = 3.0
_CHECK_PAUSE = 2.0
_CHECKS_AT_ONCE = 4
_MISSING_TRIED = 0.25
_MISSED_FOR = 24 * 3600.0
_STRANGERS_PER_SECOND = 1.0

_log = structlog.get_logger("meshnode.dht")


class Scout:
    """Asks peers, so that what others say of them need not be believed.

    What a peer answers reaches the map by way of `Contacts`. `strangers` bounds, per teller, how
    many unknown or silent peers it may name.
    """

    def __init__(self, context: DhtContext, members: MemberMap, capacity: int) -> None:
        self.strangers = KeyBudget(_STRANGERS_PER_SECOND, float(capacity))
        self.stranger_came = trio.Event()
        """Set when the map has a pending peer; replaced when it has none."""
        self._context = context
        self._map = members
        self._checking: set[PeerId] = set()
        self._checks = trio.CapacityLimiter(_CHECKS_AT_ONCE)

    async def keep_probing(self) -> None:
        """Meet, one after the other, peers that only one member has named."""
        rng = self._context.rng
        while True:
            await self.stranger_came.wait()
            await trio.sleep(_PROBE_PAUSE * rng.uniform(0.5, 1.5))
            try:
                await self._probe()
            except Exception as error:  # noqa: BLE001 - task boundary: the next one may do better
                self._context.counters.add("upkeep_crashes")
                _log.warning("dht_probe_failed", error=str(error), exc_info=True)

    async def _probe(self) -> None:
        now = trio.current_time()
        if not self._map.pending(now, 0):
            self.stranger_came = trio.Event()
            return
        due = self._worth_asking(self._map.pending(now, _PROBE_AGE))
        if due:
            self._context.counters.add("strangers_probed")
            await self.ping(self._context.rng.choice(due))

    def missing(self) -> PeerId | None:
        """Now and then a member that fell silent: after a split, it leads to all others."""
        missing = self._worth_asking(self._map.missing(trio.current_time(), _MISSED_FOR))
        if not missing or self._context.rng.random() >= _MISSING_TRIED:
            return None
        self._context.counters.add("missing_tried")
        return self._context.rng.choice(missing)

    def check(self, teller: PeerId, suspects: Iterable[PeerId]) -> None:
        """Look, in the background, at members that `teller` finds silent."""
        now = trio.current_time()
        for peer in suspects:
            if peer not in self._map.members or peer in self._checking or peer == teller:
                continue
            if len(self._checking) < MAX_SUSPECTS and not self.strangers.take(teller, 1, now):
                self._checking.add(peer)
                self._context.nursery.start_soon(self._check, peer)

    async def _check(self, peer: PeerId) -> None:
        """Ask a member until it answers, or is lost to us too."""
        try:
            for _ in range(EVICT_AFTER):
                await trio.sleep(_CHECK_PAUSE * self._context.rng.uniform(0.5, 1.5))
                async with self._checks:
                    if peer not in self._map.members or await self.ping(peer):
                        return
        except Exception as error:  # noqa: BLE001 - task boundary: one peer must not end the DHT
            as_peer_error(error, peer, self._context.counters)
        finally:
            self._checking.discard(peer)

    async def ping(self, peer: PeerId) -> bool:
        try:
            await self._context.client.ping(peer)
        except (PeerError, MembershipError):
            return False
        return True

    def _worth_asking(self, peers: Iterable[PeerId]) -> list[PeerId]:
        return sorted(peer for peer in peers if not self._context.contacts.is_down(peer))
