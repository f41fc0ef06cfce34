"""The DHT of one node: what the other rooms call, and its life from open to close."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import islice

import structlog
import trio

from ..errors import MeshError, UsageError
from .backend import RecordBackend, Row, RowKind
from .boundary import as_peer_error
from .contacts import PeerEntry
from .context import DhtContext
from .finder import Finder
from .gossip import Gossip
from .gossip_server import GossipServer
from .host import Host
from .kad_wire import PeerAddresses
from .keyspace import check_digest, manifest_key
from .locator import Locator
from .manifests import ManifestStore
from .peer_id import PeerId
from .publisher import AnnounceReport, Publisher, StoreReport
from .query import LookupResult, Queries
from .records import ChunkRecord, ChunkRecords
from .records_wire import MAX_ZONE_CHARS
from .server import Server
from .settings import DhtSettings
from .signing import Signer
from .upkeep import Upkeep

_CONNECT_WITHIN = 5.0
_GREETINGS_AT_ONCE = 8
_MAX_GREETED = 64
_GREET_WITHIN = 20.0
_CLOSE_WITHIN = 2.0

_log = structlog.get_logger("meshnode.dht")


class Dht:
    """A node's part of the mesh's distributed hash table. Made by `open_dht`."""

    def __init__(
        self,
        host: Host,
        nursery: trio.Nursery,
        backend: RecordBackend,
        settings: DhtSettings,
        wall_clock: Callable[[], float],
        rng: random.Random,
        signer: Signer | None = None,
        realm: bytes = b"",
    ) -> None:
        context = DhtContext.over(host, nursery, backend, settings, wall_clock, rng)
        self._context = context
        self._host = host
        self._wall_clock = wall_clock
        self._counters = counters = context.counters
        self._rows = rows = context.rows
        self._contacts = contacts = context.contacts
        self._rpc = context.rpc
        self._client = client = context.client
        self._chunks = chunks = ChunkRecords(host.peer_id, settings, rows, counters)
        self._manifests = manifests = ManifestStore(host.peer_id, settings, rows, counters)
        self._gossip = None
        if signer is not None and settings.map_members:
            self._gossip = Gossip(context, signer, realm)
            contacts.watch(self._gossip)
        self._queries = Queries(context)
        self._locator = Locator(context, self._gossip)
        self._publisher = Publisher(context, self._locator, chunks, manifests)
        self._finder = Finder(context, self._locator, chunks)
        self._upkeep = Upkeep(context, self._queries, self._publisher, chunks, manifests)
        self._server = Server(context, chunks, manifests, self._upkeep.heard)

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

        connected = self._host.connected_peers()
        # Whom we are told of may be anybody: addresses come from invitations and the local network.
        given = [peer for peer in dict.fromkeys(peers) if peer != self._host.peer_id]
        with trio.move_on_after(_GREET_WITHIN):
            async with trio.open_nursery() as nursery:
                for peer in {*islice(connected, _MAX_GREETED), *given[:_MAX_GREETED]}:
                    nursery.start_soon(greet_in_turn, peer)
        await self._upkeep.refresh()
        return len(self._contacts.table)

    def peers(self) -> list[PeerEntry]:
        """Every peer in the routing table."""
        return self._contacts.entries()

    async def find_peer(self, peer: PeerId) -> list[str]:
        """Multiaddrs of `peer`, asking the mesh unless it is connected; empty when unknown."""
        known = self._host.known_addresses(peer)
        if known and peer in self._host.connected_peers():
            return known

        async def ask(other: PeerId) -> tuple[bool | None, tuple[PeerAddresses, ...]]:
            closer = await self._client.find_node(other, bytes(peer))
            named = any(entry.peer == peer and entry.addresses for entry in closer)
            return named or None, closer

        await self._queries.run(bytes(peer), ask)
        return self._host.known_addresses(peer)

    async def find_closest(self, key: bytes) -> LookupResult[None]:
        """The k nearest live peers to the position of `key`, by an iterative lookup."""

        async def ask(peer: PeerId) -> tuple[None, tuple[PeerAddresses, ...]]:
            return None, await self._client.find_node(peer, key)

        return await self._queries.run(key, ask)

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
        return await self._publisher.spread(held)

    def let_go(self, digests: Sequence[bytes]) -> None:
        """No longer hold, and no longer repeat, these chunks and manifests. Tells nobody yet.

        At once and without waiting, so that a caller can do it under a lock of its own;
        `tell_withdrawn` does the part that takes time.

        Raises:
            UsageError: not a digest; then nothing has changed.
        """
        self._publisher.let_go(digests)

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
        report = await self._publisher.put_manifest(digest, value)
        await self._rows.flush()
        return report

    async def get_manifest(self, digest: bytes) -> bytes | None:
        """The manifest named `digest`, verified; None when nobody who answered has it.

        Raises:
            UsageError: not a digest.
        """
        check_digest(digest)
        kept = self._manifests.get(digest, self._wall_clock())
        if kept is not None:
            return kept

        async def ask(peer: PeerId) -> tuple[bytes | None, tuple[PeerAddresses, ...]]:
            return await self._client.get_manifest(peer, digest)

        return (await self._queries.run(manifest_key(digest), ask)).value

    # --- observation --------------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """Counters, and the sizes of what is kept; names are listed in docs/dht.md."""
        return {
            **self._counters.snapshot(),
            **({} if self._gossip is None else self._gossip.sizes()),
            "table_peers": len(self._contacts.table),
            "chunk_records": len(self._chunks),
            "own_chunks": self._chunks.own_count,
            "manifests": len(self._manifests),
            "own_manifests": len(self._manifests.own_digests()),
            "manifest_bytes": self._manifests.kept_bytes,
        }

    # --- life ---------------------------------------------------------------------------------

    def restore(self, rows: Sequence[Row]) -> None:
        """Take over what an earlier run saved."""
        by_kind: dict[int, list[Row]] = {}
        for row in rows:
            by_kind.setdefault(row[0], []).append(row)

        def of(*kinds: RowKind) -> list[Row]:
            return [row for kind in kinds for row in by_kind.get(kind, ())]

        now = self._wall_clock()
        self._chunks.restore(of(RowKind.OWN_CHUNK, RowKind.CHUNK), now)
        self._manifests.restore(of(RowKind.OWN_MANIFEST, RowKind.MANIFEST), now)
        self._contacts.restore(of(RowKind.PEER))
        self._upkeep.restore(of(RowKind.SCHEDULE))
        if self._gossip is not None:
            self._gossip.restore(of(RowKind.PEER_RECORD))

    def start(self) -> None:
        """Serve others, and begin the background work."""
        self._server.install()
        self._upkeep.start()
        if self._gossip is not None:
            GossipServer(self._context, self._gossip).install()
            self._gossip.start()

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
                if self._gossip is not None:
                    await self._gossip.leave()
                self._contacts.save()
                await self._rows.flush()
            if scope.cancelled_caught:
                _log.warning("dht_close_late", waited=_CLOSE_WITHIN)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_WITHIN):
                await self._rpc.close()

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
        signer: the host's identity; without it this node takes no part in the full map.
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
        dht = Dht(host, nursery, backend, settings, wall_clock, rng or random.Random(), signer, realm)
        dht.restore(saved)
        dht.start()
        try:
            yield dht
        except BaseException as error:  # noqa: BLE001 - raised again below, outside the nursery
            # Inside, the nursery would wrap the caller's own error into a group.
            failure = error
        nursery.cancel_scope.cancel()
    try:
        await dht.close()
    except Exception as error:
        # Why the caller is leaving matters more than that the disk failed as well.
        if failure is None:
            raise
        _log.warning(
            "dht_close_failed", error=str(error), exc_info=not isinstance(error, MeshError)
        )
    if failure is not None:
        raise failure
