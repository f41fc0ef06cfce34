"""The chunks of one transfer: which are wanted, found, under way, waiting, done.

    unseen -> looking -> ready -> active -> done
                 ^         ^        |
                 |         +--------+  another holder is left
                 +----- waiting <---+  all holders were tried

State is kept only for chunks between `unseen` and `done`, so a huge file costs a byte per chunk.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Generator, Sequence
from enum import Enum, auto

from ....dht.peer_id import PeerId
from .vocabulary import Answer


class Phase(Enum):
    LOOKING = auto()
    READY = auto()
    ACTIVE = auto()
    WAITING = auto()


class Chunk:
    """One chunk that was looked for and is not done."""

    __slots__ = (
        "answers",
        "attempt",
        "backups",
        "busy_since",
        "here",
        "holders",
        "index",
        "phase",
        "requests",
        "size",
        "steals",
        "tried",
        "wake_at",
    )

    def __init__(self, index: int, size: int) -> None:
        self.index = index
        self.size = size
        self.phase = Phase.LOOKING
        self.here = False
        self.holders: list[PeerId] = []
        self.tried: set[PeerId] = set()
        """Holders that failed in this round."""
        self.answers: dict[PeerId, Answer] = {}
        self.attempt = 0
        self.busy_since: float | None = None
        self.requests: list[int] = []
        """Under way for it: one, or two with a hedge."""
        self.backups = 0
        self.steals = 0
        self.wake_at = 0.0


class Chunks:
    """All chunks of one transfer."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self.first = 0
        self.stop = len(sizes)
        self.known: dict[int, Chunk] = {}
        """Those that were looked for and are not done."""
        self.active: set[int] = set()
        self.waiting: set[int] = set()
        self.patient: set[int] = set()
        """Ready, and all holders that are left are busy."""
        self.begun: set[int] = set()
        """Begun at some time and not done: under way, waiting, or between two holders."""
        self._again: set[int] = set()
        """Ready and begun: before all others."""
        self._ready: list[int] = []
        """A heap of the other ready ones, and some that are so no longer."""
        self._done = bytearray(len(sizes))
        self._left = len(sizes)
        self._seen = 0
        """Everything from `first` to here was looked for, or is done."""

    # --- what is wanted ---

    @property
    def complete(self) -> bool:
        """Whether everything from the reader's place to the end is done."""
        return self._left == 0 and self.stop == len(self.sizes)

    @property
    def missing(self) -> int:
        """Wanted and not done."""
        return self._left

    def is_wanted(self, index: int) -> bool:
        return self.first <= index < self.stop

    def move(self, first: int, stop: int, again: Collection[int]) -> None:
        """Want only `first` to `stop`; `again` is not done after all."""
        for index in again:
            self._done[index] = 0
        before = self.first
        self.first, self.stop = first, max(min(stop, len(self.sizes)), first)
        self._left = self._done.count(0, self.first, self.stop)
        self._seen = max(self._seen, first) if first >= before and not again else first

    def unseen(self, width: int) -> list[int]:
        """Up to `width` chunks nobody has looked for, in order; they are `looking` now."""
        found: list[int] = []
        while self._seen < len(self.sizes) and len(found) < width:
            if not self._done[self._seen] and self._seen not in self.known:
                found.append(self._seen)
                self.known[self._seen] = Chunk(self._seen, self.sizes[self._seen])
            self._seen += 1
        return found

    @property
    def all_seen(self) -> bool:
        return self._seen >= self.stop

    # --- phases ---

    def ready(self, chunk: Chunk) -> None:
        self._leave(chunk)
        chunk.phase = Phase.READY
        if chunk.index in self.begun:
            self._again.add(chunk.index)
        else:
            heapq.heappush(self._ready, chunk.index)

    def activate(self, chunk: Chunk) -> None:
        self._leave(chunk)
        chunk.phase = Phase.ACTIVE
        self.active.add(chunk.index)
        self.begun.add(chunk.index)

    def wait(self, chunk: Chunk, until: float) -> None:
        self._leave(chunk)
        chunk.phase, chunk.wake_at = Phase.WAITING, until
        self.begun.add(chunk.index)
        self.waiting.add(chunk.index)

    def look(self, chunk: Chunk) -> None:
        self._leave(chunk)
        chunk.phase = Phase.LOOKING

    def done(self, index: int) -> None:
        """The chunk is verified: nothing of it is kept but that."""
        self._forget(index)
        if not self._done[index]:
            self._done[index] = 1
            self._left -= self.is_wanted(index)

    def drop(self, index: int) -> None:
        """Forget what is known about a chunk that is not done; it may be looked for again."""
        self._forget(index)
        self._seen = min(self._seen, max(index, self.first))

    def _forget(self, index: int) -> None:
        chunk = self.known.pop(index, None)
        self.begun.discard(index)
        if chunk is not None:
            self._leave(chunk)

    def _leave(self, chunk: Chunk) -> None:
        for phase in (self.active, self.waiting, self.patient, self._again):
            phase.discard(chunk.index)

    # --- reading ---

    @property
    def any_ready(self) -> bool:
        """Whether some chunk may be ready."""
        return bool(self._again or self._ready)

    def take_ready(self) -> Generator[Chunk]:
        """Wanted ready chunks, those begun before first, then by need. Close it after use: those
        that are ready still stay so."""
        for index in sorted(self._again):
            if self.is_wanted(index):
                yield self.known[index]
        passed: set[int] = set()
        try:
            while self._ready and self._ready[0] < self.stop:
                index = heapq.heappop(self._ready)
                chunk = self.known.get(index)
                if index in passed or chunk is None or chunk.phase is not Phase.READY:
                    continue
                passed.add(index)
                if index >= self.first:
                    yield chunk
        finally:
            for index in passed:
                chunk = self.known.get(index)
                if chunk is not None and chunk.phase is Phase.READY and index not in self.begun:
                    heapq.heappush(self._ready, index)
