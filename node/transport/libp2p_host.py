"""A `Host` on real sockets: TCP, `/noise`, `/yamux/1.0.0`, as any libp2p node speaks them.

`docs/transport.md` says which faults of py-libp2p that avoids.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import structlog
import trio

from ...dht.host import ConnectionEvent, Stream, StreamHandler
from ...dht.peer_id import PeerId
from ...errors import PeerError
from .address_book import AddressBook
from .connection_events import EventHub
from .dialing import Dialler
from .identify import IDENTIFY_PROTOCOL, PUSH_PROTOCOL, Description, Identify
from .idle_choice import Standing
from .interfaces import concrete_addresses
from .libp2p_choice import preferred, superfluous
from .libp2p_connection import HandlerCounts, Libp2pConnection
from .libp2p_handshakes import PendingHandshakes
from .libp2p_listen import bind_all, check_announced, socket_address
from .libp2p_tcp import open_tcp
from .libp2p_upgrade import Upgrader
from .limits import HostLimits
from .native_socket import NativeSocket
from .noise import HostIdentity
from .owned_nursery import open_owned_nursery
from .ping import PING_PROTOCOL, ping, serve_pings
from .strangers import Gate
from .trimming import Trimmer

__all__ = ["HostIdentity", "Libp2pHost", "open_libp2p_host"]

_log = structlog.get_logger(__name__)

_RESOLVERS = 4
"""Threads that wait for name servers. Names come from anybody, and the threads for the disk must
not be the ones that wait for them."""


class Libp2pHost:
    """Who we are on the network, on TCP with Noise and Yamux; implements `Host`.

    Serves identify and ping to everybody, as any libp2p node does, until it has a gate: then only
    what the gate lets through. Made by `open_libp2p_host`.
    """

    def __init__(
        self,
        identity: HostIdentity,
        nursery: trio.Nursery,
        limits: HostLimits,
        announce: Sequence[str],
        spared: Collection[PeerId],
    ) -> None:
        self.counts = HandlerCounts()
        self.refused_connections = 0
        self._peer_id = identity.peer_id
        self._nursery = nursery
        self._limits = limits
        self._announce = list(announce)
        self._listening: list[tuple[str, str, int]] = []
        self._upgrader = Upgrader(identity, limits, self._count_violation)
        self._identify = Identify(self)
        self._handlers: dict[str, StreamHandler] = {
            IDENTIFY_PROTOCOL: self._identify.serve,
            PUSH_PROTOCOL: self._identify.serve_push,
            PING_PROTOCOL: serve_pings,
        }
        self._connections: dict[PeerId, list[Libp2pConnection]] = {}
        self._connected: frozenset[PeerId] = frozenset()
        self._gate: Gate | None = None
        self._inbound = 0
        self._spared = frozenset(spared)
        self._trimmer: Trimmer[Libp2pConnection] = Trimmer(
            nursery,
            limits,
            count=self._connections.__len__,
            inbound=lambda: self._inbound,
            standings=self._standings,
            leave=Libp2pConnection.leave,
            end=Libp2pConnection.make_room,
        )
        self._resolvers = trio.CapacityLimiter(_RESOLVERS)
        self._handshakes = PendingHandshakes(
            limits.max_pending_handshakes, limits.negotiation_timeout, self.counts.handshakes
        )
        self._hub = EventHub()
        self._book = AddressBook(self._peer_id, per_peer=limits.max_addresses_per_peer)
        self._dialler = Dialler(
            nursery,
            self._book,
            self._dial_one,
            self._usable,
            limits,
            random.Random(),
        )

    # --- who and where ------------------------------------------------------------------------

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    def addresses(self) -> list[str]:
        if self._announce:
            return list(self._announce)
        return [
            address
            for kind, host, port in self._listening
            for address in concrete_addresses(kind, host, port)
        ]

    def known_addresses(self, peer: PeerId) -> list[str]:
        return self._book.get(peer)

    def add_addresses(self, peer: PeerId, addresses: Sequence[str]) -> None:
        if self._book.add(peer, addresses):
            self._dialler.backoff.clear(peer)

    def connected_peers(self) -> frozenset[PeerId]:
        return self._connected

    def events(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[ConnectionEvent]]:
        return self._hub.subscribe()

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        is_new = protocol not in self._handlers
        self._handlers[protocol] = handler
        if is_new:
            self._identify.changed()

    # --- what others see of us, and say of themselves -----------------------------------------

    def set_gate(self, gate: Gate) -> None:
        self._gate = gate
        for peer, connections in self._connections.items():
            for connection in connections:
                if not gate.trusts(peer):
                    connection.distrust()

    def trust(self, peer: PeerId) -> None:
        for connection in self._connections.get(peer, ()):
            connection.trust()
        self._identify.changed()

    async def _admits(self, peer: PeerId, protocol: str) -> bool:
        return self._gate is None or await self._gate.admits(peer, protocol)

    def protocols_for(self, peer: PeerId) -> tuple[str, ...]:
        """What we speak, as far as `peer` may know."""
        gate = self._gate
        return tuple(name for name in self._handlers if gate is None or gate.shows(peer, name))

    def observed_address(self, peer: PeerId) -> str | None:
        """From where the connection to `peer` comes, as a multiaddr; None without one."""
        connections = self._connections.get(peer)
        return connections[-1].remote if connections else None

    async def identify(self, peer: PeerId) -> Description:
        """Ask `peer` about itself. Its addresses become known ones; believe nothing of the rest.

        Raises:
            PeerError: unreachable, does not speak identify, or answers nonsense.
        """
        return await self._identify.ask(peer, partial(self.open_stream, peer))

    async def ping(self, peer: PeerId) -> float:
        """Seconds of a round trip to `peer`, by `/ipfs/ping/1.0.0`.

        Raises:
            PeerError: unreachable, does not speak ping, or does not answer in time.
        """
        return await ping(await self.open_stream(peer, PING_PROTOCOL))

    async def _get_acquainted(self, connection: Libp2pConnection) -> None:
        """Learn where a peer that has dialled us listens, so that others can hear it from us."""
        try:
            await self._identify.ask(connection.peer, connection.open_stream)
        except PeerError as error:
            _log.debug("not_identified", peer=str(connection.peer), error=error.message)

    def stats(self) -> dict[str, int]:
        """Counters, and the sizes of what is kept; names are listed in docs/transport.md."""
        counts = self.counts
        return {
            "transport_connections": sum(len(found) for found in self._connections.values()),
            "transport_connections_inbound": self._inbound,
            "transport_connections_refused": self.refused_connections,
            "transport_connections_closed_idle": self._trimmer.closed_idle,
            "transport_connections_gave_way": self._trimmer.gave_way,
            "transport_handshakes_pending": len(self._handshakes),
            "transport_streams_refused": counts.refused,
            "transport_handlers_failed": counts.failed,
            **{f"transport_handshakes_{why}": n for why, n in counts.handshakes.items()},
            **{f"transport_violations_{why}": n for why, n in counts.violations.items()},
        }

    # --- connections --------------------------------------------------------------------------

    async def connect(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        if peer == self._peer_id:
            raise PeerError("A node does not dial itself.")
        if not self._usable(peer):
            await self._dialler.dial(peer)

    async def disconnect(self, peer: PeerId) -> None:
        for connection in list(self._connections.get(peer, ())):
            connection.close("the connection was closed here")
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        connected_before = self._usable(peer)
        await self.connect(peer)
        connection = self._best(peer)
        try:
            return await connection.open_stream(protocol)
        except PeerError:
            if not connected_before or connection.usable:
                raise
        # It had died unnoticed, or its end was on the way: the peer may be there again.
        await self.connect(peer)
        return await self._best(peer).open_stream(protocol)

    def _best(self, peer: PeerId) -> Libp2pConnection:
        connection = self._preferred(self._connections.get(peer, ()))
        if connection is None:
            raise PeerError(f"The connection to peer {peer.short} was lost.")
        return connection

    def _preferred(self, connections: Sequence[Libp2pConnection]) -> Libp2pConnection | None:
        return preferred(connections, self._peer_id, self._limits.dial_timeout)

    def _usable(self, peer: PeerId) -> bool:
        """Whether a stream can be opened without dialling.

        Streams on connections the peer is leaving live on, and end them with the last one.
        """
        return any(connection.usable for connection in self._connections.get(peer, ()))

    async def _dial_one(self, peer: PeerId, address: str) -> None:
        wire = NativeSocket(await open_tcp(address, self._resolvers))
        try:
            connection = await self._upgrade(wire, peer, address)
            await self._nursery.start(partial(connection.run, self._opened, self._forget))
        except BaseException:
            wire.close()
            raise

    async def _upgrade(
        self, wire: NativeSocket, expected: PeerId | None, remote: str
    ) -> Libp2pConnection:
        muxer = await self._upgrader.upgrade(wire, expected)
        if muxer.peer == self._peer_id:
            raise PeerError("is this node itself")
        return Libp2pConnection(
            muxer,
            inbound=expected is None,
            remote=remote,
            limits=self._limits,
            handlers=self._handlers,
            admits=self._admits,
            handler_nursery=self._nursery,
            counts=self.counts,
        )

    def _count_violation(self, reason: str) -> None:
        self.counts.violations[reason] += 1

    def _opened(self, connection: Libp2pConnection) -> None:
        peer = connection.peer
        known = self._connections.setdefault(peer, [])
        if not connection.inbound and any(not c.inbound and c.usable for c in known):
            # Two addresses of the peer answered one dial.
            connection.close("another connection to the peer was faster")
            return
        known.append(connection)
        if self._gate is not None and not self._gate.trusts(peer):
            connection.distrust()
        self._dialler.backoff.clear(peer)
        if connection.inbound:
            self._inbound += 1
            self._dialler.connected(peer)
            if self._gate is None:
                self._nursery.start_soon(self._get_acquainted, connection)
        self._trimmer.gained()
        if len(known) == 1:
            self._connected = frozenset(self._connections)
            self._hub.publish(ConnectionEvent(peer, connected=True))
        else:
            self._choose(known)

    def _choose(self, known: list[Libp2pConnection]) -> None:
        """Make up our mind which connection to a peer is used, and close what is too many."""
        best = self._preferred(known)
        for connection in known:
            connection.spare = connection is not best
        if best is not None:
            for connection in superfluous(known, best, self._limits.max_connections_per_peer):
                connection.close("other connections to the peer took its place")

    def _forget(self, connection: Libp2pConnection) -> None:
        peer = connection.peer
        known = self._connections.get(peer, [])
        if connection not in known:
            return
        known.remove(connection)
        if connection.inbound:
            self._inbound -= 1
        if known:
            self._choose(known)
        else:
            del self._connections[peer]
            self._connected = frozenset(self._connections)
            self._identify.forget(peer)
            self._hub.publish(ConnectionEvent(peer, connected=False))

    def _standings(self) -> list[Standing[Libp2pConnection]]:
        now = trio.current_time()
        return [
            Standing(
                connection,
                idle=None if connection.streams else now - connection.used_at,
                inbound=connection.inbound,
                spared=peer in self._spared,
                stranger=self._gate is not None and not self._gate.trusts(peer),
                way_back=bool(self._book.get(peer)),
            )
            for peer, connections in self._connections.items()
            for connection in connections
            if connection.usable
        ]

    # --- listening ----------------------------------------------------------------------------

    async def listen(self, addresses: Sequence[str]) -> None:
        """Accept connections at the given multiaddrs, until the host is closed.

        Raises:
            UsageError: not an address to listen on.
            RefusedError: the port is taken or the address is not ours.
        """
        listeners = await bind_all(addresses)
        for listener in listeners:
            self._listening.append(socket_address(listener.socket.getsockname()[:2]))
        if listeners:
            await self._nursery.start(partial(trio.serve_listeners, self._accept, listeners))

    async def _accept(self, stream: trio.SocketStream) -> None:
        """Task of one inbound connection; the socket is closed when it returns."""
        try:
            kind, host, port = socket_address(stream.socket.getpeername()[:2])
        except OSError:
            return  # it is gone already
        if not self._trimmer.has_room():
            self.refused_connections += 1
            return
        wire = NativeSocket(stream)
        try:
            with self._handshakes.one_more(host):
                connection = await self._upgrade(wire, None, f"/{kind}/{host}/tcp/{port}")
            if self._trimmer.make_room():
                await connection.run(self._opened, self._forget)
            else:
                self.refused_connections += 1
        except PeerError as error:
            _log.debug("inbound_connection_failed", host=host, error=error.message)
        except Exception:  # noqa: BLE001 - task boundary: whoever is there costs one connection
            self.counts.failed += 1
            _log.warning("inbound_connection_crashed", host=host, exc_info=True)
        finally:
            wire.close()

    async def run(self) -> None:
        """What the host does by itself, until cancelled."""
        await self._identify.keep_told()

    def close_connections(self) -> None:
        """End all connections at once, without waiting for any peer."""
        for connections in list(self._connections.values()):
            for connection in list(connections):
                connection.close("this node is shutting down")


@asynccontextmanager
async def open_libp2p_host(
    identity: HostIdentity,
    *,
    listen: Sequence[str] = (),
    announce: Sequence[str] = (),
    limits: HostLimits | None = None,
    spared: Collection[PeerId] = (),
) -> AsyncIterator[Libp2pHost]:
    """A host that is listening; everything of it is closed at the end of the block.

    Args:
        identity: peer id and key.
        listen: multiaddrs such as `/ip4/0.0.0.0/tcp/4710`; port 0 takes a free one.
        announce: what `addresses()` says instead (behind NAT, in containers).
        spared: peers whose connections are never closed for being idle.

    Raises:
        UsageError: an address is malformed.
        RefusedError: a port is taken, or an address is not this machine's.
    """
    for address in announce:
        check_announced(address)
    async with open_owned_nursery() as nursery:
        host = Libp2pHost(identity, nursery, limits or HostLimits(), announce, spared)
        nursery.start_soon(host.run)
        try:
            await host.listen(listen)
            yield host
        finally:
            host.close_connections()
