"""Getting the copies of one chunk made, each by whichever member takes it first.

The copies of a chunk go out side by side, each to the next best member that has room for it (see
`upload_flow.PeerWindows`). Who fails or refuses is replaced by the next candidate at once. Who is
late, when nothing else waits to be sent, is joined by the next candidate, and the first to sign
wins. Zones come before speed: a member of a zone without a copy is only replaced by another such.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import trio

from ...dht.peer_id import PeerId
from ...errors import DeadlineError, MembershipError, PeerError
from ..exchange import Lane
from ..store.protocol import Buffer, Digest
from .context import TransferContext
from .events import ProgressMeter
from .failures import task_group
from .patience import Patience
from .peer_health import PeerHealth
from .placement import Member, rank
from .schedule import EXPLORATION_SHARE
from .tracing import Tracer
from .upload_flow import Lateness, PeerWindows, TurnPart, UploadSlots

_LOOK_AGAIN_SECONDS = 0.25
_SLOWER_FACTOR = 2.0
_SLOWER_SECONDS = 0.05
"""How much longer than the fastest the preferred member may take; differences below are noise."""


@dataclass(slots=True, eq=False)
class Placement:
    """Where copies of one chunk are, besides here."""

    size: int
    holders: dict[PeerId, str] = field(default_factory=dict)
    """peer -> its zone; each gave a receipt."""
    settled: trio.Event = field(default_factory=trio.Event)
    """Set when nothing more is tried."""
    retries: int = 0
    bytes_sent: int = 0
    """Stored bytes sent and acknowledged, over all copies, those that do not count any more
    included."""
    found: int = 0
    """Copies that were there from an earlier put: asked after, not sent."""
    looked_at: float = float("-inf")
    """When members were last looked through for it."""


@dataclass(slots=True)
class Choice:
    """Who could take a copy."""

    usable: deque[Member] = field(default_factory=deque)
    """Best first."""
    resting: list[float] = field(default_factory=list)
    """How long each of the others rests."""
    busy: bool = False
    """Somebody, usable or not, may only have to be waited for."""


@dataclass(slots=True, eq=False)
class _Round:
    """One attempt at the missing copies of a chunk."""

    digest: Digest
    data: Buffer
    placement: Placement
    candidates: deque[Member]
    lane: Lane
    under_way: dict[PeerId, str] = field(default_factory=dict)
    """peer -> its zone; asked, and not answered yet."""


@dataclass(slots=True, eq=False)
class _Race:
    """One copy, wanted of one member, or of a second one as well."""

    runners: int = 0
    won: bool = False
    over: trio.Event = field(default_factory=trio.Event)


class CopyMaker:
    """Makes copies for one put; knows how its peers fare."""

    def __init__(
        self,
        ctx: TransferContext,
        wanted: int,
        meter: ProgressMeter,
        tracer: Tracer,
    ) -> None:
        self._ctx = ctx
        self._wanted = wanted
        self._meter = meter
        self._tracer = tracer
        self.health = PeerHealth(ctx, meter, tracer)
        most = ctx.chunk_settings.max_concurrent_uploads
        # What yields must not hold up what does not.
        self._slots = {lane: UploadSlots(most) for lane in Lane}
        self.lateness = Lateness(ctx.chunk_settings.peer_response_timeout_secs)
        self._windows = PeerWindows(ctx.exchange.stats)
        self.patience = Patience(ctx, self.health, self.lateness, self._windows)
        self._first_seen: dict[PeerId, float] = {}
        """When each member was first there to be asked."""

    def has_newcomers(self, placement: Placement) -> bool:
        """Whether a chunk lacks copies, and a member has come that was never asked for one."""
        if len(placement.holders) >= self._wanted:
            return False
        return any(
            self._first_seen[member.peer] > placement.looked_at
            for member in self._members()
            if member.peer not in placement.holders and not self.health.gone(member.peer)
        )

    def _members(self) -> list[Member]:
        """All members but this node."""
        own, now = self._ctx.self_id, trio.current_time()
        members = [member for member in self._ctx.membership.members() if member.peer != own]
        for member in members:
            self._first_seen.setdefault(member.peer, now)
        return members

    async def fill(
        self, digest: Digest, data: Buffer, placement: Placement, lane: Lane
    ) -> Choice | None:
        """Try to get the missing copies made. None: done, or nobody left to ask; else who is."""
        async with self._slots[lane].turn() as turn:
            usable = self._candidates(digest, len(data), placement).usable
            attempt = _Round(digest, data, placement, usable, lane)
            missing = self._wanted - len(placement.holders)
            parts = [turn.part() for _ in range(min(missing, len(usable)))]
            async with task_group() as tasks:
                for part in parts:
                    tasks.start_soon(self._one_copy, attempt, part)
        if len(placement.holders) >= self._wanted:
            return None
        # All were tried; who is usable now has rested while others were still busy.
        choice = self._candidates(digest, len(data), placement)
        return choice if choice.usable or choice.resting else None

    # --- who ----------------------------------------------------------------------------------

    def _candidates(self, digest: Digest, size: int, placement: Placement) -> Choice:
        zones = {self._ctx.zone, *placement.holders.values()}
        members = [member for member in self._members() if member.peer not in placement.holders]
        placement.looked_at = trio.current_time()
        choice = Choice()
        for member in rank(digest, members, zones, size):
            if self.health.gone(member.peer):
                continue
            choice.busy |= self.health.only_busy(member.peer)
            rest = self.health.rest(member.peer)
            if rest > 0:
                choice.resting.append(rest)
            else:
                choice.usable.append(member)
        return choice

    async def _choose(self, attempt: _Round) -> Member | None:
        """The best candidate that has room, when there is one; None: no candidate is left."""
        size = attempt.placement.size
        while True:
            equals = self._equals(attempt)
            if not equals:
                return None
            able = [member for member in equals if self._windows.room(member.peer, size)]
            if able:
                return self._take(self._suitable(able, size), attempt)
            with self._tracer.phase("peers full"):
                await self._windows.change()

    def _take(self, member: Member, attempt: _Round) -> Member:
        """From now on, not from the first byte on: the next choice must see what zone is taken."""
        attempt.candidates.remove(member)
        attempt.under_way[member.peer] = member.zone
        return member

    def _suitable(self, able: list[Member], size: int) -> Member:
        """The best of those that are not much slower, just now, than the fastest.

        One that was never measured may be as fast as any; and now and then nobody asks who is
        fast, or an old bad measurement would stand for ever.
        """
        ctx, stats = self._ctx, self._ctx.exchange.stats
        if not ctx.chunk_settings.prefer_fast_peers or ctx.rng.random() < EXPLORATION_SHARE:
            return able[0]
        seconds = {
            member.peer: stats.expected_seconds(member.peer, size, upload=True)
            for member in able
            if stats[member.peer].upload.rate() is not None
        }
        bound = _SLOWER_FACTOR * min(seconds.values(), default=0.0) + _SLOWER_SECONDS
        return next((m for m in able if seconds.get(m.peer, 0.0) <= bound), able[0])

    def _equals(self, attempt: _Round) -> list[Member]:
        """Candidates as good as the best one where zones are concerned, best first."""
        for member in list(attempt.candidates):
            if self.health.gone(member.peer) or self.health.occupied(member.peer):
                attempt.candidates.remove(member)
        if not attempt.candidates:
            return []
        best = self._is_new_zone(attempt.candidates[0].zone, attempt)
        return [m for m in attempt.candidates if self._is_new_zone(m.zone, attempt) == best]

    def _is_new_zone(self, zone: str, attempt: _Round, besides: PeerId | None = None) -> bool:
        """Whether no copy is in `zone` or on its way there, `besides` the one to that peer."""
        holding = attempt.placement.holders.values()
        coming = (taken for peer, taken in attempt.under_way.items() if peer != besides)
        return zone != self._ctx.zone and zone not in (*holding, *coming)

    # --- one copy -----------------------------------------------------------------------------

    async def _one_copy(self, attempt: _Round, part: TurnPart) -> None:
        """Get one copy made, by whichever candidate takes it."""
        try:
            while (member := await self._choose(attempt)) is not None:
                if await self._race(member, attempt, part):
                    return
                attempt.placement.retries += bool(attempt.candidates)
        finally:
            part.sent()

    async def _race(self, member: Member, attempt: _Round, part: TurnPart) -> bool:
        """Ask `member`; when it is late, the next one as well or instead. Whether it was made.

        In a lane that yields nobody is late: it may be ours that yields, or the peer's.
        """
        race = _Race()
        began = trio.current_time()
        new_zone = self._is_new_zone(member.zone, attempt, besides=member.peer)
        async with task_group() as tasks:

            async def run(runner: Member) -> None:
                try:
                    if await self._ask(runner, attempt, part):
                        race.won = True
                        tasks.cancel_scope.cancel()
                finally:
                    attempt.under_way.pop(runner.peer, None)
                race.runners -= 1
                if not race.runners:
                    race.over.set()

            race.runners = 1
            tasks.start_soon(run, member)
            if attempt.lane.yields:
                await race.over.wait()
            while not race.over.is_set():
                with trio.move_on_after(_LOOK_AGAIN_SECONDS):
                    await race.over.wait()
                # Anew each time: with the first receipts of the put it is known what is late.
                held_up = self._hold_up(attempt)
                late_after = self.lateness.late_after() + held_up
                if race.over.is_set() or trio.current_time() - began < late_after:
                    continue
                able = self._able(attempt, new_zone=new_zone)
                if able and self._is_silent(member.peer, held_up):
                    self._note_silence(member, attempt.placement.size)
                    tasks.cancel_scope.cancel()  # and on to the next candidate
                elif able and self._may_hedge(attempt):
                    second = self._fastest(able, attempt)
                    self._note_hedge(member, second, attempt.placement.size)
                    race.runners += 1
                    tasks.start_soon(run, second)
                    await race.over.wait()
        return race.won

    def _able(self, attempt: _Round, *, new_zone: bool) -> list[Member]:
        """Who could be asked at once in place of one that is late, and is as good."""
        return [
            member
            for member in attempt.candidates
            if (not new_zone or self._is_new_zone(member.zone, attempt))
            and not self.health.gone(member.peer)
            and self.health.rest(member.peer) <= 0
            and self._windows.room(member.peer, attempt.placement.size)
        ]

    def _hold_up(self, attempt: _Round) -> float:
        """What our own bandwidth limits cost is no fault of a peer's."""
        return self._ctx.exchange.hold_up(attempt.placement.size, upload=True)

    def _is_silent(self, peer: PeerId, held_up: float) -> bool:
        """Whether it should have signed something by now, with a copy that is late."""
        if self.health.was_silent(peer):
            return True  # and is late again, with the first that it was asked for since
        # A slow line takes its time for one chunk; others carry what is under way in a second.
        due = max(self.lateness.silent_after(), self._windows.seconds(peer)) + held_up
        return self.health.silent_for(peer) >= due

    def _may_hedge(self, attempt: _Round) -> bool:
        waits = self._slots[attempt.lane].anybody_waits
        return not waits and self.lateness.may_spend(attempt.placement.size)

    def _fastest(self, able: list[Member], attempt: _Round) -> Member:
        stats, size = self._ctx.exchange.stats, attempt.placement.size
        fastest = min(able, key=lambda m: stats.expected_seconds(m.peer, size, upload=True))
        return self._take(fastest, attempt)

    def _note_silence(self, member: Member, size: int) -> None:
        self.health.silent(member.peer)
        tally = self._tracer.peer(member.peer)
        tally.hedged += 1
        tally.wasted += size
        self._tracer.counts["moved"] += 1

    def _note_hedge(self, late: Member, second: Member, size: int) -> None:
        self.lateness.spend(size)
        tally = self._tracer.peer(late.peer)
        tally.hedged += 1
        tally.wasted += size
        self._tracer.counts["hedges"] += 1
        self._tracer.note(f"was late with a copy; {second.peer.short} was asked too", late.peer)

    async def _ask(self, member: Member, attempt: _Round, part: TurnPart) -> bool:
        """Have `member` make a copy; whether it did."""
        peer, size, settings = member.peer, attempt.placement.size, self._ctx.chunk_settings
        slots, seconds = self._slots[attempt.lane], settings.chunk_timeout_secs
        # How long a lower lane takes is for the higher ones to say; a peer that is silent in it
        # still runs into the deadlines of the exchange.
        most = math.inf if attempt.lane.yields else seconds + self._hold_up(attempt)
        began = trio.current_time()
        moved = 0

        def sent() -> None:
            nonlocal moved
            moved = size
            part.sent()

        self.health.began(peer)
        self._windows.begin(peer, size)
        try:
            with (
                self._tracer.asking(peer) as tally,
                trio.move_on_after(most) as limit,
            ):
                receipt = await self._ctx.exchange.put(
                    peer,
                    attempt.digest,
                    attempt.data,
                    first_byte_timeout=settings.peer_response_timeout_secs,
                    on_sent=sent,
                    lane=attempt.lane,
                )
        except (PeerError, MembershipError, DeadlineError) as error:
            if isinstance(error, DeadlineError):
                slots.timed_out(began)
            self.health.failed(peer, began, error)
            return False
        finally:
            self.health.ended(peer)
            self._windows.end(peer, size)
        if limit.cancelled_caught:
            reason = f"did not take a chunk within {seconds:g} s"
            self._ctx.exchange.stats.of(peer).failed(reason)
            slots.timed_out(began)
            self.health.failed(peer, began, DeadlineError(f"{reason}."))
            return False
        took = trio.current_time() - began
        self.health.took(peer)
        slots.acknowledged(size)
        if not attempt.lane.yields:
            self.lateness.took(took)
        tally.nbytes += size
        tally.slowest = max(tally.slowest, took)
        attempt.placement.holders[peer] = member.zone
        attempt.placement.bytes_sent += moved
        self._ctx.journal.copied(receipt)
        self._meter.advance(sent=moved, held=size)
        return True
