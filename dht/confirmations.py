"""Believing hints: a chunk record is stored when its publisher itself says that it holds the chunk.

Hints are cheap to make up, so they must not make this node flood a publisher or remember without
bound: they wait in bounded queues, each publisher is asked in batches and not more often than every
few seconds, and a peer whose hints prove false is not listened to for a while.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

import structlog
import trio

from ..errors import MembershipError, PeerError
from .context import DhtContext
from .peer_id import PeerId
from .records import ChunkRecords
from .records_wire import Verdict

_WORKERS = 4
_BATCH = 2048
_PUBLISHER_RESTS = 5.0
_RESTS_AFTER_FAILURE = 30.0
_TRIES = 3
_MAX_WAITING = 131_072
_MAX_WAITING_PER_PEER = 32_768
_JUDGED_FROM = 128
_IGNORED_FOR = 600.0
_FORGET_ABOVE = 1024

_log = structlog.get_logger("meshnode.dht")


@dataclass(slots=True)
class _Publisher:
    """Whom to ask, when, and about what (digest -> who hinted at it)."""

    waiting: dict[bytes, PeerId]
    asked: dict[bytes, PeerId]
    next_at: float
    failures: int = 0


@dataclass(slots=True)
class _Hinter:
    """How often a peer's hints proved right, and until when it is ignored."""

    waiting: int = 0
    right: int = 0
    wrong: int = 0
    ignored_until: float = -inf


class Confirmations:
    """Hints on their way to become records."""

    def __init__(self, context: DhtContext, chunks: ChunkRecords) -> None:
        self._own = context.own
        self._client = context.client
        self._counters = context.counters
        self._settings = context.settings
        self._wall_clock = context.wall_clock
        self._chunks = chunks
        self._publishers: dict[PeerId, _Publisher] = {}
        self._hinters: dict[PeerId, _Hinter] = {}
        self._waiting = 0
        self._wake = trio.Event()

    @property
    def waiting(self) -> int:
        """Hints that are still to be confirmed."""
        return self._waiting

    def ignored_for(self, hinter: PeerId) -> float:
        """Seconds for which this peer's hints are not listened to; 0 when they are."""
        known = self._hinters.get(hinter)
        return 0.0 if known is None else max(0.0, known.ignored_until - trio.current_time())

    def add(self, hinter: PeerId, publisher: PeerId, digests: Iterable[bytes]) -> int:
        """Take hints that `publisher` holds `digests`; returns how many will be asked about."""
        by = self._hinters.setdefault(hinter, _Hinter())
        entry = self._publishers.get(publisher)
        if entry is None:
            entry = self._publishers[publisher] = _Publisher({}, {}, trio.current_time())
        taken = 0
        for digest in digests:
            if self._is_full(by, entry):
                self._counters.add("hints_dropped")
            elif digest not in entry.waiting and digest not in entry.asked:
                entry.waiting[digest] = hinter
                by.waiting += 1
                self._waiting += 1
                taken += 1
        self._wake.set()
        return taken

    def _is_full(self, by: _Hinter, entry: _Publisher) -> bool:
        mine = max(by.waiting, len(entry.waiting))
        return self._waiting >= _MAX_WAITING or mine >= _MAX_WAITING_PER_PEER

    def withdrawn(self, publisher: PeerId, digests: Iterable[bytes]) -> None:
        """`publisher` withdraws: what it may confirm from now on was asked before that."""
        entry = self._publishers.get(publisher)
        if entry is not None:
            for digest in digests:
                entry.asked.pop(digest, None)
                if (hinter := entry.waiting.pop(digest, None)) is not None:
                    self._no_longer_waiting([hinter])

    async def run(self) -> None:
        """Ask publishers until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(_WORKERS):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        while True:
            publisher = self._due()
            if publisher is not None:
                await self._ask(publisher)
                continue
            self._wake = trio.Event() if self._wake.is_set() else self._wake
            idle = [e.next_at for e in self._publishers.values() if e.waiting and not e.asked]
            with trio.move_on_at(min(idle, default=inf)):
                await self._wake.wait()

    def _due(self) -> PeerId | None:
        now = trio.current_time()
        for publisher, entry in self._publishers.items():
            if entry.waiting and not entry.asked and entry.next_at <= now:
                return publisher
        if len(self._publishers) > _FORGET_ABOVE:
            self._publishers = {
                publisher: entry
                for publisher, entry in self._publishers.items()
                if entry.waiting or entry.asked or entry.next_at > now
            }
        return None

    async def _ask(self, publisher: PeerId) -> None:
        entry = self._publishers[publisher]
        digests = list(entry.waiting)[:_BATCH]
        entry.asked = {digest: entry.waiting.pop(digest) for digest in digests}
        self._no_longer_waiting(entry.asked.values())
        entry.next_at = trio.current_time() + _PUBLISHER_RESTS
        try:
            self._counters.add("hints_asked", len(digests))
            zone, sizes = await self._client.still_held(publisher, digests)
        except (PeerError, MembershipError):
            self._failed(publisher, entry)
        except Exception as error:  # noqa: BLE001 - task boundary: the next publisher may do better
            self._counters.add("upkeep_crashes")
            _log.error("dht_hints_crashed", error=repr(error), exc_info=error)
        else:
            entry.failures = 0
            self._settle(publisher, entry, zone, dict(zip(digests, sizes, strict=True)))
        finally:
            entry.asked = {}
            self._wake.set()

    def _settle(
        self, publisher: PeerId, entry: _Publisher, zone: str, sizes: dict[bytes, int | None]
    ) -> None:
        expires = self._wall_clock() + self._settings.record_ttl
        confirmed: list[bytes] = []
        # What was withdrawn while the question was under way is no longer among the asked.
        for digest, hinter in entry.asked.items():
            true = sizes[digest] is not None
            self._judge(hinter, right=int(true), wrong=int(not true))
            if true:
                confirmed.append(digest)
        told = [sizes[digest] or 0 for digest in confirmed]
        verdicts = self._chunks.put_all(publisher, zone, confirmed, told, expires)
        self._counters.add("hints_confirmed", verdicts.count(Verdict.STORED))

    def _failed(self, publisher: PeerId, entry: _Publisher) -> None:
        """Try again a little later; after three times whoever hinted was wrong."""
        entry.failures += 1
        if entry.failures < _TRIES:
            entry.next_at = trio.current_time() + _RESTS_AFTER_FAILURE
            entry.waiting = {**entry.asked, **entry.waiting}
            for hinter in entry.asked.values():
                self._hinters.setdefault(hinter, _Hinter()).waiting += 1
            self._waiting += len(entry.asked)
            return
        given_up = [*entry.asked.values(), *entry.waiting.values()]
        self._no_longer_waiting(entry.waiting.values())
        entry.waiting = {}
        entry.failures = 0
        self._counters.add("hints_dropped", len(given_up))
        for hinter, count in Counter(given_up).items():
            self._judge(hinter, right=0, wrong=count)

    def _judge(self, hinter: PeerId, *, right: int, wrong: int) -> None:
        known = self._hinters.setdefault(hinter, _Hinter())
        known.right += right
        known.wrong += wrong
        judged = known.right + known.wrong
        if judged >= _JUDGED_FROM and known.wrong > known.right:
            known.ignored_until = trio.current_time() + _IGNORED_FOR
            known.right = known.wrong = 0
            self._counters.add("hinters_ignored")
        elif judged >= 8 * _JUDGED_FROM:
            known.right //= 2
            known.wrong //= 2

    def _no_longer_waiting(self, hinters: Iterable[PeerId]) -> None:
        for hinter in hinters:
            self._waiting -= 1
            self._hinters[hinter].waiting -= 1
        if len(self._hinters) > _FORGET_ABOVE:
            now = trio.current_time()
            self._hinters = {
                peer: known
                for peer, known in self._hinters.items()
                if known.waiting or known.ignored_until > now
            }
