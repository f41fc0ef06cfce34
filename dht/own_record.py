"""Our own signed record, kept in the DHT while the mesh is too large for everybody to have it.

With a full map gossip brings it to all members, and this does nothing at all. Otherwise it is
published when the node starts or listens elsewhere, and repeated like every value of ours; each
repetition is signed anew, so that the record of a node that is gone ends within a day.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from random import Random

import structlog
import trio

from ..errors import MeshError
from .census import Mode
from .context import DhtContext
from .gossip import Gossip
from .keyspace import position
from .peer_record import MAX_LIFETIME, PeerRecord, decode_record, peer_record_key, sign_record
from .signing import Signer
from .value_publisher import ValuePublisher
from .value_reader import ValueReader
from .values import ValueStore

_SOON = 1.0
_PAUSE_MAX = 1800.0

_log = structlog.get_logger("meshnode.dht")


class OwnRecord:
    """Has the peers responsible for our record know where we listen."""

    def __init__(
        self,
        context: DhtContext,
        signer: Signer,
        realm: bytes,
        gossip: Gossip | None,
        values: ValueStore,
        publisher: ValuePublisher,
        reader: ValueReader,
    ) -> None:
        self.key = peer_record_key(context.own)
        self.position = position(self.key)
        self._context = context
        self._settings = context.settings
        self._counters = context.counters
        self._signer = signer
        self._realm = realm
        self._gossip = gossip
        self._values = values
        self._publisher = publisher
        self._reader = reader
        self._seq = 0
        self._said_before: tuple[str, ...] = ()
        """Where the last record of an earlier run says that we listen."""
        self._said: tuple[str, ...] = ()
        """Where the published record says that we listen; empty while there is none."""

    def restore(self) -> None:
        """What an earlier run said is not repeated, and no number is used twice."""
        saved = self._values.own_value(self.key)
        if saved is not None:
            record = decode_record(saved, self._realm)
            self._seq, self._said_before = record.seq, record.addresses
            self._values.forget_own(self.key)

    async def keep_published(self) -> None:
        """Look now and then whether others know of us what is true. Never returns."""
        # Jitter only has to differ from the others'.
        rng, usual = Random(bytes(self._context.own)), self._settings.map_round
        moved = self._said_before not in ((), tuple(self._context.host.addresses()))
        # Nodes may have started together, or have all found the mesh too large for a map.
        await trio.sleep(_SOON if moved else usual * rng.random())
        pause = _SOON if moved else usual
        while True:
            done = await self._guarded()
            # What others keep is wrong: it is made right as soon as there is somebody to tell.
            hurry = moved and not self._said and pause < usual
            pause = usual if done and not hurry else min(2 * pause, _PAUSE_MAX)
            await trio.sleep(pause * rng.uniform(0.75, 1.25))

    def renew(self) -> None:
        """Sign again what is about to be repeated, so that it lives on."""
        if self._said:
            self._sign(self._said)

    async def publish(self) -> bool:
        """Publish our record if it is wanted and not known; returns whether nothing is left to do.

        Whoever cannot be dialled publishes none.
        """
        addresses = tuple(self._context.host.addresses())
        if not addresses or not self._is_wanted():
            self._said = ()
            self._values.forget_own(self.key)
            return True
        if addresses == self._said:
            return True
        record = self._sign(addresses)
        report = await self._publisher.spread("put_peer_record", record.key, record.encoded)
        self._counters.add("own_record_published")
        if report.stored_on:
            self._said = addresses
        if len(report.stored_on) >= self._settings.enough_holders:
            return True
        # Perhaps they keep one of an earlier run, signed by a clock that was ahead of ours.
        newest = (await self._reader.peer_record(self._context.own)).record
        if newest is not None and newest.seq > record.seq:
            self._seq, self._said = newest.seq, ()
        return bool(self._said)

    def _is_wanted(self) -> bool:
        """Whether others would look for our record in the DHT, and there is somebody to keep it."""
        if not len(self._context.contacts.table):
            return False
        gossip = self._gossip
        return gossip is None or not (gossip.complete or gossip.census.mode is Mode.BUILDING)

    def _sign(self, addresses: Sequence[str]) -> PeerRecord:
        told = None if self._gossip is None else self._gossip.map.record(self._context.own)
        last = self._seq if told is None else max(self._seq, told.seq)
        now = self._context.wall_clock()
        self._seq = max(int(now * 1000), last + 1)
        lifetime = min(MAX_LIFETIME, ceil(self._settings.record_ttl))
        zone = self._settings.zone
        record = sign_record(self._signer, self._seq, lifetime, addresses, zone, realm=self._realm)
        checked = self._context.validators.check(record.key, record.encoded, now)
        self._values.put_own(record.key, record.encoded, checked)
        return record

    async def _guarded(self) -> bool:
        try:
            return await self.publish()
        except Exception as error:  # noqa: BLE001 - task boundary: the next look may do better
            expected = isinstance(error, MeshError)
            self._counters.add("upkeep_failures" if expected else "upkeep_crashes")
            _log.warning("dht_own_record_failed", error=str(error), exc_info=not expected)
            return False
