"""Placing chunks on other nodes, while reading goes on.

Each chunk is one task; `copying` gets its copies made, `upload_flow` says how many at once. When
all candidates have been tried, the chunk waits and tries again, `retry_failed_chunks` times.

Every task here belongs to the put, not to the source that submitted the chunk: sources share
chunks, and one that breaks off must not take away what another counts on.

A fresh chunk is not asked after before it is sent: a PUT of a chunk the peer holds is answered by a
receipt without its bytes. One that a peer has signed for in an earlier put is, in batches: see
`known_copies`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import trio

from ...dht.peer_id import PeerId
from ...errors import IntegrityError, NotFoundError, StoreError
from ..content import SealedChunk
from ..exchange import Lane, Receipt
from ..store.protocol import Buffer, Digest
from .budget import ByteBudget
from .context import TransferContext
from .copying import CopyMaker, Placement
from .events import PeerNote, ProgressMeter
from .failures import reason_of
from .known_copies import KnownCopies
from .schedule import BACKOFF_CAP_SECONDS, backoff_seconds
from .tracing import Tracer

UPLOAD_BYTES = 24 << 20
"""Chunks in memory that wait for their copies."""


@dataclass(slots=True, eq=False)
class _Admission:
    """A chunk on its way into the budget."""

    data: Buffer | None
    """None: nobody holds the bytes for it; the store has them."""
    lane: Lane = Lane.INTERACTIVE
    admitted: trio.Event = field(default_factory=trio.Event)


class Uploader:
    """Places the chunks of one put. Its tasks run in the nursery it is given."""

    def __init__(
        self,
        ctx: TransferContext,
        copies: int,
        meter: ProgressMeter,
        tracer: Tracer,
        tasks: trio.Nursery,
    ) -> None:
        self._ctx = ctx
        self.wanted = copies - 1
        """Copies on other nodes."""
        self._meter = meter
        self._tracer = tracer
        self._tasks = tasks
        self._maker = CopyMaker(ctx, self.wanted, meter, tracer)
        self.patience = self._maker.patience
        """With peers whose copies are read back."""
        self._known = KnownCopies(ctx, meter, tracer, tasks, self._asked_after)
        self._budget = ByteBudget(UPLOAD_BYTES)
        self._placements: dict[Digest, Placement] = {}

    def knows(self, digest: Digest) -> bool:
        """Whether the chunk was submitted in this put before."""
        return digest in self._placements

    def placement(self, digest: Digest) -> Placement:
        """Of a chunk that was submitted."""
        return self._placements[digest]

    async def submit(self, chunk: SealedChunk, receipts: Collection[Receipt] = ()) -> None:
        """Have a chunk placed; returns when there is room to remember it, not when it is placed.

        A chunk that is already being placed is not placed again. It must be in the store already:
        from there it comes when this call is cancelled, and it is placed all the same.

        Args:
            receipts: what peers have signed for it in earlier puts.
        """
        digest = chunk.ref.digest
        if self.knows(digest):
            return
        placement = self._placements[digest] = Placement(len(chunk.data))
        self._meter.advance(wanted=self.wanted * placement.size)
        if not self.wanted:
            placement.settled.set()
            return
        signed = {receipt.holder for receipt in receipts}
        if signed and self._known.add(digest, placement, signed):
            return
        await self._begin(digest, chunk.data, placement)

    def has_newcomers(self, digest: Digest) -> bool:
        """Whether a chunk lacks copies, and a member has come that was never asked for one."""
        return self._maker.has_newcomers(self._placements[digest])

    def discount(self, digest: Digest, liars: Collection[PeerId]) -> None:
        """Do not count the copies of `liars` any more."""
        for peer in liars:
            self._placements[digest].holders.pop(peer, None)

    async def replace(self, digest: Digest, data: Buffer, lane: Lane) -> None:
        """Place a chunk again that has lost copies, or never got all of them."""
        placement = self._placements[digest]
        if not placement.settled.is_set():
            return  # another source of this put, which shares the chunk, is at it
        placement.settled = trio.Event()
        await self._begin(digest, data, placement, lane)

    async def settle(self, digests: Iterable[Digest]) -> None:
        """Wait until nothing more is tried for these chunks."""
        self._known.flush()
        for digest in digests:
            await self._placements[digest].settled.wait()

    def give_up(self, peer: PeerId, reason: str) -> None:
        """Do not use `peer` any more in this put."""
        self._maker.health.give_up(peer, reason)

    # --- one chunk ----------------------------------------------------------------------------

    def _asked_after(self, digest: Digest, placement: Placement) -> None:
        """It is known which peers have the chunk still."""
        if len(placement.holders) >= self.wanted:
            placement.settled.set()
        else:
            self._start(digest, _Admission(None), placement)

    async def _begin(
        self,
        digest: Digest,
        data: Buffer,
        placement: Placement,
        lane: Lane = Lane.INTERACTIVE,
    ) -> None:
        admission = _Admission(data, lane)
        self._start(digest, admission, placement)
        try:
            await admission.admitted.wait()
        except trio.Cancelled:
            # What waits on without us must not hold bytes beyond the budget.
            admission.data = None
            raise

    def _start(self, digest: Digest, admission: _Admission, placement: Placement) -> None:
        missing = self.wanted - len(placement.holders)
        self._maker.lateness.wanted(missing * placement.size)
        self._tasks.start_soon(self._admit, digest, admission, placement)

    async def _admit(self, digest: Digest, admission: _Admission, placement: Placement) -> None:
        try:
            await self._budget.acquire(placement.size)
            try:
                admission.admitted.set()
                data = admission.data
                if data is None:
                    data = await self._ctx.store.get(digest)
                await self._place(digest, data, placement, admission.lane)
            finally:
                self._budget.release(placement.size)
        except (NotFoundError, StoreError, IntegrityError) as error:
            self._meter.tell(PeerNote(self._ctx.self_id, reason_of(error)))
            self._tracer.note(reason_of(error))
        finally:
            placement.settled.set()

    async def _place(self, digest: Digest, data: Buffer, placement: Placement, lane: Lane) -> None:
        rounds = 1 + self._ctx.chunk_settings.retry_failed_chunks
        attempt = 0
        while True:
            choice = await self._maker.fill(digest, data, placement, lane)
            if choice is None:
                return
            wait = max(
                backoff_seconds(attempt, self._ctx.rng),
                0.0 if choice.usable else min(choice.resting),
            )
            # Being told to come back is no failed round; `PeerHealth` bounds how long this goes on.
            attempt += not choice.busy
            if attempt == rounds:
                return
            placement.retries += 1
            with self._tracer.phase("peers resting"):
                await trio.sleep(min(wait, BACKOFF_CAP_SECONDS))
