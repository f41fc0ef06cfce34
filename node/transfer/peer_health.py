"""How every peer fares in one put: who rests, who is only busy, who is given up.

A peer that fails rests, longer each time in a row; one that fails round after round is given up for
this put, so that one dead member does not cost every chunk all its rounds. A busy one has not
failed: it is waited for as long as anything gets on (see `patience_seconds`).
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from ...dht.peer_id import PeerId
from ...errors import MeshError, PeerRefusedError
from ..exchange import Reason
from .context import TransferContext
from .events import PeerNote, ProgressMeter
from .failures import reason_of
from .schedule import (
    BACKOFF_BASE_SECONDS,
    BACKOFF_CAP_SECONDS,
    backoff_seconds,
    patience_seconds,
)
from .tracing import Tracer

_REFUSALS_FOR_GOOD = frozenset({Reason.QUOTA, Reason.SHUTTING_DOWN, Reason.UNSUPPORTED})


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
    unanswered_since: float = float("inf")
    """Since when it owes an answer and gave none to any request; infinite when it owes none."""
    silences: int = 0
    """How often in a row copies were made elsewhere because it signed nothing."""
    gone: str = ""
    """Why it is given up for this put; empty when it is not."""


class PeerHealth:
    """All peers of one put."""

    def __init__(self, ctx: TransferContext, meter: ProgressMeter, tracer: Tracer) -> None:
        self._ctx = ctx
        self._meter = meter
        self._tracer = tracer
        self._peers: dict[PeerId, _Health] = {}
        self._progress = float("-inf")
        """When a copy was made last, of any chunk on any peer."""

    def gone(self, peer: PeerId) -> bool:
        """Whether it is given up for this put."""
        return bool(self._of(peer).gone)

    def only_busy(self, peer: PeerId) -> bool:
        """Whether all it says lately is that it has no time."""
        return self._of(peer).busy_since is not None

    def occupied(self, peer: PeerId) -> bool:
        """One probe at a time goes to a busy peer: servers charge what they refuse, too."""
        health = self._of(peer)
        return health.busy_since is not None and health.under_way > 0

    def rest(self, peer: PeerId) -> float:
        """Seconds for which it is to be left alone from now; 0 or less: it may be asked."""
        stats = self._ctx.exchange.stats[peer]
        rest = self._of(peer).resting_until - trio.current_time()
        if not stats.allows():
            rest = max(rest, stats.retry_in, BACKOFF_BASE_SECONDS)
        if self.occupied(peer):
            rest = max(rest, BACKOFF_BASE_SECONDS)
        return rest

    def began(self, peer: PeerId) -> None:
        """A request to `peer` is under way."""
        health = self._of(peer)
        if not health.under_way:
            health.unanswered_since = trio.current_time()
        health.under_way += 1

    def ended(self, peer: PeerId) -> None:
        """That request is over, whatever came of it."""
        health = self._of(peer)
        health.under_way -= 1
        if not health.under_way:
            health.unanswered_since = float("inf")

    def took(self, peer: PeerId) -> None:
        """It made a copy."""
        health = self._of(peer)
        health.failures, health.busy_in_a_row, health.busy_since = 0, 0, None
        health.silences = 0
        health.unanswered_since = self._progress = trio.current_time()

    def silent_for(self, peer: PeerId) -> float:
        """Seconds for which it has owed answers and given none."""
        return trio.current_time() - self._of(peer).unanswered_since

    def was_silent(self, peer: PeerId) -> bool:
        """Whether nothing was heard of it for too long, and it has signed nothing since."""
        return self._of(peer).silences > 0

    def silent(self, peer: PeerId) -> None:
        """It signs nothing, and copies are made elsewhere: left alone for a while, as one that
        failed, but never given up for it. It may only have a slow disk."""
        self._rest_silent(peer, "signed nothing for a while; its copies are made elsewhere")

    def unheard(self, peer: PeerId) -> None:
        """It did not answer when its copies were read back: the same."""
        self._rest_silent(peer, "did not answer when copies were read back")

    def _rest_silent(self, peer: PeerId, note: str) -> None:
        health, now = self._of(peer), trio.current_time()
        if health.resting_until > now:
            return  # the same silence once more
        self._tracer.note(note, peer)
        rest = min(BACKOFF_BASE_SECONDS * 2.0 ** (health.silences + 3), BACKOFF_CAP_SECONDS)
        health.silences += 1
        health.resting_since, health.resting_until = now, now + rest
        self._tracer.peer(peer).resting += rest

    def failed(self, peer: PeerId, began: float, error: MeshError) -> None:
        """A request that began at `began` failed, or was refused."""
        health, now = self._of(peer), trio.current_time()
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
        rest = min(asked + backoff_seconds(in_a_row, self._ctx.rng), BACKOFF_CAP_SECONDS)
        health.resting_since, health.resting_until = now, now + rest
        tally = self._tracer.peer(peer)
        tally.resting += rest
        tally.last_error = reason
        if refused is not None and refused.reason == Reason.BUSY:
            tally.refusals += 1
            self._busy(peer, health, reason)
            return
        tally.failures += 1
        self._tracer.note(reason, peer)
        health.busy_since = None
        health.failures += 1
        if health.failures > self._ctx.chunk_settings.retry_failed_chunks:
            self._end(peer, health, reason)

    def give_up(self, peer: PeerId, reason: str) -> None:
        """Do not use `peer` any more in this put."""
        self._end(peer, self._of(peer), reason)
        self._meter.tell(PeerNote(peer, reason))
        self._tracer.note(f"was given up: {reason}", peer)

    def _of(self, peer: PeerId) -> _Health:
        health = self._peers.get(peer)
        if health is None:
            health = self._peers[peer] = _Health()
        return health

    def _end(self, peer: PeerId, health: _Health, reason: str) -> None:
        health.gone = reason
        self._tracer.peer(peer).gave_up = reason

    def _busy(self, peer: PeerId, health: _Health, reason: str) -> None:
        """It is well, and has no time: waited for until nothing at all got on for too long."""
        now = trio.current_time()
        if health.busy_since is None:
            health.busy_since = now
        health.busy_in_a_row += 1
        if now - max(health.busy_since, self._progress) > patience_seconds(
            self._ctx.chunk_settings
        ):
            self._end(peer, health, reason)
