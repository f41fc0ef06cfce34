"""A `Host` on real sockets: TCP, `/noise`, `/yamux/1.0.0`, as any libp2p node speaks them.

`docs/transport.md` says which faults of py-libp2p that avoids.
"""

from __future__ import annotations

import errno
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import structlog
import trio

from ...config.addresses import ADDRESS_EXAMPLE, Address, parse_address
from ...dht.host import ConnectionEvent, Stream, StreamHandler
from ...dht.peer_id import PeerId
from ...errors import PeerError, RefusedError, UsageError
from .address_book import AddressBook
from .connection_events import EventHub
from .dialing import Dialler
from .interfaces import concrete_addresses
from .libp2p_connection import HandlerCounts, Libp2pConnection
from .libp2p_upgrade import Upgrader
from .limits import HostLimits
from .native_socket import NativeSocket
from .noise import HostIdentity
from .owned_nursery import open_owned_nursery

__all__ = ["HostIdentity", "Libp2pHost", "open_libp2p_host"]

_log = structlog.get_logger(__name__)


class Libp2pHost:
    """Who we are on the network, on TCP with Noise and Yamux; implements `Host`.

    Made by `open_libp2p_host`.
    """

    def __init__(
        self,
        identity: HostIdentity,
        nursery: trio.Nursery,
        limits: HostLimits,
        announce: Sequence[str],
    ) -> None:
        self.counts = HandlerCounts()
        self.refused_connections = 0
        self._peer_id = identity.peer_id
        self._nursery = nursery
        self._limits = limits
        self._announce = list(announce)
        self._listening: list[tuple[str, str, int]] = []
        self._upgrader = Upgrader(identity, limits, self._count_violation)
        self._handlers: dict[str, StreamHandler] = {}
        self._connections: dict[PeerId, list[Libp2pConnection]] = {}
        self._connected: frozenset[PeerId] = frozenset()
        self._trusted: Callable[[PeerId], bool] = lambda peer: True
        self._inbound = 0
        self._handshakes: OrderedDict[int, trio.CancelScope] = OrderedDict()
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
        self._handlers[protocol] = handler

    # --- strangers ----------------------------------------------------------------------------

    def bound_strangers(self, trusted: Callable[[PeerId], bool]) -> None:
        self._trusted = trusted
        for peer, connections in self._connections.items():
            for connection in connections:
                if not trusted(peer):
                    connection.distrust()

    def trust(self, peer: PeerId) -> None:
        for connection in self._connections.get(peer, ()):
            connection.trust()

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
        connection = self._newest(peer)
        try:
            return await connection.open_stream(protocol)
        except PeerError:
            if not connected_before or connection.usable:
                raise
        # It had died unnoticed, or its end was on the way: the peer may be there again.
        await self.connect(peer)
        return await self._newest(peer).open_stream(protocol)

    def _newest(self, peer: PeerId) -> Libp2pConnection:
        for connection in reversed(self._connections.get(peer, ())):
            if connection.usable:
                return connection
        raise PeerError(f"The connection to peer {peer.short} was lost.")

    def _usable(self, peer: PeerId) -> bool:
        """Whether a stream can be opened without dialling.

        Streams on connections the peer is leaving live on, and end them with the last one.
        """
        return any(connection.usable for connection in self._connections.get(peer, ()))

    async def _dial_one(self, peer: PeerId, address: str) -> None:
        _, _, name, _, port = address.split("/")
        try:
            stream = await trio.open_tcp_stream(name, int(port))
        except OSError as error:
            raise PeerError(_os_reason(error)) from error
        wire = NativeSocket(stream)
        try:
            connection = await self._upgrade(wire, peer)
            await self._nursery.start(partial(connection.run, self._opened, self._forget))
        except BaseException:
            wire.close()
            raise

    async def _upgrade(self, wire: NativeSocket, expected: PeerId | None) -> Libp2pConnection:
        muxer = await self._upgrader.upgrade(wire, expected)
        if muxer.peer == self._peer_id:
            raise PeerError("is this node itself")
        return Libp2pConnection(
            muxer,
            inbound=expected is None,
            limits=self._limits,
            handlers=self._handlers,
            handler_nursery=self._nursery,
            counts=self.counts,
        )

    def _count_violation(self, reason: str) -> None:
        self.counts.violations[reason] += 1

    def _opened(self, connection: Libp2pConnection) -> None:
        peer = connection.peer
        if not self._trusted(peer):
            connection.distrust()
        if connection.inbound:
            self._inbound += 1
        known = self._connections.setdefault(peer, [])
        known.append(connection)
        self._dialler.backoff.clear(peer)
        if len(known) == 1:
            self._connected = frozenset(self._connections)
            self._hub.publish(ConnectionEvent(peer, connected=True))
        elif len(known) > self._limits.max_connections_per_peer:
            known[0].close("a newer connection took its place")

    def _forget(self, connection: Libp2pConnection) -> None:
        known = self._connections.get(connection.peer, [])
        if connection not in known:
            return
        known.remove(connection)
        if connection.inbound:
            self._inbound -= 1
        if not known:
            del self._connections[connection.peer]
            self._connected = frozenset(self._connections)
            self._hub.publish(ConnectionEvent(connection.peer, connected=False))

    # --- listening ----------------------------------------------------------------------------

    async def listen(self, addresses: Sequence[str]) -> None:
        """Accept connections at the given multiaddrs, until the host is closed.

        Raises:
            UsageError: not an address to listen on.
            RefusedError: the port is taken or the address is not ours.
        """
        listeners: list[trio.SocketListener] = []
        try:
            for address in addresses:
                listeners += await _bind(address)
        except BaseException:
            for listener in listeners:
                listener.socket.close()
            raise
        for listener in listeners:
            host, port = listener.socket.getsockname()[:2]
            self._listening.append(("ip6" if ":" in host else "ip4", host.partition("%")[0], port))
        if listeners:
            await self._nursery.start(partial(trio.serve_listeners, self._accept, listeners))

    async def _accept(self, stream: trio.SocketStream) -> None:
        """Task of one inbound connection; the socket is closed when it returns."""
        if self._inbound >= self._limits.max_connections:
            self.refused_connections += 1
            return
        if len(self._handshakes) >= self._limits.max_pending_handshakes:
            # The oldest has had its chance; connections that never speak must not keep others out.
            self._handshakes.popitem(last=False)[1].cancel()
        wire = NativeSocket(stream)
        try:
            with trio.move_on_after(self._limits.negotiation_timeout) as scope:
                self._handshakes[id(scope)] = scope
                connection = await self._upgrade(wire, None)
            self._handshakes.pop(id(scope), None)
            if self._inbound >= self._limits.max_connections:
                self.refused_connections += 1
            elif not scope.cancelled_caught:
                await connection.run(self._opened, self._forget)
        except PeerError as error:
            self._handshakes.pop(id(scope), None)
            _log.debug("inbound_connection_failed", error=error.message)
        finally:
            wire.close()

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
) -> AsyncIterator[Libp2pHost]:
    """A host that is listening; everything of it is closed at the end of the block.

    Args:
        identity: peer id and key.
        listen: multiaddrs such as `/ip4/0.0.0.0/tcp/4710`; port 0 takes a free one.
        announce: what `addresses()` says instead (behind NAT, in containers).

    Raises:
        UsageError: an address is malformed.
        RefusedError: a port is taken, or an address is not this machine's.
    """
    for address in announce:
        _check_announced(address)
    async with open_owned_nursery() as nursery:
        host = Libp2pHost(identity, nursery, limits or HostLimits(), announce)
        try:
            await host.listen(listen)
            yield host
        finally:
            host.close_connections()


def _check_announced(text: str) -> None:
    address = _parse(text, "announce")
    if address.peer is not None or not address.is_dialable:
        raise UsageError(
            f"network.announce: others cannot dial {text}.",
            hint="Name a concrete host and port, without /p2p.",
        )


def _parse(text: str, key: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise UsageError(
            f"network.{key}: {text[:80]!r} cannot be used: {error}.",
            hint=f"An address looks like {ADDRESS_EXAMPLE}.",
        ) from error


async def _bind(text: str) -> Sequence[trio.SocketListener]:
    address = _parse(text, "listen")
    if address.peer is not None or not address.is_numeric:
        raise UsageError(
            f"network.listen: cannot listen on {text}.",
            hint="Name an IP address and a port, such as /ip4/0.0.0.0/tcp/4710.",
        )
    port = address.port
    try:
        return await trio.open_tcp_listeners(port, host=address.host)
    except OSError as error:
        raise RefusedError(
            f"Cannot listen on {text}: {_os_reason(error)}.",
            hint=f"Stop what uses port {port}, or choose another port (config key network.listen)."
            if _is(error, errno.EADDRINUSE)
            else "Choose an address of this machine (config key network.listen).",
        ) from error


def _is(error: OSError, number: int) -> bool:
    return error.errno == number or (
        isinstance(error.__cause__, OSError) and error.__cause__.errno == number
    )


def _os_reason(error: OSError) -> str:
    """What the operating system said, in its own words, without the address repeated."""
    cause: BaseException | None = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    best = cause if isinstance(cause, OSError) else error
    return (best.strerror or str(best)).lower()
