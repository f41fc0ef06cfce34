"""Keeps the member map of this node equal to everybody else's, and tells the mesh of ourselves.

Two ways, as in Demers et al., "Epidemic algorithms for replicated database maintenance" (1987).
News (a member came, moved or left) is passed on at once to a few random members by whoever it is
news to, which reaches nearly all in O(log N) steps. And every round one other member's map is
compared with ours, which finds what news missed, and spreads the repeated records of those that
have nothing new to say.

Suspicion is handled as in SWIM (Das et al. 2002), without believing it: whoever finds that a member
does not answer says so, and those who hear it look for themselves.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import structlog
import trio

from ..errors import FormatError, MembershipError, MeshError, PeerError, PeerRefusedError
from .backend import Row
from .boundary import as_peer_error
from .budget import KeyBudget
from .census import Census, Mode
from .context import DhtContext
from .gossip_wire import (
    MAX_PEERS_FRAME,
    MAX_RECORDS,
    MAX_ROWS,
    MAX_SUSPECTS,
    MAX_WANTED,
    PEERS_PROTOCOL,
    Answer,
    Compare,
    Listing,
    News,
    Noted,
    Request,
    Swap,
    Swapped,
    Told,
    decode_answer,
    encode_request,
)
from .map_rows import MapRows
from .member_map import Heard, MemberMap
from .peer_id import PeerId
from .peer_record import PeerRecord, decode_record, sign_record
from .records_wire import BUSY, Refused
from .rpc import Question
from .scout import Scout
from .signing import Signer

LARGE = "large"
"""Reason of a refusal: the answering node keeps no map, as the mesh has too many members."""

_BUILDING_PAUSE = 0.5
_NEWS_PAUSE = 0.3
_MUTE_FOR = 3600.0
_LIFETIMES = 3
_LEAVE_WITHIN = 1.0
_LEAVE_TOLD = 8
_AUDITED = 0.25
_CONNECTED = 0.75
_DUD_COST = 20
_RECORDS_PER_SECOND = 64.0
_AT_ONCE = 3

_A = TypeVar("_A", Listing, Swapped, Noted)
_log = structlog.get_logger("meshnode.dht")


class Gossip:
    """The member map of one node and the tasks that keep it fresh. Implements `PeerWatcher`."""

    def __init__(self, context: DhtContext, signer: Signer, realm: bytes) -> None:
        settings = context.settings
        if not 0 < settings.map_members <= MAX_ROWS // 2 - 64:
            raise ValueError(f"a full map of {settings.map_members} members does not fit a message")
        capacity = 2 * settings.map_members + 64
        self.map = MemberMap(context.own, capacity)
        self.census = Census(settings.map_members, settings.map_round)
        self._context = context
        self._contacts = context.contacts
        self._counters = context.counters
        self._settings = settings
        self._rng = context.rng
        self._signer = signer
        self._realm = realm
        self._seq = 0
        self._said: tuple[str, ...] = ()
        self._said_until = 0.0
        self._mute: dict[PeerId, float] = {}
        self._news: dict[PeerId, None] = {}
        self._suspects: dict[PeerId, None] = {}
        self._scout = Scout(context, self.map, capacity)
        self._work = KeyBudget(_RECORDS_PER_SECOND, 4.0 * capacity)
        self._rows = MapRows(context, realm)
        self._wake = trio.Event()
        self._news_came = trio.Event()

    def start(self) -> None:
        """Start all tasks in the DHT's nursery."""
        for task in (self._keep_comparing, self._keep_telling, self._scout.keep_probing):
            self._context.nursery.start_soon(task)

    # --- what others of our rooms ask -----------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether the map is believed to hold everybody, so that no lookup is needed."""
        table, members = self._contacts.table, self.map.members
        if not members and not len(table):
            return True
        if self.census.mode is not Mode.MAP:
            return False
        # Peers that speak only the standard protocol know others that no map of ours will name.
        foreign = sum(peer not in members and self._contacts.is_met(peer) for peer in table)
        return 2 * foreign < self._settings.k

    def sizes(self) -> dict[str, int]:
        """For `Dht.stats()`."""
        return {
            "full_map": int(self.complete),
            "members": len(self.map.members) + (self.map.record(self._context.own) is not None),
            "members_pending": len(self.map.pending(trio.current_time(), 0)),
        }

    @property
    def members(self) -> frozenset[PeerId]:
        """Everybody on the map, without ourselves."""
        return self.map.members

    # --- what happens to peers (PeerWatcher) ----------------------------------------------------

    def answered(self, peer: PeerId) -> None:
        if self.map.meet(peer):
            self._spread([peer])
        if self.census.mode is Mode.BUILDING and peer not in self.census.asked:
            self._wake.set()

    def lost(self, peer: PeerId) -> None:
        was_pending, teller = self.map.is_pending(peer), self.map.teller(peer)
        if self.map.lose(peer):
            self._suspects[peer] = None
            self._news_came.set()
        if was_pending and teller is not None:
            # Who names peers that nobody can reach will soon have named enough.
            self._scout.strangers.take(teller, _DUD_COST, trio.current_time())

    # --- ourselves ------------------------------------------------------------------------------

    def _say(self) -> None:
        """Sign our record again when it changed, or is a third through its time."""
        addresses = tuple(self._context.host.addresses())
        if not addresses:
            # We only visit: nobody can reach us, so nobody needs to count on us.
            return
        now, moved = trio.current_time(), addresses != self._said
        if not moved and now < self._said_until:
            return
        record = self._sign(addresses)
        self._said, self._seq = addresses, record.seq
        self._said_until = now + self._settings.map_refresh * self._rng.uniform(0.75, 1.0)
        self.map.say(record, now)
        self._counters.add("own_record_signed")
        if moved:
            self._spread([self._context.own])

    def _sign(self, addresses: Sequence[str], *, leaving: bool = False) -> PeerRecord:
        seq = max(int(self._context.wall_clock() * 1000), self._seq + 1)
        lifetime = math.ceil(_LIFETIMES * self._settings.map_refresh)
        zone = self._settings.zone
        return sign_record(
            self._signer, seq, lifetime, addresses, zone, leaving=leaving, realm=self._realm
        )

    async def leave(self) -> None:
        """Say goodbye to a few members, who will pass it on. Takes a second at most."""
        members = self._alive(self.map.members)
        if self.map.record(self._context.own) is None or not members:
            return
        self.map.say(self._sign((), leaving=True), trio.current_time())
        told = tuple(self.map.tell([self._context.own], trio.current_time()))
        with trio.move_on_after(_LEAVE_WITHIN):
            async with trio.open_nursery() as nursery:
                for peer in self._some(members, _LEAVE_TOLD):
                    nursery.start_soon(self._tell, peer, News(told, ()))

    # --- comparing ------------------------------------------------------------------------------

    async def _keep_comparing(self) -> None:
        idle = 0
        while True:
            # With nobody to ask, there is no hurry.
            idle = 0 if await self._guarded(self._round) else idle + 1
            building = self.census.mode is Mode.BUILDING and bool(self.map.members or idle < 3)
            longest = self._settings.map_round
            pause = min(longest, _BUILDING_PAUSE * 2 ** min(idle, 16)) if building else longest
            self._wake = trio.Event()
            with trio.move_on_after(pause * self._rng.uniform(0.75, 1.25)):
                await self._wake.wait()
                # Together with whatever else is answering just now.
                await trio.sleep(_NEWS_PAUSE * self._rng.random())

    async def _round(self) -> bool:
        """Compare maps with somebody; returns whether there was anybody to compare with."""
        self._say()
        now = trio.current_time()
        for peer in self.map.sweep(now):
            self._counters.add("members_expired")
            self._news.pop(peer, None)
        self.census.looked_around(now)
        if self.census.is_dormant(now) and not self._is_small_again(asked=False):
            self._give_up_map()
            return True
        missing = self._scout.missing()
        if missing is not None:
            self._context.nursery.start_soon(self._compare_or_fail, missing)
        partners = self._choose()
        if not partners:
            self.census.nobody_left()
            return False
        async with trio.open_nursery() as nursery:
            for peer in partners:
                nursery.start_soon(self._compare_or_fail, peer)
        return True

    def _choose(self) -> list[PeerId]:
        """Whom to compare with: anybody; while building, some we did not compare with yet."""
        members, now = self.map.members, trio.current_time()
        if self.census.mode is Mode.BUILDING:
            self._mute = {peer: until for peer, until in self._mute.items() if until > now}
            pool = {*members, *self.map.pending(now, 0), *self._contacts.table}
            pool = {peer for peer in pool if not self.map.is_gone(peer)}
            pool -= {*self.census.asked, *self._mute}
            # The first one may have all of the map to tell: nobody else needs to tell it as well.
            return self._some(self._alive(pool), _AT_ONCE if len(members) > 1 else 1)
        unmet = self._alive(self.map.unmet())
        if unmet and self._rng.random() < _AUDITED:
            return [self._rng.choice(unmet)]
        return self._some(self._alive(members), 1)

    async def _compare_or_fail(self, peer: PeerId) -> None:
        self._counters.add("gossip_rounds")
        try:
            await self._compare_with(peer)
        except Exception as error:  # noqa: BLE001 - task boundary: one peer must not end the rest
            await self._failed(peer, as_peer_error(error, peer, self._counters))

    async def _compare_with(self, peer: PeerId) -> None:
        before, was_member = self.map.members, peer in self.map.members
        bits = self.map.bits
        request = Compare(bits, self.map.summary(bits))
        listing = await self._ask(peer, request, Listing)
        found = self.map.compare(bits, listing, peer, trio.current_time())
        self._spread(found.news)
        wanted, given = found.wanted, found.given
        for start in range(0, max(len(wanted), len(given)), min(MAX_WANTED, MAX_RECORDS)):
            swap = Swap(
                tuple(wanted[start : start + MAX_WANTED]),
                tuple(given[start : start + MAX_RECORDS]),
            )
            self.hear((await self._ask(peer, swap, Swapped, bulk=True)).told, peer)
        if not was_member:
            # Now that its own record is here, its word counts.
            self._spread(self.map.compare(bits, listing, peer, trio.current_time()).news)
        unknown = self.map.members - before - {peer}
        self.census.agreed(peer, quiet=not unknown, now=trio.current_time())
        if self.census.mode is Mode.MAP:
            self._counters.add("members_expired", len(self.map.forget_unconfirmed()))

    async def _failed(self, peer: PeerId, error: PeerError | MembershipError) -> None:
        self._counters.add("gossip_failed")
        self.census.asked.add(peer)
        now = trio.current_time()
        if isinstance(error, PeerRefusedError):
            if error.reason == LARGE and self.census.called_large(peer, now):
                self._note_large()
            return
        if peer not in self.map.members and peer in self._contacts.table:
            # Perhaps it speaks only the standard protocol, and is none the worse for it.
            self._mute[peer] = now + _MUTE_FOR
            await self._scout.ping(peer)

    async def _ask(
        self, peer: PeerId, request: Request, expected: type[_A], *, bulk: bool = False
    ) -> _A:
        def decode(frame: bytes) -> _A | Refused:
            self._counters.add("gossip_bytes_received", len(frame))
            return decode_answer(frame, expected)

        payload = encode_request(request)
        self._counters.add("gossip_bytes_sent", len(payload))
        question = Question(PEERS_PROTOCOL, payload, decode, MAX_PEERS_FRAME, bulk)
        answer = await self._context.rpc.request(peer, question)
        if isinstance(answer, Refused):
            raise PeerRefusedError(
                f"{peer.short} did not compare members: {answer.reason}",
                reason=answer.reason,
                retry_after=answer.retry_after,
            )
        return answer

    # --- answering ------------------------------------------------------------------------------

    def answer(self, sender: PeerId, request: Request) -> Answer:
        """What to answer `sender`; at once, from memory."""
        now = trio.current_time()
        wait = self._work.take(sender, _cost(request), now)
        if wait:
            self._counters.add("requests_over_budget")
            return Refused(BUSY, wait)
        if self.census.is_dormant(now) and not self._is_small_again(asked=True):
            return Refused(LARGE)
        if self.map.meet(sender):
            self._spread([sender])
        match request:
            case Compare(bits, hashes):
                return self.map.listing(bits, hashes, now)
            case Swap(wanted, told):
                self.hear(told, sender)
                return Swapped(tuple(self.map.tell(self.map.named(wanted), now)[:MAX_RECORDS]))
            case News(told, suspects):
                self.hear(told, sender)
                self._scout.check(sender, suspects)
                return Noted()

    def hear(self, told: Iterable[Told], teller: PeerId) -> None:
        """Take note of what `teller` told, as far as it proves itself and is bearable."""
        records: list[tuple[PeerRecord, int]] = []
        forged = 0
        for one in told:
            try:
                records.append((decode_record(one.record, self._realm), one.ttl))
            except FormatError:
                forged += 1
        if forged:
            self._counters.add("peer_records_forged", forged)
            self._contacts.failed(teller, weight=2)
        # Its own first: only whom we count can vouch for others.
        records.sort(key=lambda heard: heard[0].peer != teller)
        self._spread(record.peer for record, ttl in records if self._hear_one(record, ttl, teller))
        if self.census.counted(len(self.map.members) + 1, trio.current_time()):
            self._note_large()

    def _hear_one(self, record: PeerRecord, ttl: int, teller: PeerId) -> bool:
        """Returns whether it is news."""
        now, peer = trio.current_time(), record.peer
        known = self.map.record(peer) is not None
        if not known and peer != teller and self._scout.strangers.take(teller, 1, now):
            self._counters.add("peer_records_over_budget")
            return False
        met = self._contacts.is_met(peer)
        heard = self.map.hear(record, ttl, teller, now, met=met)
        self._counters.add(f"peer_records_{heard.name.lower()}")
        match heard:
            case Heard.NEWS | Heard.REPEATED | Heard.PENDING:
                self._believe(record)
                if heard is Heard.PENDING:
                    self._scout.stranger_came.set()
            case Heard.OURS:
                # Of an earlier run that we forgot, or of a clock that was ahead.
                self._seq, self._said_until = record.seq, 0.0
                self._wake.set()
        return heard is Heard.NEWS

    def _believe(self, record: PeerRecord) -> None:
        peer, host = record.peer, self._context.host
        if record.leaving:
            if self.map.is_gone(peer):
                self._contacts.departed(peer)
            return
        if not set(record.addresses) <= set(host.known_addresses(peer)):
            host.add_addresses(peer, record.addresses)
            # Whatever failed before was another address.
            self._contacts.health.revived(peer)

    # --- news -----------------------------------------------------------------------------------

    def _spread(self, peers: Iterable[PeerId]) -> None:
        for peer in peers:
            if len(self._news) < self._settings.map_members:
                self._news[peer] = None
        if self._news:
            self._news_came.set()

    async def _keep_telling(self) -> None:
        while True:
            await self._news_came.wait()
            await trio.sleep(_NEWS_PAUSE * self._rng.uniform(0.5, 1.0))
            await self._guarded(self._tell_some)

    async def _tell_some(self) -> bool:
        peers, suspects = list(self._news)[:MAX_RECORDS], list(self._suspects)[:MAX_SUSPECTS]
        for peer in peers:
            del self._news[peer]
        for peer in suspects:
            del self._suspects[peer]
        if not self._news and not self._suspects:
            self._news_came = trio.Event()
        news = News(tuple(self.map.tell(peers, trio.current_time())), tuple(suspects))
        if news.told or news.suspects:
            self._counters.add("news_told")
            for peer in self._some(self._alive(self.map.members), self._settings.map_fanout):
                self._context.nursery.start_soon(self._tell, peer, news)
        await trio.lowlevel.checkpoint()
        return True

    async def _tell(self, peer: PeerId, news: News) -> None:
        try:
            await self._ask(peer, news, Noted, bulk=len(news.told) > 1)
        except Exception as error:  # noqa: BLE001 - task boundary: news goes other ways too
            as_peer_error(error, peer, self._counters)
            self._counters.add("news_untold")

    # --- the size of the mesh -------------------------------------------------------------------

    def _note_large(self) -> None:
        _log.info("dht_mesh_is_large", members=len(self.map.members) + 1)
        self._counters.add("map_given_up")

    def _give_up_map(self) -> None:
        self.map.clear()
        self._news.clear()
        self._suspects.clear()

    def _is_small_again(self, *, asked: bool) -> bool:
        estimate = self._contacts.table.estimated_size()
        if not self.census.estimated(estimate, trio.current_time(), asked=asked):
            return False
        self._counters.add("map_begun_again")
        self._wake.set()
        return True

    # --- across restarts ------------------------------------------------------------------------

    def save(self) -> None:
        """Hand the records of members, and ours, to the backend: those that changed."""
        self._rows.save(self.map)

    def restore(self, rows: Iterable[Row]) -> None:
        """Take over what an earlier run saved, to begin with."""
        for record in self._rows.load(rows):
            if record.peer == self._context.own:
                self._seq = max(self._seq, record.seq)
            elif len(self.map.members) < self._settings.map_members:
                self.map.restore(record, trio.current_time())

    # --- choosing -------------------------------------------------------------------------------

    def _alive(self, peers: Iterable[PeerId]) -> list[PeerId]:
        """Those of `peers` that are worth asking, in an order that depends on nothing else."""
        return sorted(peer for peer in peers if not self._contacts.is_down(peer))

    def _some(self, peers: Sequence[PeerId], count: int) -> list[PeerId]:
        """`count` random ones of `peers`; mostly of those connected, which costs no handshake."""
        connected = self._context.host.connected_peers()
        near = [peer for peer in peers if peer in connected]
        far = [peer for peer in peers if peer not in connected]
        out: list[PeerId] = []
        while len(out) < count and (near or far):
            pool = near if near and (not far or self._rng.random() < _CONNECTED) else far
            out.append(pool.pop(self._rng.randrange(len(pool))))
        return out

    async def _guarded(self, task: Callable[[], Awaitable[bool]]) -> bool:
        try:
            return await task()
        except Exception as error:  # noqa: BLE001 - task boundary: the next round may do better
            expected = isinstance(error, MeshError)
            self._counters.add("upkeep_failures" if expected else "upkeep_crashes")
            _log.warning("dht_gossip_failed", error=str(error), exc_info=not expected)
            return False


def _cost(request: Request) -> int:
    """What answering takes, counted in records."""
    match request:
        case Compare(bits, _):
            return 16 + (1 << bits) // 16
        case Swap(wanted, told):
            return 1 + len(wanted) + len(told)
        case News(told, suspects):
            return 1 + len(told) + len(suspects)
