"""All that a scheduler knows, and the few changes its rules make to it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ....dht.peer_id import PeerId
from ..depth import FIRST_DEPTH, MOST_DEPTH, AdaptiveDepth
from .chunks import Chunk, Chunks
from .hedging import HedgeBudget
from .peers import Peer, Request
from .story import Story, What
from .vocabulary import Answer, Ask, Cancel, Decision, Lost, Policy, Scores, Why


class State:
    """See the module. `now` and `decisions` are those of the step under way."""

    def __init__(
        self,
        sizes: Sequence[int],
        policy: Policy,
        scores: Scores,
        rng: random.Random,
        story: Story,
        now: float,
        peers: dict[PeerId, Peer],
    ) -> None:
        self.policy = policy
        self.rng = rng
        self.story = story
        self.now = now
        self.decisions: list[Decision] = []
        self.chunks = Chunks(sizes)
        self.peers = peers
        self.requests: dict[int, Request] = {}
        self.bytes_in_flight = 0
        self.budget = HedgeBudget(sum(sizes), max(sizes, default=0))
        self.depth = AdaptiveDepth(now) if policy.most_chunks is None else None
        self.progress_at = float("-inf")
        """When a chunk was verified last."""
        self.lost: list[Lost] = []
        self.asked = self.hedges = self.steals = self.retries = 0
        self._scores = scores
        self._next_request = 1
        self._looked: set[PeerId] = set()
        self._mean_size = max(sum(sizes) / max(len(sizes), 1), 1.0)
        self._pipes = 0

    # --- reading ---

    @property
    def most_chunks(self) -> int:
        """Chunks that may be under way now."""
        if self.policy.most_chunks is not None:
            return self.policy.most_chunks
        return FIRST_DEPTH if self.depth is None else max(self.depth.depth, self._pipes)

    def _chunks_that_fill_pipes(self) -> int:
        """Of the peers in use, each: the chunk it sends, and those asked for within a round trip.

        Trying out finds more; but not below this, unless it has led to timeouts.
        """
        if self.depth is None or self.depth.recently_halved(self.now):
            return 0
        in_use = [peer for peer in self.peers.values() if peer.is_known and peer.requests]
        wanted = sum(1 + peer.rate * peer.latency / self._mean_size for peer in in_use)
        return min(int(wanted), MOST_DEPTH)

    @property
    def is_serial(self) -> bool:
        return self.policy.most_chunks == 1

    def bytes_fit(self, size: int) -> bool:
        return self.bytes_in_flight == 0 or self.bytes_in_flight + size <= self.policy.most_bytes

    def begin_step(self, now: float) -> None:
        self.now = max(now, self.now)
        self.decisions = []
        self._looked.clear()
        self._pipes = self._chunks_that_fill_pipes()

    def peer(self, peer_id: PeerId) -> Peer:
        """The peer, its statistics read at most once per step."""
        peer = self.peers.get(peer_id)
        if peer is None:
            peer = self.peers[peer_id] = Peer(peer_id)
        if peer_id not in self._looked:
            self._looked.add(peer_id)
            peer.look(self._scores[peer_id])
        return peer

    def remaining_seconds(self, request: Request) -> float:
        """Until its chunk is here, if its peer goes on as it did; infinite when it is silent."""
        peer = request.peer
        if self.is_quiet(peer):
            return float("inf")
        elapsed = self.now - request.asked_at
        latency = 0.0 if request.started else max(peer.latency - elapsed, 0.0)
        return peer.bytes_before(request) / peer.rate + latency

    def is_quiet(self, peer: Peer) -> bool:
        """Whether it is late with everything it was asked for."""
        return self.now >= peer.quiet_at(self.policy.response_timeout)

    # --- changing ---

    def ask(self, chunk: Chunk, peer: Peer, why: Why, *, charged: int = 0) -> None:
        request = Request(
            self._next_request,
            chunk,
            peer,
            self.now,
            peer.finish_seconds(chunk.size),
            why,
            charged,
        )
        self._next_request += 1
        self.asked += 1
        self.requests[request.id] = request
        chunk.requests.append(request.id)
        peer.began(request)
        self.bytes_in_flight += chunk.size
        self.budget.spend(charged)
        self.decisions.append(Ask(request.id, chunk.index, peer.id, why))
        self.story.add(self.now, What.ASKED, chunk.index, peer.id, why)

    def over(self, request: Request) -> None:
        """A request is no longer under way, whatever came of it."""
        del self.requests[request.id]
        request.chunk.requests.remove(request.id)
        request.peer.ended(request)
        self.bytes_in_flight -= request.chunk.size

    def cancel(self, request: Request, reason: str) -> None:
        """Give a request up; its chunk goes on without it."""
        waited = self.now - request.asked_at
        if request.received or waited > request.expected:
            # A peer whose requests are always cut short must not look fast.
            request.peer.served(request, self.now)
        self.over(request)
        self.decisions.append(Cancel(request.id, reason))
        self.story.add(
            self.now, What.CANCELLED, request.chunk.index, request.peer.id, reason, waited
        )

    def lose_hedge(self, loser: Request, winner: Request | None) -> None:
        """Two were asked for a chunk, and `loser` will not be the one to deliver it.

        What both were charged for is given back when nothing came twice: the loser failed before
        its first byte, or is silent. One that is alive may have sent it all by the time it hears
        of the cancellation.
        """
        is_quiet = self.is_quiet(loser.peer)
        if winner is not None and is_quiet:
            loser.peer.was_silent()
        charged = 0
        for ident in loser.chunk.requests:
            charged += self.requests[ident].charged
            self.requests[ident].charged = 0
        if charged and not loser.started and (winner is None or is_quiet):
            self.budget.give_back(charged)

    def answered(self, chunk: Chunk, peer: Peer, answer: Answer, *, tried: bool = True) -> None:
        """A holder failed to deliver."""
        if tried:
            chunk.tried.add(peer.id)
        chunk.answers[peer.id] = answer
        self.retries += 1
