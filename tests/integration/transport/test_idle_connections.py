"""Connections that nobody uses end in order, and make room, on real sockets."""

from __future__ import annotations

import trio
from meshnode.dht.host import Stream
from meshnode.dht.peer_id import PeerId
from meshnode.node.transport import multistream
from meshnode.node.transport.libp2p_host import Libp2pHost
from meshnode.node.transport.libp2p_stream import Libp2pStream
from meshnode.node.transport.limits import HostLimits
from meshnode.node.transport.streams import BufferedStream

from .conftest import Hosts, with_hosts

ECHO = "/echo/1"


async def echo(stream: Stream) -> None:
    while data := await stream.read_some():
        await stream.write(data)


async def star(
    hosts: Hosts, limits: HostLimits, points: int
) -> tuple[Libp2pHost, list[Libp2pHost]]:
    """A host, and several that know where it is."""
    hub = await hosts.open(limits)
    hub.set_handler(ECHO, echo)
    others = [await hosts.open(listen="") for _ in range(points)]
    for other in others:
        other.add_addresses(hub.peer_id, hub.addresses())
        other.set_handler(ECHO, echo)
    return hub, others


async def lost(host: Libp2pHost, peer: PeerId) -> None:
    """Wait until `host` has no connection to `peer`."""
    async with host.events() as events:
        while peer in host.connected_peers():
            await events.receive()


async def unused(host: Libp2pHost, peer: PeerId) -> None:
    """Wait until what hosts say to each other at first is over, and make it long ago."""
    (connection,) = host._connections[peer]
    while connection.streams:
        await trio.lowlevel.checkpoint()
    connection.used_at -= 60.0


@with_hosts
async def test_idle_connections_above_the_low_mark_are_closed_and_used_ones_stay(
    hosts: Hosts,
) -> None:
    limits = HostLimits(connections_low=1, connections_high=9, idle_after=0.2, idle_grace=0.1)
    hub, (talker, idler) = await star(hosts, limits, 2)
    stream = await talker.open_stream(hub.peer_id, ECHO)
    await idler.connect(hub.peer_id)
    (connection,) = idler._connections[hub.peer_id]
    with trio.fail_after(20):
        await lost(idler, hub.peer_id)
        await lost(hub, idler.peer_id)
    assert connection._muxer.why_closed == "the peer went away"  # in order, and no fault
    assert hub.stats()["transport_connections_closed_idle"] == 1
    assert not hub.counts.violations
    assert not idler.counts.violations
    await stream.write(b"still here")
    assert await stream.read_some() == b"still here"
    # Neither has to wait before it dials again.
    await (await idler.open_stream(hub.peer_id, ECHO)).close()


@with_hosts
async def test_what_the_peer_began_before_it_heard_of_the_end_is_served(hosts: Hosts) -> None:
    hub, (other,) = await star(hosts, HostLimits(), 1)
    async with hub.events() as events:
        await other.connect(hub.peer_id)
        await events.receive()
    (connection,) = hub._connections[other.peer_id]
    (theirs,) = other._connections[hub.peer_id]
    stream = Libp2pStream(theirs, theirs._open_muxed(), ECHO)
    connection.leave()
    assert not connection.usable
    negotiated = BufferedStream(stream)
    await multistream.propose(negotiated, ECHO)
    await negotiated.write(b"late")
    assert await negotiated.read_exactly(4) == b"late"
    assert not theirs.usable
    with trio.fail_after(20):
        await negotiated.close()
        await lost(other, hub.peer_id)
    assert other._dialler.backoff._failures == {}


@with_hosts
async def test_at_the_bound_an_idle_connection_makes_room_and_a_busy_one_does_not(
    hosts: Hosts,
) -> None:
    hub, (talker, idler, newcomer) = await star(hosts, HostLimits(max_connections=2), 3)
    stream = await talker.open_stream(hub.peer_id, ECHO)
    await idler.connect(hub.peer_id)
    with trio.fail_after(20):
        await unused(hub, idler.peer_id)
        await newcomer.open_stream(hub.peer_id, ECHO)
        await lost(idler, hub.peer_id)
    assert hub.connected_peers() == {talker.peer_id, newcomer.peer_id}
    stats = hub.stats()
    assert stats["transport_connections_gave_way"] == 1
    assert stats["transport_connections_refused"] == 0
    # Both that are left have a stream.
    assert not hub._trimmer.has_room()
    await stream.write(b"still here")
    assert await stream.read_some() == b"still here"


@with_hosts
async def test_peers_the_user_named_are_kept(hosts: Hosts) -> None:
    limits = HostLimits(connections_low=0, connections_high=9, idle_after=0.1, idle_grace=0.1)
    named, other = await hosts.open(), await hosts.open()
    host = await hosts.open(limits, spared=[named.peer_id])
    for peer in (named, other):
        host.add_addresses(peer.peer_id, peer.addresses())
        await host.connect(peer.peer_id)
    with trio.fail_after(20):
        await lost(host, other.peer_id)
    assert host.connected_peers() == {named.peer_id}
