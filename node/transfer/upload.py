"""Placing chunks on other nodes, while reading goes on.

Each chunk is one task, at most `max_concurrent_uploads` at the same time; its copies go out side by
side, each to the next best member. Who fails or refuses is replaced by the next candidate at once,
and rests for a while; when all have been tried, the chunk waits and tries again,
`retry_failed_chunks` times. A peer that fails round after round is given up for this put, so that
one dead member does not cost every chunk all its rounds. A busy one has not failed: it is waited
for as long as anything gets on (see `patience_seconds`).

Every task here belongs to the put, not to the source that submitted the chunk: sources share
chunks, and one that breaks off must not take away what another counts on.

Nothing asks HAVE first: a PUT of a chunk the peer holds is answered by a receipt without its bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import trio

from ...dht.peer_id import PeerId
from ...errors import (
    DeadlineError,
    IntegrityError,
    MembershipError,
    MeshError,
    NotFoundError,
    PeerError,
    PeerRefusedError,
    StoreError,
)
from ..content import SealedChunk
from ..exchange import Reason
from ..store.protocol import Buffer, Digest
from .budget import ByteBudget
from .context import TransferContext
from .events import PeerNote, ProgressMeter
from .failures import reason_of, task_group
from .placement import Member, rank
from .schedule import (
    BACKOFF_BASE_SECONDS,
    BACKOFF_CAP_SECONDS,
    backoff_seconds,
    patience_seconds,
)

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


@dataclass(slots=True, eq=False)
class _Admission:
    """A chunk on its way into the budget."""

    data: Buffer | None
    """None: whoever submitted it has gone; the store has the bytes."""
    admitted: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class _Choice:
    """Who could take a copy."""

    usable: deque[Member] = field(default_factory=deque)
    """Best first."""
    resting: list[float] = field(default_factory=list)
    """How long each of the others rests."""
    busy: bool = False
    """Somebody, usable or not, may only have to be waited for."""


@dataclass(slots=True)
class _Health:
    """How a peer fared in this put. It rests after a failure, longer each time in a row."""

    failures: int = 0
    resting_since: float = float("-inf")
    resting_until: float = float("-inf")
    busy_since: float | None = None
    """When it began to answer nothing but "busy"; None: its last answer was another."""
    busy_in_a_row: int = 0
    under_way: int = 0
    """Requests it has not answered yet."""
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
        self._progress = float("-inf")
        """When a copy was made last, of any chunk on any peer."""

    def knows(self, digest: Digest) -> bool:
        """Whether the chunk was submitted in this put before."""
        return digest in self._placements

    def placement(self, digest: Digest) -> Placement:
        """Of a chunk that was submitted."""
        return self._placements[digest]

    async def submit(self, chunk: SealedChunk) -> None:
        """Have a chunk placed; returns when there is room to remember it, not when it is placed.

        A chunk that is already being placed is not placed again. It must be in the store already:
        from there it comes when this call is cancelled, and it is placed all the same.
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

    async def replace(self, digest: Digest, data: Buffer) -> None:
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

    async def _begin(self, digest: Digest, data: Buffer, placement: Placement) -> None:
        if self._wanted == 0:
            placement.settled.set()
            return
        admission = _Admission(data)
        self._tasks.start_soon(self._admit, digest, admission, placement)
        try:
            await admission.admitted.wait()
        except trio.Cancelled:
            # What waits on without us must not hold bytes beyond the budget.
            admission.data = None
            raise

    async def _admit(self, digest: Digest, admission: _Admission, placement: Placement) -> None:
        try:
            await self._budget.acquire(placement.size)
            try:
                admission.admitted.set()
                data = admission.data
                if data is None:
                    data = await self._ctx.store.get(digest)
                await self._place(digest, data, placement)
            finally:
                self._budget.release(placement.size)
        except (NotFoundError, StoreError, IntegrityError) as error:
            self._meter.tell(PeerNote(self._ctx.self_id, reason_of(error)))
        finally:
            placement.settled.set()

    async def _place(self, digest: Digest, data: Buffer, placement: Placement) -> None:
        rounds = 1 + self._ctx.chunk_settings.retry_failed_chunks
        attempt = 0
        while True:
            async with self._slots:
                choice = await self._one_round(digest, data, placement)
            if choice is None:
                return
            wait = max(
                backoff_seconds(attempt, self._ctx.rng),
                0.0 if choice.usable else min(choice.resting),
            )
            # Being told to come back is no failed round; how long this goes on, `_busy` bounds.
            attempt += not choice.busy
            if attempt == rounds:
                return
            placement.retries += 1
            await trio.sleep(min(wait, BACKOFF_CAP_SECONDS))

    async def _one_round(
        self, digest: Digest, data: Buffer, placement: Placement
    ) -> _Choice | None:
        """Fill the missing copies. None: done, or nobody left to ask; else who is left."""
        missing = self._wanted - len(placement.holders)
        usable = self._candidates(digest, len(data), placement).usable
        async with task_group() as tasks:
            for _ in range(min(missing, len(usable))):
                tasks.start_soon(self._one_copy, usable, digest, data, placement)
        if len(placement.holders) >= self._wanted:
            return None
        # All were tried; who is usable now has rested while others were still busy.
        choice = self._candidates(digest, len(data), placement)
        return choice if choice.usable or choice.resting else None

    def _candidates(self, digest: Digest, size: int, placement: Placement) -> _Choice:
        now = trio.current_time()
        zones = {self._ctx.zone, *placement.holders.values()}
        members = [
            member
            for member in self._ctx.membership.members()
            if member.peer not in placement.holders and member.peer != self._ctx.self_id
        ]
        choice = _Choice()
        for member in rank(digest, members, zones, size):
            health = self._health_of(member.peer)
            stats = self._ctx.exchange.stats[member.peer]
            rest = health.resting_until - now
            if not stats.allows():
                rest = max(rest, stats.retry_in, BACKOFF_BASE_SECONDS)
            if health.gone:
                continue
            if self._occupied(member.peer):
                rest = max(rest, BACKOFF_BASE_SECONDS)
            choice.busy |= health.busy_since is not None
            if rest > 0:
                choice.resting.append(rest)
            else:
                choice.usable.append(member)
        return choice

    async def _one_copy(
        self, candidates: deque[Member], digest: Digest, data: Buffer, placement: Placement
    ) -> None:
        """Get one copy made, by whichever candidate takes it."""
        while candidates:
            member = candidates.popleft()
            if self._occupied(member.peer):
                continue
            if await self._try(member.peer, digest, data):
                placement.holders[member.peer] = member.zone
                placement.bytes_sent += len(data)
                return
            placement.retries += bool(candidates)

    async def _try(self, peer: PeerId, digest: Digest, data: Buffer) -> bool:
        settings = self._ctx.chunk_settings
        began = trio.current_time()
        health = self._health_of(peer)
        health.under_way += 1
        try:
            with trio.move_on_after(settings.chunk_timeout_secs) as limit:
                await self._ctx.exchange.put(
                    peer, digest, data, first_byte_timeout=settings.peer_response_timeout_secs
                )
        except (PeerError, MembershipError, DeadlineError) as error:
            self._failed(peer, began, error)
            return False
        finally:
            health.under_way -= 1
        if limit.cancelled_caught:
            reason = f"did not take a chunk within {settings.chunk_timeout_secs:g} s"
            self._ctx.exchange.stats.of(peer).failed(reason)
            self._failed(peer, began, DeadlineError(f"{reason}."))
            return False
        health.failures, health.busy_in_a_row, health.busy_since = 0, 0, None
        self._progress = trio.current_time()
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
        # On top of what it asked for: that may be just too little to be let in, every time.
        in_a_row = health.failures + health.busy_in_a_row
        rest = asked + backoff_seconds(in_a_row, self._ctx.rng)
        health.resting_since, health.resting_until = now, now + min(rest, BACKOFF_CAP_SECONDS)
        if refused is not None and refused.reason == Reason.BUSY:
            self._busy(health, reason)
            return
        health.busy_since = None
        health.failures += 1
        if health.failures > self._ctx.chunk_settings.retry_failed_chunks:
            health.gone = reason

    def _occupied(self, peer: PeerId) -> bool:
        """One probe at a time goes to a busy peer: servers charge what they refuse, too."""
        health = self._health_of(peer)
        return health.busy_since is not None and health.under_way > 0

    def _busy(self, health: _Health, reason: str) -> None:
        """It is well, and has no time: waited for until nothing at all got on for too long."""
        now = trio.current_time()
        if health.busy_since is None:
            health.busy_since = now
        health.busy_in_a_row += 1
        if now - max(health.busy_since, self._progress) > patience_seconds(
            self._ctx.chunk_settings
        ):
            health.gone = reason
