"""More than one connection to a peer: who dialled at once, who is leaving, who has too many."""

from __future__ import annotations

from collections.abc import Callable

import trio
from meshnode.dht.host import Stream
from meshnode.node.transport.libp2p_connection import Libp2pConnection
from meshnode.node.transport.libp2p_host import Libp2pHost
from meshnode.node.transport.limits import HostLimits

from .conftest import Hosts, with_hosts

ECHO = "/test/echo/1"


async def echo(stream: Stream) -> None:
    while data := await stream.read_some():
        await stream.write(data)


async def assert_echoes(stream: Stream) -> None:
    await stream.write(b"still here")
    assert await stream.read_some() == b"still here"


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.lowlevel.checkpoint()


def connections(host: Libp2pHost, other: Libp2pHost) -> list[Libp2pConnection]:
    return host._connections.get(other.peer_id, [])


async def dial_at_once(one: Libp2pHost, other: Libp2pHost) -> None:
    """Two connections, each dialled by another side, whatever the machine does meanwhile."""
    for host, target in ((one, other), (other, one)):
        target.set_handler(ECHO, echo)
        host.add_addresses(target.peer_id, target.addresses())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one._dial_one, other.peer_id, other.addresses()[0])
        nursery.start_soon(other._dial_one, one.peer_id, one.addresses()[0])
    await until(lambda: len(connections(one, other)) == len(connections(other, one)) == 2)


@with_hosts
async def test_two_that_dial_each_other_at_once_use_and_keep_the_same_connection(
    hosts: Hosts,
) -> None:
    limits = HostLimits(keepalive=0.2)
    one, other = sorted(
        [await hosts.open(limits), await hosts.open(limits)], key=lambda host: host.peer_id
    )
    await dial_at_once(one, other)
    # The one that the smaller id has dialled.
    assert not one._best(other.peer_id).inbound
    assert other._best(one.peer_id).inbound
    kept = one._best(other.peer_id)
    await until(lambda: connections(one, other) == [kept] and len(connections(other, one)) == 1)
    await assert_echoes(await one.open_stream(other.peer_id, ECHO))
    await assert_echoes(await other.open_stream(one.peer_id, ECHO))
    assert connections(one, other) == [kept]


@with_hosts
async def test_a_spare_connection_stays_for_as_long_as_a_stream_lives_on_it(hosts: Hosts) -> None:
    limits = HostLimits(keepalive=0.1)
    one, other = sorted(
        [await hosts.open(limits), await hosts.open(limits)], key=lambda host: host.peer_id
    )
    await dial_at_once(one, other)
    (spare,) = [c for c in connections(other, one) if c is not other._best(one.peer_id)]
    stream = await spare.open_stream(ECHO)
    await trio.sleep(6 * limits.keepalive)
    await assert_echoes(stream)
    assert len(connections(one, other)) == 2
    await stream.close()
    await until(lambda: spare.closed)


@with_hosts
async def test_the_spare_connection_is_used_when_the_better_one_is_lost(hosts: Hosts) -> None:
    one, other = await hosts.open(), await hosts.open()
    await dial_at_once(one, other)
    best = one._best(other.peer_id)
    best.close("as the test demands")
    (left,) = connections(one, other)
    assert one._best(other.peer_id) is left
    assert not left.spare
    await assert_echoes(await one.open_stream(other.peer_id, ECHO))
    assert connections(one, other) == [left]


@with_hosts
async def test_two_addresses_that_answer_one_dial_make_one_connection(hosts: Hosts) -> None:
    one, other = await hosts.open(), await hosts.open()
    await other.listen(["/ip4/127.0.0.1/tcp/0"])
    async with trio.open_nursery() as nursery:
        for address in other.addresses():
            nursery.start_soon(one._dial_one, other.peer_id, address)
    assert len(connections(one, other)) == 1
    await until(lambda: len(connections(other, one)) == 1)


def leave(host: Libp2pHost, other: Libp2pHost) -> None:
    """Say goodbye on the connection in use, as a peer does that is about to go."""
    connection = host._best(other.peer_id)
    connection._muxer._core.go_away()
    connection._muxer.flush()


@with_hosts
async def test_connections_the_peer_is_leaving_cost_no_good_one_its_place(hosts: Hosts) -> None:
    one, other = await hosts.open(HostLimits(max_connections_per_peer=1)), await hosts.open()
    one.add_addresses(other.peer_id, other.addresses())
    other.set_handler(ECHO, echo)
    streams = []
    for _ in range(2):
        streams.append(await one.open_stream(other.peer_id, ECHO))
        leave(other, one)
        await until(lambda: not one._usable(other.peer_id))
    # A good one after two that are being left, with a live stream each: the oldest goes.
    streams.append(await one.open_stream(other.peer_id, ECHO))
    for stream in streams[1:]:
        await assert_echoes(stream)
    assert [connection.usable for connection in connections(one, other)] == [False, True]


@with_hosts
async def test_of_too_many_connections_the_one_with_the_fewest_streams_goes(hosts: Hosts) -> None:
    one, other = await hosts.open(HostLimits(max_connections_per_peer=2)), await hosts.open()
    one.set_handler(ECHO, echo)

    async def dial_again() -> Libp2pConnection:
        had = len(connections(one, other))
        # Our own dialler would drop a second connection: as somebody else's does.
        for connection in connections(other, one):
            connection.inbound = True
        await other._dial_one(one.peer_id, one.addresses()[0])
        await until(lambda: len(connections(one, other)) == min(had + 1, 2))
        # It is asked where it listens: that stream would count.
        await until(lambda: not connections(one, other)[-1].streams)
        return connections(other, one)[-1]

    first = await dial_again()
    stream = await first.open_stream(ECHO)
    await assert_echoes(stream)
    second = await dial_again()
    third = await dial_again()
    await until(lambda: second.closed)
    assert not first.closed
    assert not third.closed
    await assert_echoes(stream)


@with_hosts
async def test_no_stream_is_lost_while_two_dial_each_other_and_the_spare_goes(hosts: Hosts) -> None:
    limits = HostLimits(keepalive=0.2)
    one, other = await hosts.open(limits), await hosts.open(limits)
    settled = False

    async def keep_asking(host: Libp2pHost, peer: Libp2pHost) -> None:
        rounds_left = 20
        while rounds_left:
            stream = await host.open_stream(peer.peer_id, ECHO)
            await assert_echoes(stream)
            await stream.close()
            assert await stream.read_some() == b""
            rounds_left -= settled

    for host, target in ((one, other), (other, one)):
        target.set_handler(ECHO, echo)
        host.add_addresses(target.peer_id, target.addresses())
    async with trio.open_nursery() as nursery:
        # Each of these dials; so do those, whoever was faster.
        nursery.start_soon(keep_asking, one, other)
        nursery.start_soon(keep_asking, other, one)
        nursery.start_soon(one._dial_one, other.peer_id, other.addresses()[0])
        nursery.start_soon(other._dial_one, one.peer_id, one.addresses()[0])
        await until(lambda: len(connections(one, other)) == 2)
        await until(lambda: len(connections(one, other)) == len(connections(other, one)) == 1)
        settled = True
