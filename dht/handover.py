"""Passing on what this node keeps: to a newcomer that is nearer, and to its heirs when it leaves.

A node may pass on what it keeps, never speak for it: chunk records go as hints, values with the
time they have left. See `handover_answers` for the side that receives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from ..errors import MembershipError, PeerError
from .context import DhtContext
from .handover_wire import MAX_HINTED_PEERS, MAX_VALUES, MAX_VALUES_BYTES, Hint, MovedValue
from .keyspace import chunk_position, peer_position, position
from .locator import Locator
from .mailboxes import Mailboxes
from .patience import Patience
from .peer_id import PeerId
from .records import ChunkRecords
from .settings import MAX_KEYS_PER_MESSAGE
from .values import ValueStore

_PARALLEL = 16
_SLICE = 500
_SAMPLED_KEYS = 256
_HANDERS_PER_KEY = 2
_ADDRESSES_PER_HINT = 4
_VALUE_OVERHEAD = 160


@dataclass(frozen=True, slots=True)
class HandoverReport:
    """What was passed on: `records` as hints that were taken, `values` that were kept.

    `due` is how many of both should have moved, to `peers`, of whom `failed` did not take them;
    `complete`: there was time for all of it.
    """

    due: int
    records: int
    values: int
    peers: int
    failed: int
    seconds: float
    complete: bool


@dataclass(slots=True)
class _Load:
    """What one peer is to receive, in the order of sending."""

    last_copies: list[MovedValue] = field(default_factory=list)
    """Values whose publisher is gone: nobody else repeats them."""
    records: list[tuple[int, PeerId, bytes]] = field(default_factory=list)
    """(distance from us, publisher, digest)."""
    values: list[MovedValue] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.last_copies) + len(self.records) + len(self.values)


@dataclass(slots=True)
class _Tally:
    loads: dict[PeerId, _Load] = field(default_factory=dict)
    records: int = 0
    values: int = 0
    failed: set[PeerId] = field(default_factory=set)
    complete: bool = False


_Heirs = Callable[[int, PeerId], Sequence[PeerId]]
"""(position of a key, publisher of what is kept there) -> whom to pass it on to."""


class Handover:
    """Gives others what they have become responsible for."""

    def __init__(
        self,
        context: DhtContext,
        locator: Locator,
        chunks: ChunkRecords,
        values: ValueStore,
        mailboxes: Mailboxes,
    ) -> None:
        self._own = context.own
        self._client = context.client
        self._contacts = context.contacts
        self._settings = context.settings
        self._counters = context.counters
        self._wall_clock = context.wall_clock
        self._locator = locator
        self._chunks = chunks
        self._values = values
        self._mailboxes = mailboxes
        self._patience = Patience(context.counters)
        self._passed_on: dict[PeerId, float] = {}
        """When (trio time) a peer was given what it is responsible for."""

    def not_new(self, peers: Iterable[PeerId]) -> None:
        """These were members before this run, and have what they are responsible for."""
        self._passed_on.update(dict.fromkeys(peers, trio.current_time()))

    async def to_newcomers(self, peers: Collection[PeerId]) -> HandoverReport:
        """Pass on what these peers are responsible for, to those that did not get it lately.

        Of the nodes that keep a record, the two nearest to its key pass it on. In a mesh where
        everybody knows everybody, living publishers offer their records themselves.
        """
        began = trio.current_time()
        self._forget_before(began - self._settings.republish / 2)
        newcomers = {peer for peer in peers if peer not in self._passed_on}
        if not newcomers:
            return self._report(_Tally(complete=True), began)
        await self._look_around()
        index, k = self._locator.index(), self._settings.k
        all_offer, alive = self._locator.knows_everybody, self._locator.everyone()

        def heirs(target: int, publisher: PeerId) -> Sequence[PeerId]:
            # Cheap for nearly all keys: we are seldom that near.
            if not index.is_among_closest(self._own, target, _HANDERS_PER_KEY + len(newcomers)):
                return ()
            if all_offer and publisher in alive:
                return ()
            near = index.closest(target, k)
            old = [peer for peer in near if peer not in newcomers and peer != publisher]
            if self._own not in old[:_HANDERS_PER_KEY]:
                return ()
            return [peer for peer in near if peer in newcomers and peer != publisher]

        tally = _Tally(complete=True)
        await self._gather(tally.loads, heirs)
        await self._send_all(tally)
        self._passed_on.update(dict.fromkeys(newcomers - tally.failed, began))
        return self._report(tally, began)

    async def before_leaving(self, within: float) -> HandoverReport:
        """Give the nodes that take our place what we keep, in `within` seconds at most.

        Values whose publisher is gone go first, then records, nearest first, then other values. In
        a mesh of no more than k nodes everybody keeps everything, and nothing has to move.
        """
        began = trio.current_time()
        with trio.move_on_after(within / 4):
            await self._look_around()
        index, k = self._locator.index(), self._settings.k

        def heirs(target: int, publisher: PeerId) -> Sequence[PeerId]:
            if not index.is_among_closest(self._own, target, k):
                return ()
            last = index.closest(target, k + 1)[-1]
            return () if last == publisher else [last]

        tally = _Tally()
        with trio.move_on_at(began + within):
            with trio.move_on_at(began + within / 2) as gathering:
                if len(index) > k:
                    await self._gather(tally.loads, heirs)
            await self._send_all(tally)
            tally.complete = not gathering.cancelled_caught
        return self._report(tally, began)

    # --- what goes where ----------------------------------------------------------------------

    async def _look_around(self) -> None:
        """Learn who else is near what we keep: a node knows well only who is near itself."""
        keys = [digest for _, digests in self._chunks.by_publisher() for digest in digests]
        step = max(1, len(keys) // _SAMPLED_KEYS)
        if keys:
            await self._locator.locate([chunk_position(digest) for digest in keys[::step]])

    async def _gather(self, loads: dict[PeerId, _Load], heirs_of: _Heirs) -> None:
        """Sort everything kept for others by whom it goes to; a slice at a time, as it is much."""
        now = self._wall_clock()
        alive = self._locator.everyone()
        own = peer_position(self._own)
        visited = 0
        # Values first: should time run out, nobody else may have them.
        for publisher, moved in self._kept_values(now):
            for heir in heirs_of(position(moved.key), publisher):
                load = loads.setdefault(heir, _Load())
                (load.values if publisher in alive else load.last_copies).append(moved)
            visited += 1
            if visited % _SLICE == 0:
                await trio.lowlevel.checkpoint()
        for publisher, digests in self._chunks.by_publisher():
            if self._contacts.is_down(publisher):
                # It could not confirm that it still holds anything.
                continue
            for digest in digests:
                target = chunk_position(digest)
                for heir in heirs_of(target, publisher):
                    load = loads.setdefault(heir, _Load())
                    load.records.append((target ^ own, publisher, digest))
                visited += 1
                if visited % _SLICE == 0:
                    await trio.lowlevel.checkpoint()

    def _kept_values(self, now: float) -> Iterable[tuple[PeerId, MovedValue]]:
        for key, kept in self._values.kept(now):
            ttl = max(1, int(kept.expires - now))
            yield kept.checked.signer or kept.publisher, MovedValue(key, ttl, kept.value)
        for key, letter in self._mailboxes.kept(now):
            ttl = max(1, int(letter.expires - now))
            yield letter.notice.sender, MovedValue(key, ttl, letter.notice.encoded)

    # --- sending ------------------------------------------------------------------------------

    async def _send_all(self, tally: _Tally) -> None:
        limiter = trio.CapacityLimiter(_PARALLEL)

        async def send(peer: PeerId, load: _Load) -> None:
            async with limiter:
                try:
                    await self._send(peer, load, tally)
                except (PeerError, MembershipError):
                    tally.failed.add(peer)

        async with trio.open_nursery() as nursery:
            for peer, load in tally.loads.items():
                nursery.start_soon(send, peer, load)

    async def _send(self, peer: PeerId, load: _Load, tally: _Tally) -> None:
        await self._send_values(peer, load.last_copies, tally)
        load.records.sort()
        for hints in self._messages(load.records):
            ask = partial(self._client.hint, peer, hints)
            taken = await self._patience.ask(peer, ask)
            tally.records += taken
        await self._send_values(peer, load.values, tally)

    async def _send_values(self, peer: PeerId, values: list[MovedValue], tally: _Tally) -> None:
        for batch in _batches(values):
            ask = partial(self._client.move_values, peer, batch)
            kept = await self._patience.ask(peer, ask)
            tally.values += kept

    def _messages(self, records: list[tuple[int, PeerId, bytes]]) -> Iterable[list[Hint]]:
        """Records as messages within the bounds of the wire, in the order given."""
        for start in range(0, len(records), MAX_KEYS_PER_MESSAGE):
            groups: dict[PeerId, list[bytes]] = {}
            for _, publisher, digest in records[start : start + MAX_KEYS_PER_MESSAGE]:
                groups.setdefault(publisher, []).append(digest)
            hints = [
                Hint(known.peer, known.addresses[:_ADDRESSES_PER_HINT], tuple(groups[known.peer]))
                for known in self._contacts.describe(groups)
            ]
            for first in range(0, len(hints), MAX_HINTED_PEERS):
                yield hints[first : first + MAX_HINTED_PEERS]

    # --- accounts -----------------------------------------------------------------------------

    def _forget_before(self, oldest: float) -> None:
        """Whoever has been away for long is as good as new."""
        table = self._contacts.table
        kept = {peer: at for peer, at in self._passed_on.items() if at > oldest or peer in table}
        self._passed_on = kept

    def _report(self, tally: _Tally, began: float) -> HandoverReport:
        self._counters.add("hints_sent", tally.records)
        self._counters.add("values_moved", tally.values)
        return HandoverReport(
            sum(len(load) for load in tally.loads.values()),
            tally.records,
            tally.values,
            len(tally.loads),
            len(tally.failed),
            trio.current_time() - began,
            tally.complete,
        )


def _batches(values: list[MovedValue]) -> Iterable[list[MovedValue]]:
    """Values as messages within the bounds of the wire."""
    batch: list[MovedValue] = []
    room = MAX_VALUES_BYTES
    for moved in values:
        size = len(moved.value) + len(moved.key) + _VALUE_OVERHEAD
        if batch and (size > room or len(batch) == MAX_VALUES):
            yield batch
            batch, room = [], MAX_VALUES_BYTES
        batch.append(moved)
        room -= size
    if batch:
        yield batch
