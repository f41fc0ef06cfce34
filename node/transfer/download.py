"""Fetching sets of chunks for one get or stream: the scheduler's policy, driven on real peers.

    find (a window ahead) -> schedule -> fetch -> verify, open, consume (a thread)

What is decided lies in `scheduler`, what is done in `driver`; this puts both together, and keeps
what one transfer learns from one set of chunks to the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from ...config import ChunkSettings
from ...dht.peer_id import PeerId
from ...errors import QuotaError, StoreError
from ..content import ChunkRef
from ..store.protocol import Buffer
from .context import TransferContext
from .driver import Consume, Deliver, Driver
from .events import PeerNote, ProgressMeter
from .failures import reason_of
from .find import Finder
from .lost import LostChunk, could_not_fetch
from .scheduler import Fault, GiveUp, Policy, Scheduler
from .scheduler.peers import Peer
from .tracing import Tracer


@dataclass(slots=True)
class FetchTally:
    """What one get has cost so far. Sizes in bytes as stored."""

    from_store: int = 0
    from_peers: Counter[PeerId] = field(default_factory=Counter)
    retries: int = 0
    """Requests that had to be repeated, elsewhere or later."""
    corrupt: int = 0
    hedges: int = 0
    """Requests beside another one for the same chunk."""
    moved: int = 0
    """Requests taken from one peer and given to another before the first had begun to send."""


class Fetcher:
    """Fetches sets of chunks for one get."""

    def __init__(
        self,
        ctx: TransferContext,
        meter: ProgressMeter,
        threads: trio.CapacityLimiter,
        *,
        keep: bool = False,
        tracer: Tracer | None = None,
    ) -> None:
        self._ctx = ctx
        self._meter = meter
        self._threads = threads
        self._keep = keep
        self._peers: dict[PeerId, Peer] = {}
        self.tracer = Tracer("get") if tracer is None else tracer
        self.finder = Finder(ctx)
        self.tally = FetchTally()

    async def fetch(
        self, refs: Sequence[ChunkRef], consume: Consume, *, deliver: Deliver | None = None
    ) -> None:
        """Fetch all of `refs`, beginning them in order.

        Raises:
            TransferError: a chunk could not be had; names chunks, peers and answers.
            NotFoundError: the same, when everybody answered and nobody has it any more.
            WrongKeyError, FormatError: a chunk is what its digest says, but not what the
                manifest says.
            MeshError: whatever `consume` raises.
        """
        async with self.opened(refs, consume, deliver=deliver) as driver:
            self.check(await driver.run(), refs)

    @asynccontextmanager
    async def opened(
        self,
        refs: Sequence[ChunkRef],
        consume: Consume,
        *,
        deliver: Deliver | None = None,
        open_ended: bool = False,
    ) -> AsyncIterator[Driver]:
        """A driver for `refs` that is not run yet, for readers that move about in them.

        Args:
            open_ended: `run` does not end by itself when everything is here.
        """
        scheduler = Scheduler(
            [ref.size for ref in refs],
            policy_of(self._ctx.chunk_settings),
            self._ctx.exchange.stats,
            rng=self._ctx.rng,
            now=trio.current_time(),
            open_ended=open_ended,
            peers=self._peers,
        )
        driver = Driver(
            self._ctx,
            scheduler,
            refs,
            finder=self.finder,
            threads=self._threads,
            ledger=self,
            tracer=self.tracer,
            consume=consume,
            deliver=deliver,
        )
        try:
            yield driver
        finally:
            self.tally.hedges += scheduler.tally.hedges
            self.tally.moved += scheduler.tally.steals

    def check(self, end: GiveUp | None, refs: Sequence[ChunkRef]) -> None:
        """Raises what `fetch` raises when a driver's `run` ended with a `GiveUp`."""
        if end is not None:
            lost = [LostChunk(refs[chunk.chunk], chunk.answers) for chunk in end.lost]
            raise could_not_fetch(lost, len(refs), end.untried, len(self.finder.asked))

    # --- what the driver tells ---

    def came(self, peer: PeerId, ref: ChunkRef) -> None:
        self.tally.from_peers[peer] += ref.size
        self._meter.advance(sent=ref.size)

    async def keep(self, ref: ChunkRef, stored: Buffer) -> None:
        if not self._keep:
            return
        try:
            await self._ctx.store.put([(ref.digest, stored)], verify=False)
        except (QuotaError, StoreError) as error:
            # A copy here is a favour to later gets; this one does not need it.
            self._keep = False
            self._meter.tell(PeerNote(self._ctx.self_id, reason_of(error)))

    def read_here(self, ref: ChunkRef) -> None:
        self.tally.from_store += ref.size

    def failed(self, peer: PeerId, fault: Fault, reason: str) -> None:
        self.tally.retries += 1
        self.tally.corrupt += fault is Fault.CORRUPT
        self._meter.tell(PeerNote(peer, reason))


def policy_of(settings: ChunkSettings) -> Policy:
    """What the `[performance.chunks]` section allows a get."""
    most = settings.max_concurrent_retrievals
    return Policy(
        most_chunks=None if most == "auto" else most,
        rounds=1 + settings.retry_failed_chunks,
        response_timeout=settings.peer_response_timeout_secs,
        chunk_timeout=settings.chunk_timeout_secs,
        prefer_fast=settings.prefer_fast_peers,
    )
