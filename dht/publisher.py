"""Telling the mesh which chunks we hold, and which no longer.

Keys are grouped by the peers responsible for them: one request per peer carries all of its keys. A
key that too few peers took, because they failed or were full, is offered to the next nearest; and
if that was in vain, soon again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from ..errors import UsageError
from .boundary import as_peer_error
from .context import DhtContext
from .keyspace import check_digest, chunk_key, chunk_position
from .locator import Locator
from .patience import Patience
from .peer_id import PeerId
from .records import ChunkRecords
from .records_wire import Verdict
from .settings import MAX_KEYS_PER_MESSAGE
from .trace import QueryReport, Request, Trace, Traces
from .untold import Untold

_PARALLEL_PEERS = 64
_PARALLEL_SPREADS = 4
_KEYS_AT_ONCE = 32_768
_PASSES = 3


@dataclass(frozen=True, slots=True)
class PeerFailure:
    """A peer that was asked (or skipped as known to be down), and why it did not help."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class AnnounceReport:
    """What became of an announcement.

    `stored` maps each digest to how many peers besides ourselves took its record; `refused` counts
    keys by the reason a peer gave; `pending` keys were taken by too few, and are told again soon.
    """

    stored: Mapping[bytes, int]
    asked: tuple[PeerId, ...]
    failed: tuple[PeerFailure, ...]
    refused: Mapping[str, int]
    pending: int
    queries: tuple[QueryReport, ...]
    """One for each 32,768 keys."""

    @property
    def weakest(self) -> int:
        """Storers of the key that fewest peers took; 0 when nothing was announced."""
        return min(self.stored.values(), default=0)


@dataclass(slots=True)
class Tally:
    """Collects an `AnnounceReport`."""

    stored: dict[bytes, int]
    asked: dict[PeerId, None] = field(default_factory=dict)
    failed: dict[PeerId, str] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    told: set[tuple[PeerId, bytes]] = field(default_factory=set)
    queries: list[QueryReport] = field(default_factory=list)

    def report(self, pending: int) -> AnnounceReport:
        failed = tuple(PeerFailure(peer, reason) for peer, reason in self.failed.items())
        return AnnounceReport(
            self.stored,
            tuple(self.asked),
            failed,
            dict(self.refused),
            pending,
            tuple(self.queries),
        )


class Publisher:
    """Our own chunk records, and who has been told of them."""

    def __init__(
        self, context: DhtContext, traces: Traces, locator: Locator, chunks: ChunkRecords
    ) -> None:
        self._own = context.own
        self._client = context.client
        self._settings = context.settings
        self._counters = context.counters
        self._wall_clock = context.wall_clock
        self._traces = traces
        self._locator = locator
        self._chunks = chunks
        self._patience = Patience(context.counters)
        self._spreads = trio.CapacityLimiter(_PARALLEL_SPREADS)
        self._under_way: set[bytes] = set()
        self.untold = Untold(context.rows)

    # --- announcing ---------------------------------------------------------------------------

    def hold(self, chunks: Iterable[tuple[bytes, int]]) -> dict[bytes, int]:
        """Remember that we hold `chunks` (digest, stored size), and will say so until withdrawn.

        Raises:
            UsageError: a digest or a size that cannot be.
        """
        held = dict(chunks)
        for digest, size in held.items():
            check_digest(digest)
            if not 0 <= size < 2**32:
                raise UsageError(f"A chunk of {size} bytes cannot be announced.")
        for digest, size in held.items():
            self._chunks.hold(digest, size)
        self.untold.add(held, self._wall_clock())
        return held

    async def spread(self, held: Mapping[bytes, int], *, upkeep: bool = False) -> AnnounceReport:
        """Tell the peers responsible for the keys of `held` that we hold them.

        A few thousand keys at a time, and few callers at a time: whoever has much to tell waits.
        """
        tally = Tally(dict.fromkeys(held, 0))
        keys = list(held)
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            async with self._spreads:
                batch = keys[start : start + _KEYS_AT_ONCE]
                self._under_way.update(batch)
                try:
                    await self._spread(batch, held, tally, upkeep=upkeep)
                finally:
                    self._under_way.difference_update(batch)
        self._counters.add("keys_announced", len(held))
        return tally.report(sum(1 for digest in held if digest in self.untold))

    async def retell(self, count: int) -> bool:
        """Announce again up to `count` keys that too few peers know of; whether any was told."""
        digests = self.untold.oldest(count, without=self._under_way)
        sizes = self._chunks.own_sizes(digests)
        held = {d: size for d, size in zip(digests, sizes, strict=True) if size is not None}
        self.untold.told(digest for digest in digests if digest not in held)
        if not held:
            return True
        before = len(self.untold)
        await self.spread(held, upkeep=True)
        self._counters.add("keys_retold", len(held))
        return len(self.untold) < before

    async def _spread(
        self, keys: Sequence[bytes], held: Mapping[bytes, int], tally: Tally, *, upkeep: bool
    ) -> None:
        trace = self._traces.begin("announce", chunk_key(keys[0]), len(keys), upkeep=upkeep)
        try:
            for peer in self._locator.down():
                tally.failed[peer] = "not answering lately"
            todo = list(keys)
            for number in range(_PASSES):
                groups = await self._grouped(todo, held, tally, first=number == 0)
                if not groups:
                    break
                await self._announce_to_all(groups, tally, trace)
                todo = [d for d in todo if tally.stored[d] < self._settings.enough_holders]
        finally:
            self._strike_off(keys, tally)
            found = sum(1 for digest in keys if tally.stored[digest])
            tally.queries.append(trace.close(found=found))

    async def _grouped(
        self, todo: Sequence[bytes], held: Mapping[bytes, int], tally: Tally, *, first: bool
    ) -> dict[PeerId, list[tuple[bytes, int]]]:
        """Whom to tell what: the k nearest, later on the next nearest that were not asked yet."""
        k, more = self._settings.k, 2 * self._settings.enough_holders
        position_of = {digest: chunk_position(digest) for digest in todo}
        near = await self._locator.locate(position_of.values())
        index = None if first else self._locator.index()
        groups: dict[PeerId, list[tuple[bytes, int]]] = {}
        for digest, position in position_of.items():
            peers = near[position] if index is None else index.closest(position, 2 * k)
            fresh = [p for p in peers if p != self._own and (p, digest) not in tally.told]
            for peer in fresh if first else fresh[:more]:
                groups.setdefault(peer, []).append((digest, held[digest]))
        return groups

    def _strike_off(self, keys: Sequence[bytes], tally: Tally) -> None:
        """What enough peers took needs no further telling: as many as there are, if few."""
        others = len(self._locator.everyone())
        goal = min(self._settings.enough_holders, others)
        if goal:
            self.untold.told(digest for digest in keys if tally.stored[digest] >= goal)

    async def _announce_to_all(
        self, groups: Mapping[PeerId, Sequence[tuple[bytes, int]]], tally: Tally, trace: Trace
    ) -> None:
        limiter = trio.CapacityLimiter(_PARALLEL_PEERS)

        async def tell(peer: PeerId, chunks: Sequence[tuple[bytes, int]]) -> None:
            async with limiter:
                await self.announce_to(peer, chunks, tally, trace)

        async with trio.open_nursery() as nursery:
            for peer, chunks in groups.items():
                nursery.start_soon(tell, peer, chunks)

    async def announce_to(
        self, peer: PeerId, chunks: Sequence[tuple[bytes, int]], tally: Tally, trace: Trace
    ) -> None:
        """All of one peer's keys, batch after batch; the first failure ends it."""
        tally.asked[peer] = None
        tally.told.update((peer, digest) for digest, _ in chunks)
        for start in range(0, len(chunks), MAX_KEYS_PER_MESSAGE):
            # What was let go meanwhile must not be announced after its withdrawal.
            batch = [
                chunk
                for chunk in chunks[start : start + MAX_KEYS_PER_MESSAGE]
                if self._chunks.holds(chunk[0])
            ]
            if not batch:
                continue
            try:
                with trace.asking(peer, keys=len(batch)) as request:
                    await self._announce_batch(peer, batch, tally, request)
            except Exception as error:  # noqa: BLE001 - task boundary: one peer must not end the rest
                tally.failed[peer] = as_peer_error(error, peer, self._counters).message
                return

    async def _announce_batch(
        self, peer: PeerId, batch: Sequence[tuple[bytes, int]], tally: Tally, request: Request
    ) -> None:
        zone, ttl = self._settings.zone, int(self._settings.record_ttl)
        ask = partial(self._client.announce, peer, zone, ttl, batch)
        verdicts = await self._patience.ask(peer, ask)
        refused: Counter[str] = Counter()
        for (digest, _), verdict in zip(batch, verdicts, strict=True):
            if verdict is Verdict.STORED:
                tally.stored[digest] += 1
            else:
                refused[verdict.name.lower()] += 1
        tally.refused.update(refused)
        reasons = ", ".join(f"{count} {reason}" for reason, count in refused.items())
        request.end("refused" if reasons else "stored", reasons)

    # --- withdrawing --------------------------------------------------------------------------

    def let_go(self, digests: Sequence[bytes]) -> None:
        """Stop holding and repeating these chunks; nobody is told yet."""
        self._chunks.let_go(digests)
        self.untold.told(digests)

    async def tell_withdrawn(self, digests: Sequence[bytes]) -> None:
        """Tell the peers that were told of `digests` that we hold them no longer.

        What we hold again by now is left out: its new announcement may be under way.
        """
        for digest in digests:
            check_digest(digest)
        position_of = {d: chunk_position(d) for d in digests if not self._chunks.holds(d)}
        near = await self._locator.locate(position_of.values())
        groups: dict[PeerId, list[bytes]] = {}
        for digest, position in position_of.items():
            for peer in near[position]:
                if peer != self._own:
                    groups.setdefault(peer, []).append(digest)
        async with trio.open_nursery() as nursery:
            for peer, keys in groups.items():
                nursery.start_soon(self._withdraw_from, peer, keys)

    async def _withdraw_from(self, peer: PeerId, digests: Sequence[bytes]) -> None:
        for start in range(0, len(digests), MAX_KEYS_PER_MESSAGE):
            batch = digests[start : start + MAX_KEYS_PER_MESSAGE]
            gone = [digest for digest in batch if not self._chunks.holds(digest)]
            if not gone:
                continue
            try:
                await self._patience.ask(peer, partial(self._client.withdraw, peer, gone))
            except Exception as error:  # noqa: BLE001 - task boundary: one peer must not end the rest
                as_peer_error(error, peer, self._counters)
                # Its records of ours expire by themselves.
                self._counters.add("withdrawals_failed")
                return
