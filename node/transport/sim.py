"""A network in memory, on trio's (usually virtual) clock: hosts, links, and what goes wrong there.

    async with open_sim_network(seed=7, link=SimLink(latency=0.02)) as network:
        a, b = network.add_host(), network.add_host()

Errors and deadlines are those of the real host. Same seed, same network; for the same order of
tasks too, run it under `deterministic_schedule`.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

import structlog
import trio

from ...dht.host import ConnectionEvent, Stream, StreamHandler
from ...dht.peer_id import PeerId
from ...errors import PeerError
from .address_book import AddressBook
from .connection_events import EventHub
from .dialing import Dialler
from .idle_choice import Standing
from .limits import HostLimits
from .owned_nursery import open_owned_nursery
from .sim_stream import (
    Postman,
    QueuedDirection,
    SimConnection,
    SimDirection,
    SimLink,
    SimStream,
    SteadyDirection,
)
from .trimming import Trimmer

__all__ = ["SimHost", "SimLink", "SimNetwork", "deterministic_schedule", "open_sim_network"]

_log = structlog.get_logger(__name__)

_DIAL_ROUND_TRIPS = 4
"""TCP, two multistream selections around Noise, and the muxer."""


class SimNetwork:
    """All simulated hosts and the links between them; faults are switched on here."""

    def __init__(
        self,
        nursery: trio.Nursery,
        seed: int,
        link: SimLink,
        limits: HostLimits,
        postman: Postman,
    ) -> None:
        self.nursery = nursery
        self.limits = limits
        self.postman = postman
        self.hosts: dict[PeerId, SimHost] = {}
        self.changed = trio.Event()
        """Set and replaced when traffic that was blocked may flow again."""
        self._seed = seed
        self._rng = random.Random(seed)
        self._default_link = link
        self._links: dict[frozenset[PeerId], SimLink] = {}
        self._ways: dict[tuple[PeerId, PeerId], QueuedDirection] = {}
        self._steady = SteadyDirection(link)
        self._by_address: dict[str, SimHost] = {}
        self._side: dict[PeerId, int] = {}
        self._partitions = 0

    def add_host(
        self,
        peer_id: PeerId | None = None,
        *,
        address: str | None = None,
        kind: type[SimHost] | None = None,
    ) -> SimHost:
        """A new host; restarts a killed one.

        Args:
            address: where it listens, a multiaddr nobody else has; without one, a new one.
            kind: a class that extends `SimHost`.
        """
        if peer_id is None:
            peer_id = PeerId.from_ed25519(self._rng.randbytes(32))
        if peer_id in self.hosts and self.hosts[peer_id].alive:
            raise ValueError(f"peer {peer_id.short} is already up")
        if address is None:
            number = len(self._by_address) + 1
            address = f"/ip4/10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/tcp/4001"
        elif address in self._by_address and self._by_address[address].alive:
            raise ValueError(f"{address} is taken")
        host = (kind or SimHost)(self, peer_id, address, random.Random(self._rng.random()))
        self.hosts[peer_id] = self._by_address[address] = host
        return host

    def introduce(self) -> None:
        """Tell every host the address of every other one."""
        for host in self.hosts.values():
            for other in self.hosts.values():
                host.add_addresses(other.peer_id, other.addresses())

    # --- links --------------------------------------------------------------------------------

    def set_link(self, one: PeerId, other: PeerId, link: SimLink) -> None:
        """Replace what lies between two hosts, from the next packet on."""
        self._links[frozenset((one, other))] = link
        for way in ((one, other), (other, one)):
            if way in self._ways:
                self._ways[way].link = link
        connection = self.hosts[one].connection_to(other)
        if connection is not None:
            connection.ways = self.ways(one, other)

    def way(self, sender: PeerId, receiver: PeerId) -> SimDirection:
        """What carries packets from one host to another."""
        link = self._steady.link
        if self._links:
            link = self._links.get(frozenset((sender, receiver)), link)
        known = self._ways.get((sender, receiver))
        if known is not None:
            return known
        if link.is_steady:
            return self._steady if link is self._steady.link else SteadyDirection(link)
        rng = random.Random(self._seed.to_bytes(16, "big", signed=True) + sender + receiver)
        made = self._ways[sender, receiver] = QueuedDirection(link, rng)
        return made

    def ways(self, one: PeerId, other: PeerId) -> dict[PeerId, SimDirection]:
        """Both ways between two hosts, by sender."""
        return {one: self.way(one, other), other: self.way(other, one)}

    def host_at(self, address: str) -> SimHost | None:
        return self._by_address.get(address)

    def blocked(self, one: SimHost, other: SimHost) -> bool:
        """Whether packets between two hosts are held up now."""
        if one.frozen or other.frozen:
            return True
        side = self._side
        return bool(side) and side.get(one.peer_id, 0) != side.get(other.peer_id, 0)

    # --- faults -------------------------------------------------------------------------------

    def drop(self, one: PeerId, other: PeerId) -> None:
        """Break the connection between two hosts; they may dial again."""
        connection = self.hosts[one].connection_to(other)
        if connection is not None:
            self.break_connection(connection)

    def partition(self, *groups: Collection[PeerId]) -> None:
        """Let packets pass only inside each group, and among the hosts that are in none.

        What is under way is held, not lost: healed in time, connections go on.
        """
        self._partitions += 1
        self._side = {
            peer: number for number, group in enumerate(groups, start=1) for peer in group
        }
        self._traffic_changed(self.hosts.values())
        self.nursery.start_soon(self._expire_partition, self._partitions)

    def heal(self) -> None:
        """End the partition."""
        self._partitions += 1
        self._side = {}
        self._traffic_changed(self.hosts.values())

    def freeze(self, peer: PeerId) -> None:
        """Stop a host as SIGSTOP would: nothing is closed, nothing answered.

        Its own calls of the host hang until `thaw`; its program's other waits go on.
        """
        host = self.hosts[peer]
        host.frozen = True
        host.freezes += 1
        self.nursery.start_soon(self._expire_frozen, host, host.freezes)

    def thaw(self, peer: PeerId) -> None:
        """Let a frozen host run on."""
        host = self.hosts[peer]
        host.frozen = False
        host.freezes += 1
        self._traffic_changed([host])

    def kill(self, peer: PeerId) -> None:
        """End a host's process: its connections break, dials to it are refused."""
        self.hosts[peer].shut_down()

    def break_connection(self, connection: SimConnection) -> None:
        """Both sides lose the connection, and with it every stream."""
        if not connection.alive:
            return
        connection.alive = False
        for stream in list(connection.streams):
            stream.break_off(f"The connection to peer {stream.peer.short} was lost.")
        for host in connection.ends:
            host.lost(connection)
        connection.notify()

    def _traffic_changed(self, hosts: Collection[SimHost]) -> None:
        self.changed.set()
        self.changed = trio.Event()
        for host in hosts:
            for connection in host.connections():
                connection.notify()

    async def _expire_frozen(self, host: SimHost, freeze: int) -> None:
        await self._silence()
        if host.freezes == freeze:
            for connection in host.connections():
                self.break_connection(connection)

    async def _expire_partition(self, partition: int) -> None:
        await self._silence()
        if self._partitions == partition:
            for host in self.hosts.values():
                for connection in host.connections():
                    if self.blocked(*connection.ends):
                        self.break_connection(connection)

    async def _silence(self) -> None:
        """The time after which the real host gives up a silent connection."""
        await trio.sleep(self.limits.keepalive * self._rng.uniform(2.0, 3.0))


class SimHost:
    """A host of a `SimNetwork`; implements `Host`."""

    def __init__(
        self, network: SimNetwork, peer_id: PeerId, address: str, rng: random.Random
    ) -> None:
        self.network = network
        self.limits = network.limits
        self.alive = True
        self.frozen = False
        self.freezes = 0
        self.refusing = False
        """Refuse new inbound connections (a full host, a firewall that answers)."""
        self.handler_failures = 0
        self.bytes_sent = 0
        """What was written to streams, without what a real network adds."""
        self._peer_id = peer_id
        self._address = address
        self._book = AddressBook(peer_id, per_peer=self.limits.max_addresses_per_peer)
        self._handlers: dict[str, StreamHandler] = {}
        self._connections: dict[PeerId, SimConnection] = {}
        self._connected: frozenset[PeerId] | None = frozenset()
        self._hub = EventHub()
        self._serving: set[trio.CancelScope] = set()
        self.trimmer: Trimmer[SimConnection] = Trimmer(
            network.nursery,
            self.limits,
            count=self._connections.__len__,
            standings=self._standings,
            leave=network.break_connection,
            end=network.break_connection,
        )
        self._dialler = Dialler(
            network.nursery,
            self._book,
            self._dial_one,
            self._connections.__contains__,
            self.limits,
            rng,
        )

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    def addresses(self) -> list[str]:
        return [self._address]

    def known_addresses(self, peer: PeerId) -> list[str]:
        return self._book.get(peer)

    def add_addresses(self, peer: PeerId, addresses: Sequence[str]) -> None:
        if self._book.add(peer, addresses):
            self._dialler.backoff.clear(peer)

    def connected_peers(self) -> frozenset[PeerId]:
        if self._connected is None:
            self._connected = frozenset(self._connections)
        return self._connected

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler

    def events(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[ConnectionEvent]]:
        return self._hub.subscribe()

    @property
    def is_running(self) -> bool:
        return self.alive and not self.frozen

    async def connect(self, peer: PeerId) -> None:
        await self.running()
        await trio.lowlevel.checkpoint_if_cancelled()
        if peer == self._peer_id:
            raise PeerError("A node does not dial itself.")
        if peer not in self._connections and not await self._dial_at_once(peer):
            await self._dialler.dial(peer)

    async def _dial_at_once(self, peer: PeerId) -> bool:
        """The dial that nothing goes wrong with, without the tasks of the other ones."""
        addresses = self._book.get(peer)
        if len(addresses) != 1 or not self._reaches(peer, addresses[0]):
            return False
        self._dialler.backoff.check(peer)
        wait = 2 * _DIAL_ROUND_TRIPS * self.network.way(self._peer_id, peer).delay()
        await self.network.postman.sleep_until(
            self.network.postman.rounded(trio.current_time() + wait)
        )
        if peer not in self._connections:
            if not self.alive or not self._reaches(peer, addresses[0]):
                return False
            self.network.hosts[peer].welcome(self)
            self._book.prefer(peer, addresses[0])
        return True

    def _reaches(self, peer: PeerId, address: str) -> bool:
        target = self.network.host_at(address)
        return (
            target is not None
            and target.peer_id == peer
            and target.is_running
            and not target.refusing
            and target.trimmer.has_room()
            and not self.network.blocked(self, target)
        )

    async def disconnect(self, peer: PeerId) -> None:
        connection = self._connections.get(peer)
        if connection is not None:
            self.network.break_connection(connection)
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        await self.connect(peer)
        connection = self._connections.get(peer)
        if connection is None:
            raise PeerError(f"The connection to peer {peer.short} was lost.")
        if self._opened_by_us(connection) >= self.limits.max_streams_per_peer:
            raise PeerError(
                f"{self.limits.max_streams_per_peer} streams to peer {peer.short} are open already."
            )
        if not await connection.quick_round_trip(self):
            with trio.move_on_after(self.limits.negotiation_timeout) as scope:
                await connection.round_trip(self)
            if scope.cancelled_caught:
                raise PeerError(
                    f"Peer {peer.short} did not answer the request for a {protocol} stream within "
                    f"{self.limits.negotiation_timeout:g} s."
                )
        return connection.other(self).accept(self, connection, protocol)

    def _opened_by_us(self, connection: SimConnection) -> int:
        return sum(s.inbound and s.peer == self._peer_id for s in connection.streams)

    async def _dial_one(self, peer: PeerId, address: str) -> None:
        target = self.network.host_at(address)
        toward = self.network.way(self._peer_id, peer)
        until = trio.current_time() + 2 * _DIAL_ROUND_TRIPS * toward.delay()
        while True:
            blocked = target is not None and self.network.blocked(self, target)
            if not blocked and trio.current_time() >= until:
                break
            with trio.move_on_at(float("inf") if blocked else until):
                await self.network.changed.wait()
        if target is None or not target.alive or target.refusing:
            raise PeerError("refused the connection")
        if target.peer_id != peer:
            raise PeerError(f"belongs to another peer, {target.peer_id.short}")
        if peer not in self._connections and self.alive:
            target.welcome(self)

    # --- what the other side and the network do to this host -----------------------------------

    def connections(self) -> list[SimConnection]:
        return list(self._connections.values())

    def connection_to(self, peer: PeerId) -> SimConnection | None:
        return self._connections.get(peer)

    async def running(self) -> None:
        """Wait while this host is frozen."""
        while self.frozen:
            await self.network.changed.wait()
        if not self.alive:
            raise PeerError(f"Host {self._peer_id.short} is shut down.")

    def welcome(self, dialling: SimHost) -> None:
        """Set up the connection that `dialling` asked for."""
        if not self.trimmer.make_room():
            raise PeerError("closed the connection at once: too many are open")
        ways = self.network.ways(self._peer_id, dialling.peer_id)
        connection = SimConnection((dialling, self), ways)
        self._gained(dialling, connection)
        dialling._gained(self, connection)

    def _gained(self, other: SimHost, connection: SimConnection) -> None:
        self._connections[other.peer_id] = connection
        self._connected = None
        self.add_addresses(other.peer_id, other.addresses())  # as identify does
        self._dialler.backoff.clear(other.peer_id)
        self._hub.publish(ConnectionEvent(other.peer_id, connected=True))
        self.trimmer.gained()

    def _standings(self) -> list[Standing[SimConnection]]:
        if not self.is_running:
            return []
        return [c.standing(bool(self._book.get(peer))) for peer, c in self._connections.items()]

    def lost(self, connection: SimConnection) -> None:
        peer = connection.other(self).peer_id
        if self._connections.get(peer) is connection:
            del self._connections[peer]
            self._connected = None
            self._hub.publish(ConnectionEvent(peer, connected=False))

    def accept(self, opener: SimHost, connection: SimConnection, protocol: str) -> SimStream:
        """Serve a stream the peer `opener` asks for; returns the opener's end."""
        handler = self._handlers.get(protocol)
        if handler is None:
            raise PeerError(f"Peer {self._peer_id.short} does not speak {protocol}.")
        near, far = SimStream.pair(opener, connection, protocol)
        self.network.nursery.start_soon(self._serve, handler, far)
        return near

    async def _serve(self, handler: StreamHandler, stream: SimStream) -> None:
        with trio.CancelScope() as scope:
            self._serving.add(scope)
            try:
                await self.running()
                await handler(stream)
            except PeerError:
                await stream.reset()
            except Exception as error:  # noqa: BLE001 - task boundary: a handler ends alone
                self.handler_failures += 1
                _log.debug("stream_handler_failed", protocol=stream.protocol, error=repr(error))
                await stream.reset()
            else:
                await stream.close()
            finally:
                self._serving.discard(scope)
                if scope.cancel_called:
                    await stream.reset()

    def shut_down(self) -> None:
        """End this host: connections break, handlers are cancelled, calls fail."""
        self.alive = self.frozen = False
        self.network.changed.set()
        self.network.changed = trio.Event()
        for scope in list(self._serving):
            scope.cancel()
        for connection in self.connections():
            self.network.break_connection(connection)


@asynccontextmanager
async def open_sim_network(
    seed: int = 0,
    *,
    link: SimLink | None = None,
    limits: HostLimits | None = None,
    tick: float = 0.0,
) -> AsyncIterator[SimNetwork]:
    """A network whose links are like `link` until `set_link` says otherwise.

    Args:
        tick: seconds; arrivals are rounded up to multiples of it, which makes meshes of thousands
            of hosts some times faster. 0: exact.
    """
    async with open_owned_nursery() as nursery:
        postman = Postman(tick)
        nursery.start_soon(postman.run)
        yield SimNetwork(nursery, seed, link or SimLink(), limits or HostLimits(), postman)


@contextmanager
def deterministic_schedule(seed: int) -> Iterator[None]:
    """Make trio's order of runnable tasks a function of `seed`; wrap it around `trio.run`.

    trio shuffles tasks on purpose and has no public switch; Hypothesis seeds the same two names.
    """
    from trio._core import _run

    before = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()
    vars(_run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = True
    _run._r.seed(seed)
    try:
        yield
    finally:
        vars(_run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = before[0]
        _run._r.setstate(before[1])
