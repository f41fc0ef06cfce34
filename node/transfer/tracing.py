"""Records where the time of one transfer goes, cheaply enough for every chunk.

Phases are entered and left by the tasks that work or wait; only the number of tasks in each is
kept, so that a phase costs two additions however many tasks are in it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from ...dht.peer_id import PeerId
from .trace import MAX_NOTES, MAX_PEERS, Note, PeerPart, Phase, Trace, TransferKind

_HALF = MAX_NOTES // 2


@dataclass(slots=True)
class _Running:
    tasks: int = 0
    busy: float = 0.0
    share: float = 0.0
    times: int = 0


@dataclass(slots=True, eq=False)
class PeerTally:
    """What a peer did so far; see `PeerPart`. Add to the fields directly."""

    requests: int = 0
    nbytes: int = 0
    slowest: float = 0.0
    failures: int = 0
    refusals: int = 0
    hedged: int = 0
    wasted: int = 0
    corrupt: int = 0
    resting: float = 0.0
    last_error: str = ""
    gave_up: str = ""
    busy: float = 0.0
    under_way: int = 0
    since: float = 0.0


class Tracer:
    """The trace of one transfer while it runs.

    Args:
        clock: seconds, for durations.
        wall: Unix seconds, for what people read.
    """

    def __init__(
        self,
        kind: TransferKind,
        name: str = "",
        *,
        clock: Callable[[], float] = trio.current_time,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.kind = kind
        self.name = name
        self.root = b""
        self.more_roots: tuple[bytes, ...] = ()
        self.size = 0
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._wall_began = wall()
        self._began = self._last = clock()
        self._phases: dict[str, _Running] = {}
        self._active: list[_Running] = []
        self._peers: dict[PeerId, PeerTally] = {}
        self._first_notes: list[Note] = []
        self._last_notes: list[Note] = []
        self._notes = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """For the length of the block one more task is in phase `name`."""
        self._advance()
        running = self._phases.setdefault(name, _Running())
        running.times += 1
        running.tasks += 1
        if running.tasks == 1:
            self._active.append(running)
        try:
            yield
        finally:
            self._advance()
            running.tasks -= 1
            if not running.tasks:
                self._active.remove(running)

    @contextmanager
    def asking(self, peer: PeerId, phase: str = "peers") -> Iterator[PeerTally]:
        """A request to `peer` is under way for the length of the block."""
        tally = self.peer(peer)
        tally.requests += 1
        tally.under_way += 1
        if tally.under_way == 1:
            tally.since = self._clock()
        try:
            with self.phase(phase):
                yield tally
        finally:
            tally.under_way -= 1
            if not tally.under_way:
                tally.busy += self._clock() - tally.since

    def peer(self, peer: PeerId) -> PeerTally:
        tally = self._peers.get(peer)
        if tally is None:
            tally = self._peers[peer] = PeerTally()
        return tally

    def note(self, text: str, peer: PeerId | None = None) -> None:
        """Something worth telling afterwards; only the first and the last of many are kept."""
        note = Note(self._clock() - self._began, text, peer)
        self._notes += 1
        if len(self._first_notes) < _HALF:
            self._first_notes.append(note)
            return
        self._last_notes.append(note)
        if len(self._last_notes) > _HALF:
            del self._last_notes[0]

    def finish(self, outcome: str, *, error: str = "", hint: str = "") -> Trace:
        """The trace as of now; more may be recorded, and `finish` called again."""
        self._advance()
        notes = (*self._first_notes, *self._last_notes)
        return Trace(
            kind=self.kind,
            name=self.name,
            root=self.root,
            began=self._wall_began,
            seconds=self._last - self._began,
            outcome=outcome,
            size=self.size,
            phases=tuple(
                Phase(name, found.busy, found.share, found.times)
                for name, found in self._phases.items()
            ),
            peers=self._parts(),
            notes=notes,
            lost_notes=self._notes - len(notes),
            counts=dict(self.counts),
            error=error,
            hint=hint,
            more_roots=self.more_roots,
        )

    def _parts(self) -> tuple[PeerPart, ...]:
        def weight(item: tuple[PeerId, PeerTally]) -> tuple[int, int]:
            return item[1].nbytes, item[1].failures + item[1].refusals

        by_bytes = sorted(self._peers.items(), key=weight, reverse=True)
        failing = sorted(by_bytes, key=lambda item: item[1].failures, reverse=True)
        # Half of the places for those who did the work, the others for those who did not.
        chosen = dict(by_bytes[: MAX_PEERS // 2])
        for peer, tally in failing:
            if len(chosen) == MAX_PEERS:
                break
            chosen[peer] = tally
        return tuple(self._part(peer, tally) for peer, tally in chosen.items())

    def _part(self, peer: PeerId, tally: PeerTally) -> PeerPart:
        running = self._last - tally.since if tally.under_way else 0.0
        return PeerPart(
            peer=peer,
            requests=tally.requests,
            nbytes=tally.nbytes,
            busy=tally.busy + running,
            slowest=tally.slowest,
            failures=tally.failures,
            refusals=tally.refusals,
            hedged=tally.hedged,
            wasted=tally.wasted,
            corrupt=tally.corrupt,
            resting=tally.resting,
            last_error=tally.last_error,
            gave_up=tally.gave_up,
        )

    def _advance(self) -> None:
        now = self._clock()
        elapsed, self._last = now - self._last, now
        if not elapsed or not self._active:
            return
        share = elapsed / len(self._active)
        for running in self._active:
            running.busy += elapsed
            running.share += share
