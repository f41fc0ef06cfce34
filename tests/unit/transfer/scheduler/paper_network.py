"""A scheduler driven on paper: peers with a rate, a round trip and faults, on an event heap.

Every step checks what must always hold, so that any test that runs it tests that too.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from meshnode.dht.peer_id import PeerId
from meshnode.node.transfer.scheduler import (
    Ask,
    Came,
    Cancel,
    Event,
    Failed,
    Fault,
    Finished,
    Found,
    GiveUp,
    HereFailed,
    LookUp,
    Policy,
    ReadHere,
    Scheduler,
    Verified,
    Why,
)

KIB = 1024


def peer_id(number: int) -> PeerId:
    return PeerId.from_ed25519(random.Random(number).randbytes(32))


@dataclass
class PaperScore:
    """What earlier transfers taught; nothing by default."""

    latency: float | None = None
    latency_p95: float | None = None
    throughput: float | None = None
    in_flight_bytes: int = 0
    last_error: str = ""
    closed_until: float = 0.0
    failures: int = 0
    clock: list[float] = field(default_factory=lambda: [0.0])

    @property
    def retry_in(self) -> float:
        return max(self.closed_until - self.clock[0], 0.0)

    def allows(self) -> bool:
        return self.clock[0] >= self.closed_until


@dataclass
class PaperPeer:
    """One peer: serves what it is asked in order, `rate` bytes per second, after a round trip."""

    id: PeerId
    rate: float = 10e6
    latency: float = 0.01
    fails: float = 0.0
    """Share of requests that break."""
    corrupt: float = 0.0
    busy_above: int | None = None
    freezes_at: float = float("inf")
    """It sends nothing from then on; the exchange gives up after the response timeout."""
    lacks: frozenset[int] = frozenset()
    score: PaperScore = field(default_factory=PaperScore)
    free_at: float = 0.0
    serving: int = 0
    sent: int = 0


class PaperNetwork:
    """Runs one scheduler to its end."""

    def __init__(
        self,
        peers: Sequence[PaperPeer],
        sizes: Sequence[int],
        *,
        policy: Policy | None = None,
        seed: int = 0,
        here: frozenset[int] = frozenset(),
        open_ended: bool = False,
    ) -> None:
        self.peers = {peer.id: peer for peer in peers}
        self.sizes = sizes
        self.policy = policy or Policy()
        self.rng = random.Random(seed)
        self.here = here
        self.now = 0.0
        self.clock = [0.0]
        for peer in peers:
            peer.score.clock = self.clock
        self.scheduler = Scheduler(
            sizes, self.policy, self, rng=self.rng, now=0.0, open_ended=open_ended
        )
        self.heap: list[tuple[float, int, Event]] = []
        self.serial = 0
        self.under_way: dict[int, Ask] = {}
        self.just_over: set[int] = set()
        """Requests that came to their end in events the scheduler is just being told."""
        self.reading: set[int] = set()
        self.verified: list[int] = []
        self.asked: list[Ask] = []
        self.asked_at: dict[int, float] = {}
        self.lookups: list[LookUp] = []
        self.shed: set[PeerId] = set()
        self.asked_of_shed = 0
        self.ended: Finished | GiveUp | None = None
        self.most_under_way = 0
        self.most_bytes = 0
        self.before = 0
        self.bytes_twice = 0
        self.answers: Counter[int] = Counter()

    def __getitem__(self, peer: PeerId) -> PaperScore:
        return self.peers[peer].score

    # --- running ---

    def run(self, *, until: float = 1e6, steps: int = 200_000) -> None:
        self.step([])
        for _ in range(steps):
            if self.ended is not None or self.now >= until:
                return
            wake = self.scheduler.wake_at()
            at = min(self.heap[0][0] if self.heap else float("inf"), wake or float("inf"))
            assert at < float("inf"), "it waits for nothing"
            self.now = max(self.now, at)
            self.clock[0] = self.now
            events: list[Event] = []
            self.just_over.clear()
            while self.heap and self.heap[0][0] <= self.now:
                event = heapq.heappop(self.heap)[2]
                if self._happens(event):
                    events.append(event)
            self.step(events)
        raise AssertionError("it does not end")

    def step(self, events: Sequence[Event]) -> None:
        for decision in self.scheduler.step(self.now, events):
            assert self.ended is None, "something follows the last decision"
            match decision:
                case Ask():
                    self._ask(decision)
                case Cancel(request=ident):
                    self._cancel(ident)
                case ReadHere(chunk=index):
                    assert index in self.here
                    self.reading.add(index)
                    ok = self.rng.random() < 0.7
                    self.later(0.001, Verified(index, None) if ok else HereFailed(index))
                case LookUp():
                    self._look_up(decision)
                case Finished() | GiveUp():
                    self.ended = decision
        self._check()

    def later(self, seconds: float, event: Event) -> None:
        self.serial += 1
        heapq.heappush(self.heap, (self.now + seconds, self.serial, event))

    # --- what the world does ---

    def _ask(self, ask: Ask) -> None:
        assert ask.peer in self.peers, "an unknown peer"
        assert 0 <= ask.chunk < len(self.sizes), "an unknown chunk"
        assert ask.request not in self.asked_at, "a request number used twice"
        self.asked_of_shed += ask.peer in self.shed
        self.asked.append(ask)
        self.asked_at[ask.request] = self.now
        self.under_way[ask.request] = ask
        peer, size = self.peers[ask.peer], self.sizes[ask.chunk]
        peer.serving += 1
        draw = self.rng.random()
        if peer.busy_above is not None and peer.serving > peer.busy_above:
            self.later(peer.latency, Failed(ask.request, Fault.BUSY, "busy", 0.2))
        elif ask.chunk in peer.lacks:
            self.later(peer.latency, Failed(ask.request, Fault.ABSENT, "not_found"))
        elif draw < peer.fails:
            self.later(peer.latency, Failed(ask.request, Fault.FAILED, "cut off"))
        else:
            self._serve(ask, peer, size, corrupt=draw < peer.fails + peer.corrupt)

    def _serve(self, ask: Ask, peer: PaperPeer, size: int, *, corrupt: bool) -> None:
        start = max(self.now + peer.latency, peer.free_at)
        peer.free_at = end = start + size / peer.rate
        if end >= peer.freezes_at:
            if start < peer.freezes_at:
                part = int((peer.freezes_at - start) * peer.rate)
                self._at(peer.freezes_at, Came(ask.request, part, peer.freezes_at))
            silent_at = max(self.now, peer.freezes_at) + self.policy.response_timeout
            self._at(silent_at, Failed(ask.request, Fault.FAILED, "silent"))
            return
        self._at(start, Came(ask.request, 0, start))
        half = (start + end) / 2
        self._at(half, Came(ask.request, size // 2, half))
        last = Failed(ask.request, Fault.CORRUPT, "false bytes")
        self._at(end, last if corrupt else Verified(ask.chunk, ask.request))

    def _at(self, at: float, event: Event) -> None:
        self.later(max(at - self.now, 0.0), event)

    def _happens(self, event: Event) -> bool:
        """Whether the event still happens; notes what it means."""
        match event:
            case Came(request=ident):
                return ident in self.under_way
            case Verified(chunk=index, request=None):
                self.reading.discard(index)
                self.verified.append(index)
            case HereFailed(chunk=index):
                self.reading.discard(index)
            case Verified(chunk=index, request=int(ident)):
                if ident not in self.under_way:
                    return False
                ask = self._over(ident)
                self.peers[ask.peer].sent += self.sizes[index]
                self.peers[ask.peer].score.failures = 0
                self.verified.append(index)
            case Failed(request=ident, fault=fault):
                if ident not in self.under_way:
                    return False
                ask = self._over(ident)
                self._score(ask.peer, fault)
        return True

    def _score(self, peer: PeerId, fault: Fault) -> None:
        score = self.peers[peer].score
        if fault is Fault.CORRUPT:
            self.shed.add(peer)
        if fault in (Fault.FAILED, Fault.TIMED_OUT):
            score.failures += 1
            score.last_error = "cut off"
            if score.failures >= 3:
                score.closed_until = self.now + 1.0

    def _over(self, ident: int) -> Ask:
        ask = self.under_way.pop(ident)
        self.just_over.add(ident)
        self.peers[ask.peer].serving -= 1
        return ask

    def _cancel(self, ident: int) -> None:
        if ident in self.just_over:
            return  # in the same instant as what it is cancelled for
        assert ident in self.under_way, "cancels what is not under way"
        ask = self._over(ident)
        self.just_over.discard(ident)
        if ask.why in (Why.HEDGE, Why.ENDGAME) or ask.chunk in self.verified:
            self.bytes_twice += self.sizes[ask.chunk]

    def _look_up(self, decision: LookUp) -> None:
        self.lookups.append(decision)
        holders = {index: list(self.peers) for index in decision.chunks}
        here = [] if decision.fresh else [i for i in decision.chunks if i in self.here]
        self.later(0.005, Found(holders, here))

    # --- what must always hold ---

    def _check(self) -> None:
        asks = Counter(ask.chunk for ask in self.under_way.values())
        for index, count in asks.items():
            assert count <= 2, "more than two owners"
            whys = [a.why for a in self.under_way.values() if a.chunk == index]
            assert count == 1 or Why.HEDGE in whys or Why.ENDGAME in whys
            assert index not in self.verified, "asked for what is here"
            pairs = [a.peer for a in self.under_way.values() if a.chunk == index]
            assert len(set(pairs)) == count, "the same peer twice"
        chunks = asks.keys() | self.reading
        # When the limit has just been lowered, what is under way ends by and by.
        assert len(chunks) <= max(self.scheduler.most_chunks, self.before)
        self.before = len(chunks)
        self.most_under_way = max(self.most_under_way, len(chunks))
        nbytes = sum(self.sizes[ask.chunk] for ask in self.under_way.values())
        assert nbytes <= self.policy.most_bytes or len(self.under_way) == 1
        self.most_bytes = max(self.most_bytes, nbytes)
        if self.policy.most_chunks == 1:
            assert len(self.under_way) <= 1
        if self.ended is not None:
            assert not self.under_way, "something is under way after the end"
        assert self.asked_of_shed == 0, "asked a peer that sent false bytes"
