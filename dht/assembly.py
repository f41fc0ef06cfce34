"""The parts of one DHT: made in order, restored, started, and closed."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from .backend import Row, RowKind
from .budget import Budgets
from .confirmations import Confirmations
from .context import DhtContext
from .finder import Finder
from .gossip import Gossip
from .gossip_server import GossipServer
from .handover import Handover
from .handover_answers import HandoverAnswers
from .kad_answers import KadAnswers
from .keyspace import MANIFEST_NAMESPACE
from .locator import Locator
from .mailboxes import Mailboxes
from .names import NAME_NAMESPACE
from .own_record import OwnRecord
from .peer_record import PEER_NAMESPACE
from .publisher import Publisher
from .query import Queries
from .records import ChunkRecords
from .records_answers import RecordsAnswers
from .repeating import Repeater
from .server import Server
from .signing import Signer
from .trace import Traces
from .upkeep import Upkeep
from .value_publisher import ValuePublisher
from .value_reader import ValueReader
from .values import ValueStore
from .whereabouts import Whereabouts

_CLOSE_WITHIN = 2.0

_log = structlog.get_logger("meshnode.dht")


class DhtParts:
    """What a DHT is made of; its face is `service.Dht`."""

    def __init__(self, context: DhtContext, signer: Signer | None, realm: bytes) -> None:
        own, settings, rows, counters = (
            context.own,
            context.settings,
            context.rows,
            context.counters,
        )
        self.context = context
        self.chunks = chunks = ChunkRecords(own, settings, rows, counters)
        self.values = values = ValueStore(own, settings, rows, counters, context.validators)
        self.mailboxes = mailboxes = Mailboxes(settings, rows, counters)
        self.traces = traces = Traces(context.wall_clock)
        self.queries = queries = Queries(context, traces)
        self.gossip = None
        if signer is not None and settings.map_members:
            self.gossip = Gossip(context, signer, realm)
            context.contacts.watch(self.gossip)
        self.locator = locator = Locator(context, self.gossip)
        self.publisher = publisher = Publisher(context, traces, locator, chunks)
        self.value_publisher = giver = ValuePublisher(context, traces, queries, locator)
        self.finder = Finder(context, traces, locator, chunks)
        self.reader = reader = ValueReader(
            context, queries, locator, values, mailboxes, giver, realm
        )
        self.whereabouts = Whereabouts(context, queries, reader, self.gossip)
        self.own_record = None
        if signer is not None:
            self.own_record = OwnRecord(context, signer, realm, self.gossip, values, giver, reader)
        self.repeater = repeater = Repeater(
            context,
            traces,
            locator,
            publisher,
            giver,
            chunks,
            values,
            mailboxes,
            self.own_record,
        )
        self.handover = handover = Handover(context, locator, chunks, values, mailboxes)
        self.confirmations = Confirmations(context, chunks)
        self.upkeep = Upkeep(context, queries, publisher, repeater, handover, self._sweep)
        budgets = Budgets(settings, counters)
        self.server = Server(
            context,
            RecordsAnswers(context, budgets, chunks, self.confirmations.withdrawn),
            KadAnswers(context, budgets, chunks, values, mailboxes),
            HandoverAnswers(
                context, locator, budgets, self.confirmations, chunks, values, mailboxes
            ),
            self.upkeep.heard,
        )

    def sizes(self) -> dict[str, int]:
        """How much is kept now; names are listed in docs/dht.md."""
        untold, values = self.publisher.untold, self.values
        return {
            **({} if self.gossip is None else self.gossip.sizes()),
            "table_peers": len(self.context.contacts.table),
            "chunk_records": len(self.chunks),
            "own_chunks": self.chunks.own_count,
            "keys_pending": len(untold),
            "announce_lag_seconds": int(untold.lag(self.context.wall_clock())),
            "manifests": values.kept_of(MANIFEST_NAMESPACE),
            "own_manifests": len(values.own_keys(MANIFEST_NAMESPACE)),
            "names": values.kept_of(NAME_NAMESPACE),
            "own_names": len(values.own_keys(NAME_NAMESPACE)),
            "peer_records": values.kept_of(PEER_NAMESPACE),
            "value_bytes": values.kept_bytes,
            "notices": len(self.mailboxes),
            "notice_bytes": self.mailboxes.kept_bytes,
            "hints_waiting": self.confirmations.waiting,
        }

    async def _sweep(self, now: float) -> int:
        """Forget what has expired; returns how many records that were."""
        values = self.values.sweep(now) + self.mailboxes.sweep(now)
        return values + await self.chunks.sweep(now)

    # --- life ---------------------------------------------------------------------------------

    def restore(self, rows: Sequence[Row]) -> None:
        """Take over what an earlier run saved."""
        by_kind: dict[int, list[Row]] = {}
        for row in rows:
            by_kind.setdefault(row[0], []).append(row)

        def of(*kinds: RowKind) -> list[Row]:
            return [row for kind in kinds for row in by_kind.get(kind, ())]

        now = self.context.wall_clock()
        self.chunks.restore(of(RowKind.OWN_CHUNK, RowKind.CHUNK, RowKind.CHUNKS), now)
        values = of(RowKind.OWN_MANIFEST, RowKind.MANIFEST, RowKind.OWN_VALUE, RowKind.VALUE)
        self.values.restore(values, now)
        if self.own_record is not None:
            self.own_record.restore()
        self.mailboxes.restore(of(RowKind.OWN_NOTICE, RowKind.NOTICE), now)
        self.publisher.untold.restore(of(RowKind.UNTOLD), set(self.chunks.own()))
        self.handover.not_new(self.context.contacts.restore(of(RowKind.PEER)))
        self.upkeep.restore(of(RowKind.SCHEDULE))
        if self.gossip is not None:
            self.gossip.restore(of(RowKind.PEER_RECORD))

    def start(self) -> None:
        """Serve others, and begin the background work."""
        self.server.install()
        self.upkeep.start()
        if self.gossip is not None:
            GossipServer(self.context, self.gossip).install()
            self.gossip.start()
        self.context.nursery.start_soon(self.confirmations.run)
        self.context.nursery.start_soon(self.values.check_saved)
        self.context.nursery.start_soon(self.mailboxes.check_saved)
        if self.own_record is not None:
            self.context.nursery.start_soon(self.own_record.keep_published)

    async def close(self) -> None:
        """Save everything, and let go of the streams. Takes 2 seconds for each at most.

        Raises:
            StoreError: what was learned could not be saved.
            QuotaError: there is no room for it.
        """
        try:
            with trio.CancelScope(
                shield=True, deadline=trio.current_time() + _CLOSE_WITHIN
            ) as scope:
                self.context.contacts.save()
                await self.context.rows.flush()
                if self.gossip is not None:
                    await self.gossip.leave()
            if scope.cancelled_caught:
                _log.warning("dht_close_late", waited=_CLOSE_WITHIN)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_WITHIN):
                await self.context.rpc.close()
