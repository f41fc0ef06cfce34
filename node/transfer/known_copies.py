"""Copies that peers signed for in an earlier put: asked after in batches, and not sent again.

Only chunks with a receipt in the journal come here, so a first put asks nothing. One HAVE to a peer
covers up to `BATCH` chunks. What it says it has counts (the sample that every put reads back looks
at such copies, too); what it says it has not, is placed like any other chunk, and its receipt is
forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import trio

from ...dht.peer_id import PeerId
from ...errors import DeadlineError, MembershipError, PeerError, StoreError
from ..store.protocol import Digest
from .context import TransferContext
from .copying import Placement
from .events import ProgressMeter
from .failures import reason_of, task_group
from .tracing import Tracer

BATCH = 1024


@dataclass(frozen=True, slots=True)
class _Claim:
    """A chunk, its place in this put, and the peers that signed for it once, with their zones."""

    digest: Digest
    placement: Placement
    peers: dict[PeerId, str]


class KnownCopies:
    """Gathers chunks and asks for them, `BATCH` at a time.

    Args:
        decided: called with each chunk when it is known who has it.
    """

    def __init__(
        self,
        ctx: TransferContext,
        meter: ProgressMeter,
        tracer: Tracer,
        tasks: trio.Nursery,
        decided: Callable[[Digest, Placement], None],
    ) -> None:
        self._ctx = ctx
        self._meter = meter
        self._tracer = tracer
        self._tasks = tasks
        self._decided = decided
        self._waiting: list[_Claim] = []

    def add(self, digest: Digest, placement: Placement, signed: Collection[PeerId]) -> bool:
        """Have a chunk asked after, of those of `signed` that are members now.

        Returns:
            False when there is nobody to ask; then nothing comes of it.
        """
        zones = {m.peer: m.zone for m in self._ctx.membership.members() if m.peer in signed}
        if not zones:
            return False
        self._waiting.append(_Claim(digest, placement, zones))
        if len(self._waiting) >= BATCH:
            self.flush()
        return True

    def flush(self) -> None:
        """Ask for all that has been gathered; `decided` is called for each, some time later."""
        if self._waiting:
            batch, self._waiting = self._waiting, []
            self._tasks.start_soon(self._ask_all, batch)

    async def _ask_all(self, batch: list[_Claim]) -> None:
        by_peer: dict[PeerId, list[_Claim]] = {}
        for claim in batch:
            for peer in claim.peers:
                by_peer.setdefault(peer, []).append(claim)
        try:
            async with task_group() as tasks:
                for peer, claims in by_peer.items():
                    tasks.start_soon(self._ask, peer, claims)
        finally:
            for claim in batch:
                self._decided(claim.digest, claim.placement)

    async def _ask(self, peer: PeerId, claims: list[_Claim]) -> None:
        settings = self._ctx.chunk_settings
        flags: list[bool] = []
        reason = f"did not say within {settings.chunk_timeout_secs:g} s what it has"
        try:
            with (
                self._tracer.asking(peer, "asking after copies"),
                trio.move_on_after(settings.chunk_timeout_secs),
            ):
                flags = await self._ctx.exchange.have(
                    peer,
                    [claim.digest for claim in claims],
                    first_byte_timeout=settings.peer_response_timeout_secs,
                )
        except (PeerError, MembershipError, DeadlineError) as error:
            reason = reason_of(error)
        if not flags:
            tally = self._tracer.peer(peer)
            tally.failures += 1
            tally.last_error = reason
            self._tracer.note(reason, peer)
            return
        await self._believe(peer, claims, flags)

    async def _believe(self, peer: PeerId, claims: list[_Claim], flags: list[bool]) -> None:
        lost = []
        for claim, has in zip(claims, flags, strict=True):
            if not has:
                lost.append(claim.digest)
                continue
            claim.placement.holders[peer] = claim.peers[peer]
            claim.placement.found += 1
            self._meter.advance(held=claim.placement.size)
            self._tracer.counts["copies_found"] += 1
        if lost:
            self._tracer.note(f"has {len(lost)} chunks no longer that it signed for", peer)
            try:
                await self._ctx.journal.lost(peer, lost)
            except StoreError as error:
                self._tracer.note(reason_of(error))
