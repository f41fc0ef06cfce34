"""Placing chunks on other nodes, while reading goes on.

Each chunk is one task, at most `max_concurrent_uploads` at the same time; its copies go out side by
side, each to the next best member. Who fails or refuses is replaced by the next candidate at once,
and rests for a while; when all have been tried, the chunk waits and tries again,
`retry_failed_chunks` times. A peer that fails round after round is given up for this put, so that
one dead member does not cost every chunk all its rounds.

Nothing asks HAVE first: a PUT of a chunk the peer holds is answered by a receipt without its bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import trio

from ...dht.peer_id import PeerId
from ...errors import DeadlineError, MembershipError, MeshError, PeerError, PeerRefusedError
from ..content import SealedChunk
from ..exchange import Reason
from ..store.protocol import Digest
from .budget import ByteBudget
from .context import TransferContext
from .events import PeerNote, ProgressMeter
from .failures import reason_of, task_group
from .placement import Member, rank
from .schedule import BACKOFF_BASE_SECONDS, BACKOFF_CAP_SECONDS, backoff_seconds

UPLOAD_BYTES = 24 << 20
"""Chunks in memory that wait for their copies."""
_REFUSALS_FOR_GOOD = frozenset({Reason.QUOTA, Reason.SHUTTING_DOWN, Reason.UNSUPPORTED})


@dataclass(slots=True, eq=False)
class Placement:
    """Where copies of one chunk are, besides here."""

    size: int
    holders: dict[PeerId, str] = field(default_factory=dict)
    """peer -> its zone; each gave a receipt."""
    settled: trio.Event = field(default_factory=trio.Event)
    """Set when nothing more is tried."""
    retries: int = 0
    bytes_sent: int = 0
    """Stored bytes acknowledged, over all copies, those that do not count any more included."""


@dataclass(slots=True)
class _Health:
    """How a peer fared in this put. It rests after a failure, longer each time in a row."""

    failures: int = 0
    resting_since: float = float("-inf")
    resting_until: float = float("-inf")
    gone: str = ""
    """Why it is given up for this put; empty when it is not."""


class Uploader:
    """Places the chunks of one put. Its tasks run in the nursery it is given."""

    def __init__(
        self, ctx: TransferContext, copies: int, meter: ProgressMeter, tasks: trio.Nursery
    ) -> None:
        self._ctx = ctx
        self._wanted = copies - 1
        self._meter = meter
        self._tasks = tasks
        self._slots = trio.CapacityLimiter(ctx.chunk_settings.max_concurrent_uploads)
        self._budget = ByteBudget(UPLOAD_BYTES)
        self._placements: dict[Digest, Placement] = {}
        self._health: dict[PeerId, _Health] = {}

    def knows(self, digest: Digest) -> bool:
        """Whether the chunk was submitted in this put before."""
        return digest in self._placements

    def placement(self, digest: Digest) -> Placement:
        """Of a chunk that was submitted."""
        return self._placements[digest]

    async def submit(self, chunk: SealedChunk) -> None:
        """Have a chunk placed; returns when there is room to remember it, not when it is placed.

        A chunk that is already being placed is not placed again.
        """
        digest = chunk.ref.digest
        if self.knows(digest):
            return
        placement = self._placements[digest] = Placement(len(chunk.data))
        await self._begin(digest, chunk.data, placement)

    def discount(self, digest: Digest, liars: Collection[PeerId]) -> None:
        """Do not count the copies of `liars` any more."""
        for peer in liars:
            self._placements[digest].holders.pop(peer, None)

    async def replace(self, digest: Digest, data: bytes) -> None:
        """Place a chunk again that has lost copies."""
        placement = self._placements[digest]
        if not placement.settled.is_set():
            return  # another source of this put, which shares the chunk, is at it
        placement.settled = trio.Event()
        await self._begin(digest, data, placement)

    async def settle(self, digests: Iterable[Digest]) -> None:
        """Wait until nothing more is tried for these chunks."""
        for digest in digests:
            await self._placements[digest].settled.wait()

    def give_up(self, peer: PeerId, reason: str) -> None:
        """Do not use `peer` any more in this put."""
        self._health_of(peer).gone = reason
        self._meter.tell(PeerNote(peer, reason))

    # --- one chunk ----------------------------------------------------------------------------

    async def _begin(self, digest: Digest, data: bytes, placement: Placement) -> None:
        if self._wanted == 0:
            placement.settled.set()
            return
        await self._budget.acquire(len(data))
        self._tasks.start_soon(self._place, digest, data, placement)

    async def _place(self, digest: Digest, data: bytes, placement: Placement) -> None:
        rounds = 1 + self._ctx.chunk_settings.retry_failed_chunks
        try:
            for attempt in range(rounds):
                async with self._slots:
                    pause = await self._one_round(digest, data, placement)
                if pause is None or attempt + 1 == rounds:
                    break
                placement.retries += 1
                wait = max(backoff_seconds(attempt, self._ctx.rng), pause)
                await trio.sleep(min(wait, BACKOFF_CAP_SECONDS))
        finally:
            self._budget.release(len(data))
            placement.settled.set()

    async def _one_round(self, digest: Digest, data: bytes, placement: Placement) -> float | None:
        """Fill the missing copies. None: done, or nobody left to ask; else how long to wait."""
        missing = self._wanted - len(placement.holders)
        usable, _ = self._candidates(digest, len(data), placement)
        async with task_group() as tasks:
            for _ in range(min(missing, len(usable))):
                tasks.start_soon(self._one_copy, usable, digest, data, placement)
        if len(placement.holders) >= self._wanted:
            return None
        # All were tried; who is usable now has rested while others were still busy.
        usable, resting = self._candidates(digest, len(data), placement)
        return 0.0 if usable else min(resting, default=None)

    def _candidates(
        self, digest: Digest, size: int, placement: Placement
    ) -> tuple[deque[Member], list[float]]:
        """Members to try now, best first; and how long each of the others rests."""
        now = trio.current_time()
        zones = {self._ctx.zone, *placement.holders.values()}
        members = [
            member
            for member in self._ctx.membership.members()
            if member.peer not in placement.holders and member.peer != self._ctx.self_id
        ]
        usable: deque[Member] = deque()
        resting: list[float] = []
        for member in rank(digest, members, zones, size):
            health = self._health_of(member.peer)
            stats = self._ctx.exchange.stats[member.peer]
            rest = health.resting_until - now
            if not stats.allows():
                rest = max(rest, stats.retry_in, BACKOFF_BASE_SECONDS)
            if health.gone:
                continue
            if rest > 0:
                resting.append(rest)
            else:
                usable.append(member)
        return usable, resting

    async def _one_copy(
        self, candidates: deque[Member], digest: Digest, data: bytes, placement: Placement
    ) -> None:
        """Get one copy made, by whichever candidate takes it."""
        while candidates:
            member = candidates.popleft()
            if await self._try(member.peer, digest, data):
                placement.holders[member.peer] = member.zone
                placement.bytes_sent += len(data)
                return
            placement.retries += bool(candidates)

    async def _try(self, peer: PeerId, digest: Digest, data: bytes) -> bool:
        settings = self._ctx.chunk_settings
        began = trio.current_time()
        try:
            with trio.move_on_after(settings.chunk_timeout_secs) as limit:
                await self._ctx.exchange.put(
                    peer, digest, data, first_byte_timeout=settings.peer_response_timeout_secs
                )
        except (PeerError, MembershipError, DeadlineError) as error:
            self._failed(peer, began, error)
            return False
        if limit.cancelled_caught:
            reason = f"did not take a chunk within {settings.chunk_timeout_secs:g} s"
            self._ctx.exchange.stats.of(peer).failed(reason)
            self._failed(peer, began, DeadlineError(f"{reason}."))
            return False
        self._health_of(peer).failures = 0
        self._meter.advance(sent=len(data))
        return True

    # --- peers --------------------------------------------------------------------------------

    def _health_of(self, peer: PeerId) -> _Health:
        return self._health.setdefault(peer, _Health())

    def _failed(self, peer: PeerId, began: float, error: MeshError) -> None:
        health, now = self._health_of(peer), trio.current_time()
        if began < health.resting_since or health.gone:
            return  # under way when it began to rest: the same failure once more
        reason = reason_of(error)
        refused = error if isinstance(error, PeerRefusedError) else None
        if refused is not None and refused.reason in _REFUSALS_FOR_GOOD:
            self.give_up(peer, reason)
            return
        self._meter.tell(PeerNote(peer, reason))
        asked = refused.retry_after or 0.0 if refused is not None else 0.0
        rest = max(backoff_seconds(health.failures, self._ctx.rng), asked)
        health.resting_since, health.resting_until = now, now + min(rest, BACKOFF_CAP_SECONDS)
        health.failures += 1
        if health.failures > self._ctx.chunk_settings.retry_failed_chunks:
            health.gone = reason
