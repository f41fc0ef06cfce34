"""The DHT of one node: what the other rooms call, and its life from open to close."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import islice

import structlog
import trio

from ..errors import MeshError, RefusedError, UsageError
from .assembly import DhtParts
from .backend import RecordBackend
from .boundary import as_peer_error
from .contacts import PeerEntry
from .context import DhtContext
from .finder import ChunksAnswer
from .handover import HandoverReport
from .host import Host
from .kad_wire import PeerAddresses
from .keyspace import check_digest, manifest_key
from .mailboxes import check_notice
from .names import NameRecord
from .notices import Notice
from .peer_id import PeerId
from .publisher import AnnounceReport
from .query import LookupResult, Plan
from .records import ChunkRecord
from .records_wire import MAX_ZONE_CHARS
from .settings import DhtSettings
from .signing import Signer
from .trace import QueryReport
from .value_publisher import StoreReport
from .value_reader import ManifestAnswer, NameAnswer, NoticesAnswer

_CONNECT_WITHIN = 5.0
_GREETINGS_AT_ONCE = 8
_MAX_GREETED = 64
_GREET_WITHIN = 20.0

_log = structlog.get_logger("meshnode.dht")


class Dht:
    """A node's part of the mesh's distributed hash table. Made by `open_dht`."""

    def __init__(self, parts: DhtParts) -> None:
        context = parts.context
        self._parts = parts
        self._context = context
        self._host = context.host
        self._wall_clock = context.wall_clock
        self._counters = context.counters
        self._rows = context.rows
        self._contacts = context.contacts
        self._rpc = context.rpc
        self._client = context.client
        self._gossip = parts.gossip
        self._chunks = parts.chunks
        self._values = parts.values
        self._mailboxes = parts.mailboxes
        self._queries = parts.queries
        self._locator = parts.locator
        self._publisher = parts.publisher
        self._value_publisher = parts.value_publisher
        self._finder = parts.finder
        self._reader = parts.reader
        self._repeater = parts.repeater
        self._handover = parts.handover
        self._upkeep = parts.upkeep
        self._server = parts.server

    # --- peers --------------------------------------------------------------------------------

    async def bootstrap(self, peers: Sequence[PeerId] = ()) -> int:
        """Find our place in the mesh, by way of `peers` and of those the host is connected to.

        At most 64 of each are greeted, eight at a time, within 20 seconds in all. Returns how many
        peers are in the routing table afterwards; 0 when nobody answered.
        """
        limiter = trio.CapacityLimiter(_GREETINGS_AT_ONCE)

        async def greet_in_turn(peer: PeerId) -> None:
            async with limiter:
                await self._greet(peer)

        connected = sorted(self._host.connected_peers())
        # Whom we are told of may be anybody: addresses come from invitations and the local network.
        given = [peer for peer in dict.fromkeys(peers) if peer != self._host.peer_id]
        with trio.move_on_after(_GREET_WITHIN):
            async with trio.open_nursery() as nursery:
                # In one order always, so that a simulation can be repeated.
                for peer in sorted({*islice(connected, _MAX_GREETED), *given[:_MAX_GREETED]}):
                    nursery.start_soon(greet_in_turn, peer)
        await self._upkeep.refresh()
        return len(self._contacts.table)

    def peers(self) -> list[PeerEntry]:
        """Every peer known: the routing table and, with a full map, all other members."""
        return self._contacts.entries()

    async def find_peer(self, peer: PeerId) -> list[str]:
        """Multiaddrs of `peer`, the likeliest first; empty when unknown, or when it said goodbye.

        Unless it is connected, what is known of it is tried by connecting, then the mesh is asked,
        and what others say is tried. When that leads nowhere, the newest record that `peer` signed
        itself is believed: what is in that comes first. With a full map such a record is here, and
        nobody is asked, unless `peer` is gone by it.
        """
        return await self._parts.whereabouts.find(peer)

    async def find_closest(self, key: bytes) -> LookupResult[None]:
        """The k nearest live peers to the position of `key`, by an iterative lookup."""

        async def ask(peer: PeerId) -> tuple[None, tuple[PeerAddresses, ...]]:
            return None, await self._client.find_node(peer, key)

        return await self._queries.run(key, ask, Plan("find_closest"))

    # --- chunk records ------------------------------------------------------------------------

    async def announce(self, chunks: Sequence[tuple[bytes, int]]) -> AnnounceReport:
        """Tell the mesh that this node holds `chunks` (digest, stored size), until withdrawn.

        Raises:
            UsageError: not a digest, or not a size.
            StoreError: our own list of held chunks could not be saved.
            QuotaError: there is no room for it.
        """
        held = self._publisher.hold(chunks)
        await self._rows.flush()
        report = await self._publisher.spread(held)
        self._repeater.missed(failure.peer for failure in report.failed)
        return report

    def let_go(self, digests: Sequence[bytes]) -> None:
        """No longer hold, and no longer repeat, these chunks and manifests. Tells nobody yet.

        At once and without waiting, so that a caller can do it under a lock of its own;
        `tell_withdrawn` does the part that takes time.

        Raises:
            UsageError: not a digest; then nothing has changed.
        """
        for digest in digests:
            check_digest(digest)
        self._publisher.let_go(digests)
        for digest in digests:
            self._values.forget_own(manifest_key(digest))

    async def tell_withdrawn(self, digests: Sequence[bytes]) -> None:
        """Tell the mesh that this node no longer holds chunks it let go.

        Those it holds again by now are left out. Peers that cannot be told forget by themselves
        within `record_ttl`.

        Raises:
            UsageError: not a digest.
        """
        await self._publisher.tell_withdrawn(digests)

    async def withdraw(self, digests: Sequence[bytes]) -> None:
        """`let_go`, and then `tell_withdrawn`."""
        self.let_go(digests)
        await self.tell_withdrawn(digests)

    async def find_chunks(self, digests: Sequence[bytes]) -> dict[bytes, list[ChunkRecord]]:
        """Who holds each of these chunks: likely live peers first, ourselves included.

        Raises:
            UsageError: not a digest.
        """
        return (await self.search_chunks(digests)).holders

    async def search_chunks(self, digests: Sequence[bytes]) -> ChunksAnswer:
        """As `find_chunks`, and a report of who was asked.

        Raises:
            UsageError: not a digest.
        """
        for digest in digests:
            check_digest(digest)
        return await self._finder.find(digests)

    # --- manifests ----------------------------------------------------------------------------

    async def put_manifest(self, digest: bytes, value: bytes) -> StoreReport:
        """Store a manifest on the k nearest peers, and keep repeating it until withdrawn.

        Raises:
            RefusedError: larger than 64 KiB.
            IntegrityError: its BLAKE3-256 is not `digest`.
            StoreError: our own copy could not be saved.
            QuotaError: there is no room for it.
        """
        return await self._put_own("put_manifest", manifest_key(digest), value)

    async def get_manifest(self, digest: bytes) -> bytes | None:
        """The manifest named `digest`, verified; None when nobody who answered has it.

        Raises:
            UsageError: not a digest.
        """
        return (await self.search_manifest(digest)).value

    async def search_manifest(self, digest: bytes) -> ManifestAnswer:
        """As `get_manifest`, and a report of who was asked.

        Raises:
            UsageError: not a digest.
        """
        check_digest(digest)
        return await self._reader.manifest(digest)

    # --- names and notices --------------------------------------------------------------------

    async def put_name(self, record: NameRecord) -> StoreReport:
        """Store a signed name on the k nearest peers, and keep repeating it until it expires.

        Raises:
            IntegrityError: not signed by its publisher.
            RefusedError: it has expired, or a record with a higher sequence number is known here.
            StoreError, QuotaError: our own copy could not be saved.
        """
        return await self._put_own("put_name", record.key, record.encoded)

    async def get_name(self, publisher: PeerId, name: str) -> NameAnswer:
        """The newest record of a name that a quorum of those responsible for it keeps."""
        return await self._reader.name(publisher, name)

    async def post_notice(self, notice: Notice) -> StoreReport:
        """Leave a signed notice with the k peers nearest to its recipient's mailbox.

        Repeated until it expires.

        Raises:
            IntegrityError: not signed by its sender.
            RefusedError: it has expired.
            StoreError, QuotaError: our own copy could not be saved.
        """
        check_notice(notice.key, notice.encoded, self._wall_clock())
        self._mailboxes.put_own(notice)
        await self._rows.flush()
        return await self._spread("post_notice", notice.key, notice.encoded)

    async def notices_for(self, recipient: PeerId) -> NoticesAnswer:
        """Everything that any of the peers responsible for `recipient`'s mailbox keeps."""
        return await self._reader.notices(recipient)

    async def _put_own(self, kind: str, key: bytes, value: bytes) -> StoreReport:
        now = self._wall_clock()
        checked = self._context.validators.check(key, value, now)
        known = self._values.get(key, now)
        if known is not None and known[1].rank > checked.rank:
            raise RefusedError(
                "A newer record of this name is known.",
                hint="Sign it with a higher sequence number.",
            )
        self._values.put_own(key, value, checked)
        await self._rows.flush()
        return await self._spread(kind, key, value)

    async def _spread(self, kind: str, key: bytes, value: bytes) -> StoreReport:
        report = await self._value_publisher.spread(kind, key, value)
        self._repeater.missed(failure.peer for failure in report.failed)
        self._counters.add("values_put")
        return report

    # --- leaving ------------------------------------------------------------------------------

    async def hand_over(self, within: float = 2.0) -> HandoverReport:
        """Before the end: give what this node keeps to those who keep it from now on.

        Takes `within` seconds at most; what does not fit in is left to others' repetitions. May be
        cancelled at any time.
        """
        return await self._handover.before_leaving(within)

    # --- observation --------------------------------------------------------------------------

    def recent_queries(self) -> list[QueryReport]:
        """What the last queries and announcements did, oldest first; some 100 are kept."""
        return self._parts.traces.recent()

    @property
    def keys_pending(self) -> int:
        """How many of our keys too few peers know of; they are told again soon."""
        return len(self._publisher.untold)

    @property
    def announce_lag(self) -> float:
        """For how long the oldest of these has been waiting, in seconds; 0 when there is none."""
        return self._publisher.untold.lag(self._wall_clock())

    def holds(self, digest: bytes) -> bool:
        """Whether this node has announced that it holds this chunk, and repeats it."""
        return self._chunks.holds(digest)

    def stats(self) -> dict[str, int]:
        """Counters, and the sizes of what is kept; names are listed in docs/dht.md."""
        return {**self._counters.snapshot(), **self._parts.sizes()}

    async def _greet(self, peer: PeerId) -> None:
        with trio.move_on_after(_CONNECT_WITHIN):
            try:
                await self._host.connect(peer)
                await self._upkeep.meet(peer)
            except Exception as error:  # noqa: BLE001 - task boundary: one peer must not end the rest
                as_peer_error(error, peer, self._counters)
                self._counters.add("bootstrap_failed")


@asynccontextmanager
async def open_dht(
    host: Host,
    backend: RecordBackend,
    settings: DhtSettings | None = None,
    *,
    wall_clock: Callable[[], float] = time.time,
    rng: random.Random | None = None,
    signer: Signer | None = None,
    realm: bytes = b"",
) -> AsyncIterator[Dht]:
    """Run a node's DHT over `host` for the length of the block.

    Args:
        backend: where records and peers survive a restart.
        wall_clock: Unix time; records expire by it.
        rng: source of jitter and random keys; seeded in simulations.
        signer: the host's identity; without it this node signs no peer record, and takes no part
            in the full map.
        realm: names the mesh; peer records signed for another are void.

    Raises:
        UsageError: a zone that cannot be told to others.
        StoreError: what an earlier run saved cannot be read; or the block ended without an error,
            and what this run learned could not be saved.
        QuotaError: the same end, for want of room.
    """
    settings = settings or DhtSettings()
    if len(settings.zone) > MAX_ZONE_CHARS or not (settings.zone + "-").isprintable():
        raise UsageError(
            f"The zone {settings.zone[:80]!r} is not a printable word of at most"
            f" {MAX_ZONE_CHARS} characters.",
            hint="Shorten `zone` in the configuration.",
        )
    saved = await backend.load()
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        rng = rng or random.Random()
        context = DhtContext.over(host, nursery, backend, settings, wall_clock, rng, realm)
        parts = DhtParts(context, signer, realm)
        parts.restore(saved)
        parts.start()
        try:
            yield Dht(parts)
        except BaseException as error:  # noqa: BLE001 - raised again below, outside the nursery
            # Inside, the nursery would wrap the caller's own error into a group.
            failure = error
        nursery.cancel_scope.cancel()
    try:
        await parts.close()
    except Exception as error:
        # Why the caller is leaving matters more than that the disk failed as well.
        if failure is None:
            raise
        _log.warning(
            "dht_close_failed", error=str(error), exc_info=not isinstance(error, MeshError)
        )
    if failure is not None:
        raise failure
