"""What the DHT does by itself: meeting peers, refreshing, repeating, sweeping, saving.

Every task waits on trio's clock with jitter, so that nodes started together do not work together.
A task's failure is logged and counted, and the task goes on: the DHT serves as well as it can.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import structlog
import trio

from ..errors import MembershipError, MeshError, PeerError
from .backend import NEVER, Row, RowKind
from .context import DhtContext
from .handover import Handover
from .host import ConnectionEvent
from .kad_wire import PeerAddresses
from .keyspace import peer_position
from .peer_id import PeerId
from .publisher import Publisher
from .query import Plan, Queries
from .repeating import Repeater

_REPEAT_SLOTS = 64
_SAVE_TABLE = 300.0
_FLUSH_PAUSE_MAX = 30.0
_MEETINGS = 8
_INTRODUCED_WITHIN = 0.5
_MAX_WAITING_MEETINGS = 1024
_CATCH_UP_PAUSE = 2.0
_REPEAT_ROW = b"repeat"
_RETELL_PAUSE = 5.0
_RETELL_PAUSE_MAX = 600.0
_RETOLD_AT_ONCE = 16_384
_PASS_ON = 60.0

_log = structlog.get_logger("meshnode.dht")


class Upkeep:
    """The background of one DHT."""

    def __init__(
        self,
        context: DhtContext,
        queries: Queries,
        publisher: Publisher,
        repeater: Repeater,
        handover: Handover,
        sweep: Callable[[float], Awaitable[int]],
    ) -> None:
        self._host = context.host
        self._nursery = context.nursery
        self._contacts = context.contacts
        self._rpc = context.rpc
        self._client = context.client
        self._queries = queries
        self._publisher = publisher
        self._repeater = repeater
        self._handover = handover
        self._sweep_all = sweep
        self._rows = context.rows
        self._settings = context.settings
        self._counters = context.counters
        self._wall_clock = context.wall_clock
        self._rng = context.rng
        self._meeting: set[PeerId] = set()
        self._meetings = trio.CapacityLimiter(_MEETINGS)
        self._last_slot: int | None = None
        self._tell_now = trio.Event()
        self._newcomers: dict[PeerId, None] = {}

    def restore(self, rows: Sequence[Row]) -> None:
        """Take over how far the schedule had come in an earlier run."""
        for _, key, _, value, _ in rows:
            if key == _REPEAT_ROW and len(value) == 8:
                self._last_slot = int.from_bytes(value, "big")

    def start(self) -> None:
        """Start all tasks in the DHT's nursery."""
        settings = self._settings
        self._nursery.start_soon(self._once, self.find_neighbours)
        self._nursery.start_soon(self._follow_connections)
        self._nursery.start_soon(self._keep_flushing)
        self._nursery.start_soon(self._keep_telling)
        self._every(_SAVE_TABLE, self._save_table)
        self._every(settings.sweep, self._sweep)
        self._every(_PASS_ON, self._pass_on)
        self._every(settings.liveness / 5, self._check_questionable)
        self._every(settings.refresh, self.refresh)
        self._every(settings.republish / _REPEAT_SLOTS, self._repeat)

    # --- peers --------------------------------------------------------------------------------

    def heard(self, peer: PeerId) -> None:
        """`peer` asked us something: if we do not count on it, find out whether we should."""
        if peer not in self._contacts.table or self._contacts.is_down(peer):
            self.meet_soon(peer)

    def meet_soon(self, peer: PeerId) -> None:
        if peer not in self._meeting and len(self._meeting) < _MAX_WAITING_MEETINGS:
            self._meeting.add(peer)
            self._nursery.start_soon(self._meet_in_turn, peer)

    async def meet(self, peer: PeerId) -> bool:
        """Tell `peer` where we listen and ask whom it knows near us; it then enters the table.

        A peer that speaks only the standard protocol is asked in that. Returns whether it answered.
        """
        self._contacts.health.revived(peer)
        try:
            try:
                near = (await self._client.near(peer, [peer_position(self._host.peer_id)])).peers
            except PeerError:
                near = await self._client.find_node(peer, bytes(self._host.peer_id))
        except (PeerError, MembershipError):
            return False
        self._contacts.learn(near)
        return True

    async def _meet_in_turn(self, peer: PeerId) -> None:
        try:
            if self._rpc.is_asking(peer):
                # We dialled it ourselves, to ask something: the answer will introduce it.
                await trio.sleep(_INTRODUCED_WITHIN)
            async with self._meetings:
                known = peer in self._contacts.table and not self._contacts.is_down(peer)
                if known or await self.meet(peer):
                    self._contacts.remember(peer)
                    await self._share_with(peer)
        except Exception as error:  # noqa: BLE001 - task boundary: one peer must not end the DHT
            self._note("meet", error)
        finally:
            self._meeting.discard(peer)

    async def _share_with(self, peer: PeerId) -> None:
        """A peer is here (again): offer it ours, and a little later what we keep for others."""
        if await self._repeater.offer(peer):
            self._tell_now.set()
            self._newcomers[peer] = None

    async def _pass_on(self) -> None:
        """What we keep for others goes to those who came and, by now, have shown that they stay."""
        newcomers, self._newcomers = self._newcomers, {}
        table, is_down = self._contacts.table, self._contacts.is_down
        staying = [peer for peer in newcomers if peer in table and not is_down(peer)]
        if staying:
            await self._handover.to_newcomers(staying)

    async def _follow_connections(self) -> None:
        async with self._host.events() as events:
            for peer in sorted(self._host.connected_peers()):
                self.meet_soon(peer)
            async for event in events:
                try:
                    await self._follow(event)
                except Exception as error:  # noqa: BLE001 - task boundary: the next event may do better
                    self._note("follow", error)

    async def _follow(self, event: ConnectionEvent) -> None:
        if event.connected:
            self.meet_soon(event.peer)
        elif event.peer not in self._host.connected_peers():
            await self._rpc.dropped(event.peer)
            self._contacts.disconnected(event.peer)

    async def _check_questionable(self) -> None:
        """Ping, per bucket, the member not heard of for longest: it answers, or loses its place."""
        now = trio.current_time()
        for peer in self._contacts.table.questionable(now, self._settings.liveness):
            if self._contacts.is_down(peer):
                continue
            try:
                await self._client.ping(peer)
            except (PeerError, MembershipError):
                self._counters.add("pings_failed")

    async def find_neighbours(self) -> None:
        """Look ourselves up: the nearest peers answer, and learn that we are here."""
        if len(self._contacts.table):
            await self.walk(bytes(self._host.peer_id))

    async def refresh(self) -> None:
        """Look ourselves up, then a random key in every full bucket that is due."""
        await self.find_neighbours()
        for bucket in self._contacts.table.stale_buckets(
            trio.current_time(), 0.9 * self._settings.refresh
        ):
            self._contacts.table.refreshed(bucket, trio.current_time())
            await self.walk(self._contacts.table.key_in(bucket, self._rng))

    async def walk(self, key: bytes) -> list[PeerId]:
        """A lookup for the sake of the peers met on the way."""

        async def ask(peer: PeerId) -> tuple[None, tuple[PeerAddresses, ...]]:
            return None, await self._client.find_node(peer, key)

        return (await self._queries.run(key, ask, Plan("refresh", upkeep=True))).closest

    # --- records ------------------------------------------------------------------------------

    async def _keep_flushing(self) -> None:
        pause = self._settings.flush
        while True:
            await self._rows.wait_changed()
            await trio.sleep(pause)
            try:
                error = await self._rows.try_flush()
            except Exception as unforeseen:  # noqa: BLE001 - task boundary: nothing pending is lost
                error = unforeseen
            if error is None:
                pause = self._settings.flush
            else:
                # A full disk stays full for a while.
                pause = min(2 * pause, max(_FLUSH_PAUSE_MAX, self._settings.flush))
                self._note("flush", error)

    async def _keep_telling(self) -> None:
        """Announce again what too few peers know of: soon, then with growing pauses.

        A peer that comes, or any progress, makes the pause short again.
        """
        pause = _RETELL_PAUSE
        while True:
            await self._publisher.untold.wait_some()
            self._tell_now = trio.Event()
            with trio.move_on_after(pause * self._rng.uniform(0.75, 1.25)):
                await self._tell_now.wait()
                # A newcomer seldom comes alone.
                await trio.sleep(_RETELL_PAUSE)
                pause = _RETELL_PAUSE
            progress = False
            try:
                progress = await self._publisher.retell(_RETOLD_AT_ONCE)
            except Exception as error:  # noqa: BLE001 - task boundary: the next round may do better
                self._note("retell", error)
            pause = _RETELL_PAUSE if progress else min(2 * pause, _RETELL_PAUSE_MAX)

    async def _save_table(self) -> None:
        self._contacts.save()
        await trio.lowlevel.checkpoint()

    async def _sweep(self) -> None:
        self._counters.add("records_expired", await self._sweep_all(self._wall_clock()))

    async def _repeat(self) -> None:
        """Announce again the stretches of the keyspace that are due.

        The keyspace has 64 stretches; which one is due follows from the time of day, so the work
        is spread evenly, and a node that was off catches up on what it missed.
        """
        due = int(self._wall_clock() / (self._settings.republish / _REPEAT_SLOTS))
        first = due if self._last_slot is None else self._last_slot + 1
        for slot in range(max(first, due - _REPEAT_SLOTS + 1), due + 1):
            await self._repeater.repeat(slot % _REPEAT_SLOTS, _REPEAT_SLOTS)
            self._last_slot = slot
            value = slot.to_bytes(8, "big")
            self._rows.save(RowKind.SCHEDULE, _REPEAT_ROW, b"", value, NEVER)
            if slot != due:
                await trio.sleep(_CATCH_UP_PAUSE)

    # --- the clockwork ------------------------------------------------------------------------

    def _every(self, period: float, task: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._run_every, period, task)

    async def _run_every(self, period: float, task: Callable[[], Awaitable[None]]) -> None:
        while True:
            await trio.sleep(period * self._rng.uniform(0.75, 1.25))
            await self._once(task)

    async def _once(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except Exception as error:  # noqa: BLE001 - task boundary: the next round may do better
            self._note(task.__name__.strip("_"), error)

    def _note(self, task: str, error: Exception) -> None:
        expected = isinstance(error, MeshError)
        self._counters.add("upkeep_failures" if expected else "upkeep_crashes")
        _log.warning("dht_upkeep_failed", task=task, error=str(error), exc_info=not expected)
