"""What the trace of a get says about its peers."""

from __future__ import annotations

from collections.abc import Iterable

from ...dht.peer_id import PeerId
from .scheduler import Ask, Fault, Why
from .tracing import Tracer


class FetchNotes:
    """Adds what one driver did and met to the trace of its transfer."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._late: set[PeerId] = set()

    def asked(self, ask: Ask, under_way: Iterable[Ask]) -> None:
        """A request goes out, beside those that are under way."""
        counts = self._tracer.counts
        counts["requests"] += 1
        if ask.why in (Why.HEDGE, Why.ENDGAME):
            counts["hedges"] += 1
            for other in under_way:
                if other.chunk == ask.chunk and other.request != ask.request:
                    self._was_late(other.peer)
        elif ask.why is Why.STOLEN:
            counts["moved"] += 1

    def _was_late(self, peer: PeerId) -> None:
        self._tracer.peer(peer).hedged += 1
        if peer not in self._late:
            self._late.add(peer)
            self._tracer.note("was late; others were asked as well", peer)

    def cancelled(self, peer: PeerId, received: int) -> None:
        """A request was given up after so many bytes, which came for nothing."""
        self._tracer.peer(peer).wasted += received

    def failed(self, peer: PeerId, fault: Fault, reason: str, retry_after: float | None) -> None:
        """A request ended without its chunk."""
        tally = self._tracer.peer(peer)
        tally.last_error = reason
        self._tracer.counts["retries"] += 1
        match fault:
            case Fault.BUSY:
                tally.refusals += 1
                tally.resting += retry_after or 0.0
            case Fault.CORRUPT:
                tally.corrupt += 1
                tally.gave_up = tally.gave_up or reason
                self._tracer.note("sent false bytes; nothing more is asked of it", peer)
            case _:
                tally.failures += 1
