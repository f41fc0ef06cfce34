"""A node's rooms, started in one order and stopped in the reverse.

Identity and mesh, store (which locks the data directory), host, membership gate, DHT, exchange,
chunk server, background tasks, bootstrap. Every task lives in the one nursery of `open_parts`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
import trio

from .. import __version__
from ..config import Config
from ..dht import Dht, DhtSettings, open_dht
from ..dht.peer_id import PeerId
from ..dht.settings import KAD_PROTOCOL
from ..errors import MeshError
from .bandwidth import follow_schedule, limits_now
from .bootstrap import Bootstrap, split_address
from .exchange import (
    Exchange,
    ExchangeSettings,
    PeerInfo,
    PeerStatsTable,
    ServerLimits,
    Traffic,
    open_exchange,
    open_traffic,
    serve,
)
from .identity import Identity, MemberInfo, Mesh
from .keeper import Announcer, Catalogue, Collector, Promises, PutJournal, Releaser, catch_up
from .members import Members
from .seeker import Seeker
from .store import KeyValue, Store, open_store
from .transport.libp2p_host import open_libp2p_host
from .transport.limits import HostLimits
from .transport.mdns import open_mdns
from .transport.member import MemberHost, open_member_host
from .transport.owned_nursery import open_owned_nursery

log = structlog.get_logger(__name__)

_SAVE_STATS_EVERY_SECS = 60.0
_SAVE_STATS_WITHIN_SECS = 1.0
_MOST_SPARED = 8


@dataclass(frozen=True, slots=True)
class Parts:
    """The rooms of a running node."""

    config: Config
    identity: Identity
    mesh: Mesh
    store: Store
    host: MemberHost
    exchange: Exchange
    traffic: Traffic
    dht: Dht
    members: Members
    seeker: Seeker
    announcer: Announcer
    promises: Promises
    releaser: Releaser
    journal: PutJournal
    catalogue: Catalogue
    bootstrap: Bootstrap


@asynccontextmanager
async def open_parts(config: Config, *, serve_peers: bool) -> AsyncIterator[Parts]:
    """See `node.open_node`."""
    mesh = await trio.to_thread.run_sync(Mesh.load, config.paths.mesh_file)
    identity = await trio.to_thread.run_sync(Identity.load_or_create, config.paths.identity_file)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(
            open_store(
                config.paths.data_dir,
                quota=config.storage.quota or None,
                min_free=config.storage.min_free_disk,
                lock_path=config.paths.lock_file,
            )
        )
        host = await _open_host(stack, config, identity, mesh, serve_peers=serve_peers)
        saved_stats = store.key_value("peer_stats")
        stats = PeerStatsTable()
        bandwidth = config.performance.bandwidth
        traffic = await stack.enter_async_context(
            open_traffic(limits_now(bandwidth, time.localtime()))
        )
        dht = await stack.enter_async_context(
            open_dht(host, store.records, _dht_settings(config), signer=identity, realm=mesh.id)
        )
        seeker = Seeker(host, dht)
        exchange = await stack.enter_async_context(
            open_exchange(
                host,
                identity=identity,
                settings=_exchange_settings(config),
                stats=stats,
                traffic=traffic,
                on_unreachable=seeker.unreachable,
            )
        )
        await stats.load(saved_stats, [entry.peer for entry in dht.peers()])
        announcer = Announcer(dht)
        catalogue = Catalogue(config.paths.data_dir / "catalogue")
        promises = Promises(identity.peer_id, store, dht, announcer, catalogue)
        await stack.enter_async_context(
            serve(
                host,
                store.chunks,
                identity=identity,
                info_provider=_Introduction(config, store),
                limits=_server_limits(config),
                on_stored=promises.keep_for_peer,
                on_release=promises.release_for_peer,
                traffic=traffic,
            )
        )
        bootstrap = Bootstrap(host, dht, [*config.network.bootstrap, *mesh.bootstrap])
        members = Members(host, dht, exchange, config.network.connections_low)
        releaser = Releaser(promises, store, exchange, members)
        collector = Collector(promises, releaser, store)
        if config.network.mdns and serve_peers:
            await stack.enter_async_context(open_mdns(host, mesh, bootstrap.found))
        async with open_owned_nursery() as nursery:
            nursery.start_soon(announcer.run)
            nursery.start_soon(catch_up, store.chunks, dht, promises)
            nursery.start_soon(bootstrap.run)
            nursery.start_soon(members.run)
            nursery.start_soon(seeker.run)
            nursery.start_soon(releaser.run)
            nursery.start_soon(collector.run)
            nursery.start_soon(_keep_stats, stats, saved_stats)
            nursery.start_soon(follow_schedule, traffic, bandwidth)
            yield Parts(
                config=config,
                identity=identity,
                mesh=mesh,
                store=store,
                host=host,
                exchange=exchange,
                traffic=traffic,
                dht=dht,
                members=members,
                seeker=seeker,
                announcer=announcer,
                promises=promises,
                releaser=releaser,
                journal=PutJournal(identity.peer_id, store),
                catalogue=catalogue,
                bootstrap=bootstrap,
            )


async def _open_host(
    stack: AsyncExitStack, config: Config, identity: Identity, mesh: Mesh, *, serve_peers: bool
) -> MemberHost:
    network, limits = config.network, config.limits
    inner = await stack.enter_async_context(
        open_libp2p_host(
            identity,
            listen=network.listen if serve_peers else (),
            announce=network.announce if serve_peers else (),
            limits=HostLimits(
                dial_timeout=network.dial_timeout_secs,
                keepalive=network.keepalive_secs,
                max_connections=limits.max_connections,
                connections_low=network.connections_low,
                connections_high=network.connections_high,
                idle_after=network.idle_after_secs,
                max_streams_per_peer=limits.max_streams_per_peer,
            ),
            spared=_named_peers(network.bootstrap),
        )
    )
    info = MemberInfo(config.node.name, config.node.zone, f"meshnode/{__version__}")
    return await stack.enter_async_context(
        open_member_host(inner, mesh, info, public=[KAD_PROTOCOL])
    )


def _named_peers(addresses: Sequence[str]) -> list[PeerId]:
    """The members the user has named, when they are few: of many, none is meant in particular."""
    peers = {split_address(address)[0] for address in addresses}
    return sorted(peers) if len(peers) <= _MOST_SPARED else []


def _exchange_settings(config: Config) -> ExchangeSettings:
    return ExchangeSettings(
        first_byte_timeout=config.performance.chunks.peer_response_timeout_secs,
    )


def _server_limits(config: Config) -> ServerLimits:
    limits = config.limits
    rate = limits.requests_per_second
    return ServerLimits(
        requests_per_peer=limits.max_requests_per_peer,
        requests_per_second=float(rate) if rate else float("inf"),
        request_burst=float(rate) if rate else float("inf"),
        memory_bytes=limits.max_bytes_in_flight,
    )


def _dht_settings(config: Config) -> DhtSettings:
    return DhtSettings(
        zone=config.node.zone,
        max_records_per_peer=config.limits.max_records_per_peer,
        map_members=config.network.full_map_members,
    )


@dataclass(frozen=True, slots=True)
class _Introduction:
    """What we say of ourselves when a peer asks."""

    config: Config
    store: Store

    async def __call__(self) -> PeerInfo:
        stats = await self.store.chunks.stats()
        return PeerInfo(
            name=self.config.node.name,
            zone=self.config.node.zone,
            available_bytes=stats.available_bytes,
            version=__version__,
            chunks=stats.chunks,
        )


async def _keep_stats(stats: PeerStatsTable, table: KeyValue) -> None:
    """Save peer statistics now and then, and once more on the way out."""
    try:
        while True:
            await trio.sleep(_SAVE_STATS_EVERY_SECS)
            await _save_stats(stats, table)
    finally:
        with trio.move_on_after(_SAVE_STATS_WITHIN_SECS, shield=True):
            await _save_stats(stats, table)


async def _save_stats(stats: PeerStatsTable, table: KeyValue) -> None:
    try:
        await stats.save(table)
    except MeshError as error:
        log.warning("peer_stats_not_saved", error=str(error))
