"""Telling the mesh which chunks we hold, and which no longer.

Keys are grouped by the peers responsible for them: one request per peer carries all of its keys. A
key that too few peers took, because they failed or were full, is offered to the next nearest; and
if that was in vain, soon again. An announcement is over when most of the peers responsible for each
key have taken it; what is still under way to the others goes on, and counts, without its caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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
_ENOUGH = 8
_MAX_STRAGGLERS = 64


@dataclass(frozen=True, slots=True)
class PeerFailure:
    """A peer that was asked (or skipped as known to be down), and why it did not help."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class AnnounceReport:
    """What became of an announcement.

    `stored` maps each digest to how many peers besides ourselves had taken its record by then;
    `unanswered` peers were still being told. `refused` counts keys by the reason a peer gave;
    `pending` keys were taken by too few, and are told again soon.
    """

    stored: Mapping[bytes, int]
    asked: tuple[PeerId, ...]
    failed: tuple[PeerFailure, ...]
    refused: Mapping[str, int]
    pending: int
    queries: tuple[QueryReport, ...]
    """One for each 32,768 keys."""
    unanswered: tuple[PeerId, ...] = ()

    @property
    def weakest(self) -> int:
        """Storers of the key that fewest peers took; 0 when nothing was announced."""
        return min(self.stored.values(), default=0)


@dataclass(slots=True)
class Tally:
    """Collects an `AnnounceReport`. `lacking`: how many keys fewer than their `goal` took yet."""

    stored: dict[bytes, int]
    goal: dict[bytes, int] = field(default_factory=dict)
    lacking: int = 0
    asked: dict[PeerId, None] = field(default_factory=dict)
    failed: dict[PeerId, str] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    told: dict[PeerId, set[bytes]] = field(default_factory=dict)
    unanswered: Counter[PeerId] = field(default_factory=Counter)
    reported: bool = False
    times_let_go: int = -1
    """How often anything had been let go when all keys were known to be held; -1: never."""
    queries: list[QueryReport] = field(default_factory=list)

    def aim(self, digest: bytes, peers: int) -> None:
        """So many peers are told of `digest`; most of them, and eight if there are, will do."""
        self.goal[digest] = max(min(_ENOUGH, peers), peers // 2 + 1)
        self.lacking += 1

    def took(self, digests: Iterable[bytes]) -> None:
        """A peer has taken the records of `digests`."""
        stored, goal = self.stored, self.goal
        for digest in digests:
            stored[digest] = count = stored[digest] + 1
            if goal.get(digest) == count:
                self.lacking -= 1

    def report(self, pending: int) -> AnnounceReport:
        self.reported = True
        failed = tuple(PeerFailure(peer, reason) for peer, reason in self.failed.items())
        return AnnounceReport(
            dict(self.stored),
            tuple(self.asked),
            failed,
            dict(self.refused),
            pending,
            tuple(self.queries),
            tuple(+self.unanswered),
        )


class Publisher:
    """Our own chunk records, and who has been told of them."""

    def __init__(
        self, context: DhtContext, traces: Traces, locator: Locator, chunks: ChunkRecords
    ) -> None:
        self._own = context.own
        self._nursery = context.nursery
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
        self._times_let_go = 0
        self._telling: dict[PeerId, set[trio.Event]] = {}
        """Ends of what is being announced to each peer, whether a caller waits for it or not."""
        self.missed: Callable[[Iterable[PeerId]], None] = lambda failed: None
        """Hears of peers that failed after the announcement was over."""
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
        Upkeep hears all peers out.
        """
        tally = Tally(dict.fromkeys(held, 0))
        keys = list(held)
        if len(self._chunks.still_held(keys)) == len(keys):
            tally.times_let_go = self._times_let_go
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
            groups = await self._responsible(keys, tally)
            await self._announce_to_all(groups, held, tally, trace, patient=upkeep)
            for _ in range(1, _PASSES):
                enough = self._settings.enough_holders
                todo = [digest for digest in keys if tally.stored[digest] < enough]
                groups = self._next_nearest(todo, tally)
                if not groups:
                    break
                await self._announce_to_all(groups, held, tally, trace, patient=True)
        finally:
            self._strike_off(keys, tally)
            found = sum(1 for digest in keys if tally.stored[digest])
            tally.queries.append(trace.close(found=found))

    async def _responsible(self, keys: Sequence[bytes], tally: Tally) -> dict[PeerId, list[bytes]]:
        """Whom to tell what."""
        position_of = {digest: chunk_position(digest) for digest in keys}
        near = await self._locator.locate(position_of.values())
        groups: dict[PeerId, list[bytes]] = {}
        tally.lacking = 0
        tally.goal = {}
        for digest, position in position_of.items():
            peers = near[position]
            for peer in peers:
                groups.setdefault(peer, []).append(digest)
            tally.aim(digest, len(peers) - (self._own in peers))
        groups.pop(self._own, None)
        return groups

    def _next_nearest(self, todo: Sequence[bytes], tally: Tally) -> dict[PeerId, list[bytes]]:
        """Of keys that too few took: the next nearest that were not told yet."""
        k, more = self._settings.k, 2 * self._settings.enough_holders
        groups: dict[PeerId, list[bytes]] = {}
        if not todo:
            return groups
        index, nothing = self._locator.index(), set[bytes]()
        for digest in todo:
            near = index.closest(chunk_position(digest), 2 * k)
            fresh = [p for p in near if p != self._own and digest not in tally.told.get(p, nothing)]
            for peer in fresh[:more]:
                groups.setdefault(peer, []).append(digest)
        return groups

    def _strike_off(self, keys: Sequence[bytes], tally: Tally) -> None:
        """What enough peers took needs no further telling: as many as there are, if few."""
        others = len(self._locator.everyone())
        goal = min(self._settings.enough_holders, others)
        if goal:
            self.untold.told(digest for digest in keys if tally.stored[digest] >= goal)

    async def _announce_to_all(
        self,
        groups: Mapping[PeerId, Sequence[bytes]],
        held: Mapping[bytes, int],
        tally: Tally,
        trace: Trace,
        *,
        patient: bool,
    ) -> None:
        """Tell each peer its keys, until all have answered or enough for every key."""
        limiter = trio.CapacityLimiter(_PARALLEL_PEERS)
        progress = trio.Event()
        left = dict.fromkeys(groups)
        scope_of = {peer: trio.CancelScope() for peer in groups}

        async def tell(peer: PeerId, digests: Sequence[bytes], ended: trio.Event) -> None:
            try:
                with scope_of[peer]:
                    async with limiter:
                        await self.announce_to(peer, digests, held, tally, trace)
            finally:
                del left[peer]
                self._ended(peer, ended, tally)
                progress.set()

        for peer, digests in groups.items():
            ended = trio.Event()
            self._telling.setdefault(peer, set()).add(ended)
            tally.unanswered[peer] += 1
            self._nursery.start_soon(tell, peer, digests, ended)
        try:
            while left and (patient or tally.lacking or self._is_telling_many()):
                await progress.wait()
                progress = trio.Event()
        except BaseException:
            for scope in scope_of.values():
                scope.cancel()
            raise

    def _ended(self, peer: PeerId, ended: trio.Event, tally: Tally) -> None:
        ended.set()
        self._telling[peer].discard(ended)
        if not self._telling[peer]:
            del self._telling[peer]
        tally.unanswered[peer] -= 1
        if tally.reported:
            self._counters.add("announced_late")
            if peer in tally.failed:
                self.missed([peer])

    def _is_telling_many(self) -> bool:
        """Whether so much goes on without a caller that this one has to wait."""
        return sum(map(len, self._telling.values())) > _MAX_STRAGGLERS

    async def announce_to(
        self,
        peer: PeerId,
        digests: Sequence[bytes],
        held: Mapping[bytes, int],
        tally: Tally,
        trace: Trace,
    ) -> None:
        """All of one peer's keys, batch after batch; the first failure ends it."""
        tally.asked[peer] = None
        tally.told.setdefault(peer, set()).update(digests)
        for start in range(0, len(digests), MAX_KEYS_PER_MESSAGE):
            # What was let go meanwhile must not be announced after its withdrawal.
            batch = digests[start : start + MAX_KEYS_PER_MESSAGE]
            if self._times_let_go != tally.times_let_go:
                batch = self._chunks.still_held(batch)
            if not batch:
                continue
            try:
                with trace.asking(peer, keys=len(batch)) as request:
                    await self._announce_batch(peer, batch, held, tally, request)
            except Exception as error:  # noqa: BLE001 - task boundary: one peer must not end the rest
                tally.failed[peer] = as_peer_error(error, peer, self._counters).message
                return

    async def _announce_batch(
        self,
        peer: PeerId,
        batch: Sequence[bytes],
        held: Mapping[bytes, int],
        tally: Tally,
        request: Request,
    ) -> None:
        zone, ttl = self._settings.zone, int(self._settings.record_ttl)
        sizes = [held[digest] for digest in batch]
        ask = partial(self._client.announce, peer, zone, ttl, batch, sizes)
        verdicts = await self._patience.ask(peer, ask)
        refused: Counter[str] = Counter()
        if verdicts.count(Verdict.STORED) == len(batch):
            tally.took(batch)
        else:
            answers = list(zip(batch, verdicts, strict=True))
            tally.took(digest for digest, verdict in answers if verdict is Verdict.STORED)
            refused.update(v.name.lower() for _, v in answers if v is not Verdict.STORED)
        tally.refused.update(refused)
        reasons = ", ".join(f"{count} {reason}" for reason, count in refused.items())
        request.end("refused" if reasons else "stored", reasons)

    # --- withdrawing --------------------------------------------------------------------------

    def let_go(self, digests: Sequence[bytes]) -> None:
        """Stop holding and repeating these chunks; nobody is told yet."""
        self._times_let_go += 1
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
        for ended in tuple(self._telling.get(peer, ())):
            # What is still under way to it must not arrive after its withdrawal.
            await ended.wait()
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
