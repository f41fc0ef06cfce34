"""What we learned about each peer: everything that schedules reads it.

Pure bookkeeping on an injected clock; `Exchange` writes it, transfer and placement read it. It
outlives the process through `to_bytes`, so that a restarted node knows its fast peers.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from ...dht.peer_id import PeerId
from ...errors import FormatError
from .breaker import Breaker, BreakerState
from .decay import DecayedMean, RateMeter, SampleWindow
from .stats_format import Snapshot, decode_snapshot, encode_snapshot

Clock = Callable[[], float]

HALF_LIFE_SECS = 120.0
LATENCY_SAMPLES = 64
OUTCOMES = 64
MAX_PEERS = 4096
_MAX_ERROR_CHARS = 200

# A peer of which nothing is known is taken for an ordinary one on a local network: good enough to
# be tried, not so good that it beats a peer known to be fast.
PRESUMED_LATENCY = 0.05
PRESUMED_RATE = 10e6
_LEAST_RATE = 1.0  # bytes per second; keeps an expectation finite for a peer that delivered nothing


class PeerStats:
    """One peer. Seconds, bytes, bytes per second; rates and latency favour the recent past."""

    def __init__(self, clock: Clock, wall: Clock) -> None:
        self._clock = clock
        self._wall = wall
        self._latency = DecayedMean(HALF_LIFE_SECS)
        self._latencies = SampleWindow(LATENCY_SAMPLES)
        self._outcomes = SampleWindow(OUTCOMES)
        self._breaker = Breaker()
        self.download = RateMeter(HALF_LIFE_SECS, clock)
        self.upload = RateMeter(HALF_LIFE_SECS, clock)
        self.bytes_received = 0
        self.bytes_sent = 0
        self.in_flight_requests = 0
        self.in_flight_bytes = 0
        """Body bytes expected from and owed to the peer by requests under way."""
        self.requests = 0
        self.failures = 0
        self.refusals = 0
        self.duplicates = 0
        """Bodies that arrived although their request had been given up."""
        self.last_error = ""
        self.last_error_at: float | None = None
        """Unix seconds."""

    # --- what schedulers read ---

    @property
    def latency(self) -> float | None:
        """Decayed mean of the time to the first byte of an answer."""
        return self._latency.mean()

    @property
    def latency_p95(self) -> float | None:
        """95th percentile of the last `LATENCY_SAMPLES` times to first byte."""
        return self._latencies.quantile(0.95)

    @property
    def throughput(self) -> float | None:
        """Of what the peer sends us."""
        return self.download.rate()

    @property
    def success_rate(self) -> float:
        """Over the last `OUTCOMES` requests; 1.0 before the first."""
        share = self._outcomes.mean()
        return 1.0 if share is None else share

    @property
    def breaker(self) -> BreakerState:
        return self._breaker.state(self._clock())

    @property
    def retry_in(self) -> float:
        """Seconds until an open breaker lets a probe through; 0.0 when it is not open."""
        at = self._breaker.retry_at()
        return 0.0 if at is None else max(at - self._clock(), 0.0)

    def allows(self) -> bool:
        """Whether the breaker lets a request go now (half-open: only one probe at a time)."""
        return self._breaker.allows(self._clock())

    def expected_seconds(self, size: int, *, upload: bool = False) -> float:
        """Until a body of `size` bytes asked for now would be complete."""
        rate = (self.upload if upload else self.download).rate()
        latency = PRESUMED_LATENCY if self.latency is None else self.latency
        rate = PRESUMED_RATE if rate is None else max(rate, _LEAST_RATE)
        return (self.in_flight_bytes + size) / rate + latency

    # --- what the exchange writes ---

    def began(self, expected_bytes: int) -> None:
        self.requests += 1
        self.in_flight_requests += 1
        self.in_flight_bytes += expected_bytes
        self._breaker.began(self._clock())

    def ended(self, expected_bytes: int) -> None:
        """The counterpart of `began`, whatever came of the request."""
        self.in_flight_requests -= 1
        self.in_flight_bytes -= expected_bytes

    def first_byte(self, seconds: float) -> None:
        now = self._clock()
        self._latency.add(seconds, 1.0, now)
        self._latencies.add(seconds)

    def gave_up(self, waited: float) -> None:
        """A request was cancelled after `waited` seconds without a first byte.

        That is a lower bound of its latency; it is counted only when it tells something, or peers
        whose requests are always cut short would look fast.
        """
        mean = self.latency
        if mean is not None and waited > mean:
            self.first_byte(waited)

    def succeeded(self) -> None:
        self._outcomes.add(1.0)
        self._breaker.succeeded()

    def refused(self) -> None:
        """An honest no: the peer is alive and well."""
        self.refusals += 1
        self._breaker.succeeded()

    def failed(self, error: str) -> None:
        """Unreachable, silent, or spoke nonsense."""
        self._note_failure(error)
        self._breaker.failed(self._clock())

    def corrupted(self, error: str) -> None:
        """Sent false bytes or a false receipt: no accident on the way, so it counts at once."""
        self._note_failure(error)
        self._breaker.trip(self._clock())

    def _note_failure(self, error: str) -> None:
        self.failures += 1
        self._outcomes.add(0.0)
        self.last_error = error[:_MAX_ERROR_CHARS]
        self.last_error_at = self._wall()

    # --- persistence ---

    def to_bytes(self) -> bytes:
        """What is worth keeping; nothing in flight is."""
        return encode_snapshot(
            Snapshot(
                latency=self._latency.state(),
                latencies=self._latencies.samples(),
                outcomes=tuple(outcome > 0.5 for outcome in self._outcomes.samples()),
                download=self.download.state(),
                upload=self.upload.state(),
                counts=(
                    self.bytes_received,
                    self.bytes_sent,
                    self.requests,
                    self.failures,
                    self.refusals,
                    self.duplicates,
                ),
                breaker=(self._breaker.failures, self._breaker.trips),
                last_error=self.last_error,
                last_error_at=self.last_error_at,
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes, clock: Clock, wall: Clock) -> PeerStats:
        """Raises FormatError on anything `to_bytes` would not write."""
        kept = decode_snapshot(data)
        stats = cls(clock, wall)
        stats._latency.restore(*kept.latency, clock())
        stats._latencies.extend(kept.latencies)
        stats._outcomes.extend(map(float, kept.outcomes))
        stats.download.restore(*kept.download)
        stats.upload.restore(*kept.upload)
        (
            stats.bytes_received,
            stats.bytes_sent,
            stats.requests,
            stats.failures,
            stats.refusals,
            stats.duplicates,
        ) = kept.counts
        stats._breaker.restore(*kept.breaker)
        stats.last_error, stats.last_error_at = kept.last_error, kept.last_error_at
        return stats


class KeyValue(Protocol):
    """A small persistent table, as far as the statistics need one."""

    async def get(self, key: bytes, /) -> bytes | None: ...

    async def put_many(self, items: Sequence[tuple[bytes, bytes]], /) -> None: ...


class PeerStatsTable:
    """`PeerStats` by peer; at most `MAX_PEERS`, the longest untouched goes first.

    Args:
        clock: seconds, for durations and decay.
        wall: Unix seconds, for what people read.
    """

    def __init__(self, *, clock: Clock = time.monotonic, wall: Clock = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._peers: OrderedDict[PeerId, PeerStats] = OrderedDict()
        self._touched: set[PeerId] = set()

    def __getitem__(self, peer: PeerId) -> PeerStats:
        """The statistics of `peer`, to read; of a stranger, empty ones that are not kept."""
        return self._peers.get(peer) or PeerStats(self._clock, self._wall)

    def __iter__(self) -> Iterator[PeerId]:
        return iter(tuple(self._peers))

    def __len__(self) -> int:
        return len(self._peers)

    def of(self, peer: PeerId) -> PeerStats:
        """The statistics of `peer`, to write."""
        stats = self._peers.get(peer)
        if stats is None:
            stats = self._peers[peer] = PeerStats(self._clock, self._wall)
            self._evict()
        self._peers.move_to_end(peer)
        self._touched.add(peer)
        return stats

    def expected_seconds(self, peer: PeerId, size: int, *, upload: bool = False) -> float:
        """(queued bytes + size) / throughput + latency, with presumptions about strangers."""
        return self[peer].expected_seconds(size, upload=upload)

    async def load(self, table: KeyValue, peers: Iterable[PeerId]) -> None:
        """Take over what is kept about `peers`; what this process learned itself stays.

        A record that does not decode is as good as none: statistics are only a hint.
        """
        for peer in peers:
            if peer in self._peers or (data := await table.get(bytes(peer))) is None:
                continue
            try:
                stats = PeerStats.from_bytes(data, self._clock, self._wall)
            except FormatError:
                continue
            self._peers.setdefault(peer, stats)
            self._evict()

    async def save(self, table: KeyValue) -> None:
        """Keep what changed since the last `save`."""
        touched, self._touched = self._touched, set()
        items = [
            (bytes(peer), self._peers[peer].to_bytes())
            for peer in sorted(touched)
            if peer in self._peers
        ]
        try:
            if items:
                await table.put_many(items)
        except BaseException:
            self._touched |= touched
            raise

    def _evict(self) -> None:
        if len(self._peers) <= MAX_PEERS:
            return
        for peer, stats in self._peers.items():
            if not stats.in_flight_requests:
                del self._peers[peer]
                self._touched.discard(peer)
                return
