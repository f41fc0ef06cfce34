"""Storing values on the peers responsible for them: manifests, names, notices.

In a mesh whose members are not all known, whom to give a value to is found out by a walk over
disjoint paths: a member that misleads one of them cannot keep a value from its place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import trio

from ..errors import MembershipError, PeerError, PeerRefusedError
from .boundary import as_peer_error
from .client import OUTDATED
from .context import DhtContext
from .kad_wire import PeerAddresses
from .keyspace import PeerIndex, position
from .locator import Locator
from .peer_id import PeerId
from .publisher import PeerFailure
from .query import LookupResult, Plan, Queries
from .trace import QueryReport, Trace, Traces

_PASSES = 3


@dataclass(frozen=True, slots=True)
class StoreReport:
    """The peers besides ourselves that keep a value, and those that failed to."""

    stored_on: tuple[PeerId, ...]
    failed: tuple[PeerFailure, ...]
    query: QueryReport


def wider_circle(locator: Locator, target: int, k: int, nearest: Iterable[PeerId]) -> list[PeerId]:
    """Who keeps a value besides its k nearest peers: somebody, if these crowd around its key.

    Args:
        nearest: found by a walk; the routing table alone need not know them.
    """
    index = PeerIndex({*locator.everyone(), *nearest})
    return index.responsible(target, k, locator.mesh_size)[k:]


class ValuePublisher:
    """Gives values to the k nearest live peers."""

    def __init__(
        self, context: DhtContext, traces: Traces, queries: Queries, locator: Locator
    ) -> None:
        self._own = context.own
        self._client = context.client
        self._settings = context.settings
        self._counters = context.counters
        self._traces = traces
        self._queries = queries
        self._locator = locator

    async def spread(
        self, kind: str, key: bytes, value: bytes, *, upkeep: bool = False
    ) -> StoreReport:
        """Store `value` on the k nearest peers; on the next nearest while too few took it.

        `upkeep`: a repetition, for which what is known of the neighbourhood of `key` will do.
        """
        trace = self._traces.begin(kind, key, upkeep=upkeep)
        stored: dict[PeerId, None] = {}
        failed = dict.fromkeys(self._locator.down(), "not answering lately")
        tried: set[PeerId] = {self._own}
        hops, paths = 0, 1
        near: list[PeerId] = []
        if not upkeep and not self._locator.knows_everybody:
            near, hops, paths = await self._walk(kind, key)
            near += wider_circle(self._locator, position(key), self._settings.k, near)
        try:
            for number in range(_PASSES):
                fresh = [peer for peer in near if peer not in tried]
                if number or not fresh:
                    fresh = await self._next_nearest(key, tried, first=not number)
                tried.update(fresh)
                async with trio.open_nursery() as nursery:
                    for peer in fresh:
                        nursery.start_soon(self._put, peer, key, value, stored, failed, trace)
                if len(stored) >= self._settings.enough_holders:
                    break
        finally:
            report = trace.close(found=len(stored), hops=hops, paths=paths)
        failures = tuple(PeerFailure(peer, reason) for peer, reason in failed.items())
        return StoreReport(tuple(stored), failures, report)

    async def give(self, peer: PeerId, key: bytes, value: bytes) -> bool:
        """Have one peer keep a value; whether it does, or has a newer one."""
        try:
            await self._client.put_value(peer, key, value)
        except PeerRefusedError as refusal:
            return refusal.reason == OUTDATED
        except (PeerError, MembershipError):
            return False
        return True

    async def _walk(self, kind: str, key: bytes) -> tuple[list[PeerId], int, int]:
        async def ask(peer: PeerId) -> tuple[None, tuple[PeerAddresses, ...]]:
            return None, await self._client.find_node(peer, key)

        plan = Plan(f"{kind}: whom", paths=self._settings.disjoint_paths)
        result: LookupResult[None] = await self._queries.run(key, ask, plan)
        return result.closest, result.hops, result.report.paths

    async def _next_nearest(self, key: bytes, tried: set[PeerId], *, first: bool) -> list[PeerId]:
        target, k = position(key), self._settings.k
        near = (await self._locator.locate([target]))[target]
        if first:
            return [peer for peer in near if peer not in tried]
        wider = self._locator.index().closest(target, 2 * k)
        return [peer for peer in wider if peer not in tried][: 2 * self._settings.enough_holders]

    async def _put(
        self,
        peer: PeerId,
        key: bytes,
        value: bytes,
        stored: dict[PeerId, None],
        failed: dict[PeerId, str],
        trace: Trace,
    ) -> None:
        try:
            with trace.asking(peer) as request:
                await self._client.put_value(peer, key, value)
                request.end("stored")
        except Exception as error:  # noqa: BLE001 - task boundary: one peer must not end the rest
            failed[peer] = as_peer_error(error, peer, self._counters).message
        else:
            stored[peer] = None
            failed.pop(peer, None)
