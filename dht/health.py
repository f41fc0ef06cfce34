"""How each peer answered lately: round-trip time, failures, and whether to wait for it at all.

The deadline of an RPC follows RFC 6298 (smoothed round trip plus four deviations), clamped to the
bounds of the room. A peer that failed is left alone for a while that doubles with each failure.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from .peer_id import PeerId
from .settings import RPC_DEADLINE_MAX, RPC_DEADLINE_MIN

EVICT_AFTER = 3
_REMEMBERED_PEERS = 8192
_FIRST_PAUSE = 5.0
_LONGEST_PAUSE = 300.0
_LATE_MIN = 0.05
_LATE_UNKNOWN = 0.25


@dataclass(slots=True)
class _Record:
    rtt: float | None = None
    deviation: float = 0.0
    failures: int = 0
    first_failure: float = 0.0
    retry_at: float = 0.0


class PeerHealth:
    """Bounded memory of how peers answered. All times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._records: OrderedDict[PeerId, _Record] = OrderedDict()
        self._somebody_answered = float("-inf")

    def succeeded(self, peer: PeerId, now: float, rtt: float | None = None) -> None:
        """`peer` answered; `rtt` when the exchange was small enough to measure the network."""
        record = self._of(peer)
        record.failures = 0
        record.retry_at = 0.0
        self._somebody_answered = now
        if rtt is None:
            return
        if record.rtt is None:
            record.rtt, record.deviation = rtt, rtt / 2
        else:
            record.deviation += (abs(rtt - record.rtt) - record.deviation) / 4
            record.rtt += (rtt - record.rtt) / 8

    def failed(self, peer: PeerId, now: float, *, weight: int = 1) -> int:
        """`peer` did not answer, or answered nonsense; returns its failures in a row."""
        record = self._of(peer)
        if record.failures == 0:
            record.first_failure = now
        record.failures += weight
        pause = min(_FIRST_PAUSE * 2 ** min(record.failures - 1, 10), _LONGEST_PAUSE)
        record.retry_at = now + pause
        return record.failures

    def revived(self, peer: PeerId) -> None:
        """There is new evidence that `peer` lives (a fresh connection): stop avoiding it."""
        record = self._records.get(peer)
        if record is not None:
            record.retry_at = 0.0

    def restore_rtt(self, peer: PeerId, rtt: float) -> None:
        """Take over a round trip known from before a restart."""
        record = self._of(peer)
        record.rtt, record.deviation = rtt, rtt / 2

    def is_down(self, peer: PeerId, now: float) -> bool:
        """Whether `peer` failed so recently that nothing should wait for it."""
        record = self._records.get(peer)
        return record is not None and now < record.retry_at

    def should_evict(self, peer: PeerId) -> bool:
        """Three failures in a row, while others answered: the fault is not our own network's."""
        record = self._records.get(peer)
        return (
            record is not None
            and record.failures >= EVICT_AFTER
            and self._somebody_answered >= record.first_failure
        )

    def rtt(self, peer: PeerId) -> float | None:
        record = self._records.get(peer)
        return None if record is None else record.rtt

    def deadline(self, peer: PeerId) -> float:
        """Seconds a small RPC to a connected `peer` may take."""
        record = self._records.get(peer)
        if record is None or record.rtt is None:
            return RPC_DEADLINE_MAX
        return min(max(record.rtt + 4 * record.deviation, RPC_DEADLINE_MIN), RPC_DEADLINE_MAX)

    def late_after(self, peer: PeerId) -> float:
        """Seconds after which a query starts its next candidate instead of only waiting."""
        record = self._records.get(peer)
        if record is None or record.rtt is None:
            return _LATE_UNKNOWN
        return min(max(record.rtt + 2 * record.deviation, _LATE_MIN), 2 * _LATE_UNKNOWN)

    def _of(self, peer: PeerId) -> _Record:
        record = self._records.get(peer)
        if record is None:
            record = self._records[peer] = _Record()
            while len(self._records) > _REMEMBERED_PEERS:
                self._records.popitem(last=False)
        else:
            self._records.move_to_end(peer)
        return record
