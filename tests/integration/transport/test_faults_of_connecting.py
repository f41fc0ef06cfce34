"""Faults of the library: who may connect, and how a peer is dialled and left.

Shown on py-libp2p 0.8.1, then absent here. When a test named `test_stock_...` fails, the library
has been mended.
"""

from __future__ import annotations

import math
import socket

import pytest
import trio
from libp2p import new_host
from libp2p.network.config import ConnectionConfig
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from meshnode.errors import PeerError
from meshnode.node.transport.libp2p_host import open_libp2p_host
from meshnode.node.transport.limits import HostLimits
from multiaddr import Multiaddr

from .attacker import dial
from .conftest import Hosts, KeyOnly, with_hosts
from .stock_library import (
    stock_dial,
    stock_host,
    stock_port,
)


async def offered(port: int, protocol: str) -> bool:
    """Whether a listener agrees to secure a connection with `protocol`."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        for text in ("/multistream/1.0.0", protocol):
            await stream.send_all(bytes([len(text) + 1]) + text.encode() + b"\n")
        answer = b""
        while not answer.endswith((b"na\n", f"{protocol}\n".encode())):
            received = await stream.receive_some()
            if not received:
                return False
            answer += received
    return not answer.endswith(b"na\n")


async def test_stock_plaintext_is_accepted_from_anybody() -> None:
    async with stock_host() as host:
        assert await offered(int(host.get_addrs()[0].value_for_protocol("tcp")), "/plaintext/2.0.0")


@with_hosts
async def test_noise_is_accepted_and_nothing_else(hosts: Hosts) -> None:
    host = await hosts.open()
    port = int(host.addresses()[0].rpartition("/")[2])
    assert await offered(port, "/noise")
    for protocol in ("/plaintext/2.0.0", "/secio/1.0.0", "/tls/1.0.0"):
        assert not await offered(port, protocol)


async def test_stock_inbound_connections_are_counted_for_life() -> None:
    async with stock_host() as host, stock_host() as dialler:
        host.get_network()._inbound_limiter.total_tokens = 2  # 250 by default
        for _ in range(2):
            await stock_dial(dialler, host)
            await dialler.get_network().close_peer(host.get_id())
        with pytest.raises(SwarmException):
            await stock_dial(dialler, host)


@with_hosts
async def test_inbound_connections_are_counted_while_they_live(hosts: Hosts) -> None:
    hub = await hosts.open(HostLimits(max_connections=2))
    spokes = [await hosts.open(listen="") for _ in range(3)]
    for spoke in spokes:
        spoke.add_addresses(hub.peer_id, hub.addresses())
    async with hub.events() as events:
        for _ in range(4):
            for spoke in spokes[:2]:
                await spoke.connect(hub.peer_id)
                await events.receive()
            assert len(hub.connected_peers()) == 2
            with pytest.raises(PeerError):
                await spokes[2].connect(hub.peer_id)
            spokes[2]._dialler.backoff.clear(hub.peer_id)
            for spoke in spokes[:2]:
                await spoke.disconnect(hub.peer_id)
                await events.receive()
    assert hub.refused_connections == 4


@with_hosts
async def test_connections_that_never_speak_do_not_keep_others_out(hosts: Hosts) -> None:
    limits = HostLimits(max_pending_handshakes=4, negotiation_timeout=60)
    hub, spoke = await hosts.open(limits), await hosts.open()
    spoke.add_addresses(hub.peer_id, hub.addresses())
    port = int(hub.addresses()[0].rpartition("/")[2])
    idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(20)]
    await spoke.connect(hub.peer_id)
    for stream in idle:
        await stream.aclose()


# --- dialling -------------------------------------------------------------------------------------

DEAD = "/ip4/127.0.0.1/tcp/1"


async def test_stock_only_the_first_address_of_a_peer_is_dialled() -> None:
    async with stock_host() as host, stock_host() as dialler:
        addresses = [Multiaddr(DEAD), host.get_addrs()[0]]
        with pytest.raises(SwarmException):
            await dialler.connect(PeerInfo(host.get_id(), addresses))


@with_hosts
async def test_all_addresses_of_a_peer_are_dialled(hosts: Hosts) -> None:
    one, other = await hosts.open(), await hosts.open()
    one.add_addresses(other.peer_id, [DEAD, "/ip4/127.0.0.1/tcp/2", *other.addresses()])
    await one.connect(other.peer_id)
    assert one.known_addresses(other.peer_id)[0] == other.addresses()[0]


@with_hosts
async def test_an_address_that_hangs_does_not_hold_up_the_next_one(hosts: Hosts) -> None:
    one, other = await hosts.open(HostLimits(dial_timeout=60)), await hosts.open()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"
        one.add_addresses(other.peer_id, [hanging, *other.addresses()])
        with trio.fail_after(30):
            await one.connect(other.peer_id)


async def test_stock_advertises_the_wildcard_address() -> None:
    host = new_host()
    async with host.run(listen_addrs=[Multiaddr("/ip4/0.0.0.0/tcp/0")]):
        assert str(host.get_addrs()[0]).startswith("/ip4/0.0.0.0/")
        await host.close()


@with_hosts
async def test_a_wildcard_listener_names_the_interfaces(hosts: Hosts) -> None:
    one, other = await hosts.open(), await hosts.open(listen="/ip4/0.0.0.0/tcp/0")
    assert other.addresses()
    assert not any("/0.0.0.0/" in address for address in other.addresses())
    one.add_addresses(other.peer_id, other.addresses())
    await one.connect(other.peer_id)


async def test_stock_connections_that_never_speak_keep_others_out() -> None:
    async with stock_host() as host, stock_host() as dialler:
        host.get_network()._inbound_limiter.total_tokens = 2  # 250 by default
        idle = [await dial(stock_port(host)) for _ in range(2)]
        with pytest.raises(SwarmException):
            await stock_dial(dialler, host)
        for stream in idle:
            await stream.aclose()


async def test_stock_a_dial_obeys_no_deadline() -> None:
    config = ConnectionConfig(dial_timeout=0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with stock_host(config) as dialler:
            address = Multiaddr(f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}")
            nobody = ID(bytes(KeyOnly(bytes(31) + b"\xfd").peer_id))
            with trio.move_on_after(1.0) as late:
                await dialler.connect(PeerInfo(nobody, [address]))
            assert late.cancelled_caught


async def test_stock_connecting_takes_a_quarter_of_a_second_longer_than_it_takes() -> None:
    async with stock_host() as host, stock_host() as dialler:
        began = trio.current_time()
        await dialler.connect(PeerInfo(host.get_id(), [host.get_addrs()[0]]))
        # A lower bound: it waits for a failure that cannot come any more.
        assert trio.current_time() - began >= 0.25


@with_hosts
async def test_connecting_takes_as_long_as_it_takes(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    fastest = math.inf
    for _ in range(50):
        began = trio.current_time()
        await one.connect(other.peer_id)
        fastest = min(fastest, trio.current_time() - began)
        if fastest < 0.25:
            break
        await one.disconnect(other.peer_id)
    assert fastest < 0.25


async def test_stock_a_peer_that_was_away_once_is_not_dialled_for_a_minute() -> None:
    async with stock_host() as host, stock_host() as dialler:
        with pytest.raises(SwarmException):
            await dialler.connect(PeerInfo(host.get_id(), [Multiaddr(DEAD)]))
        network = dialler.get_network()
        network.peerstore.clear_addrs(host.get_id())
        network.peerstore.add_addrs(host.get_id(), [host.get_addrs()[0]], 60)
        with pytest.raises(SwarmException, match="recently failed"):
            await network.dial_peer(host.get_id())


@with_hosts
async def test_a_peer_that_was_away_is_dialled_as_soon_as_something_new_is_known(
    hosts: Hosts,
) -> None:
    one, other = await hosts.open(), await hosts.open()
    one.add_addresses(other.peer_id, [DEAD])
    with pytest.raises(PeerError, match="cannot be reached"):
        await one.connect(other.peer_id)
    one.add_addresses(other.peer_id, other.addresses())
    await one.connect(other.peer_id)


async def test_stock_closing_takes_a_fifth_of_a_second_for_each_connection() -> None:
    async with stock_host() as host:
        for _ in range(5):
            dialler = new_host()
            async with dialler.run(listen_addrs=[]):
                await stock_dial(dialler, host)
        began = trio.current_time()
        connections = len(host.get_network().get_connections())
        await host.close()
        assert trio.current_time() - began >= 0.1 * connections > 0


@with_hosts
async def test_closing_waits_for_nobody(hosts: Hosts) -> None:
    spokes = [await hosts.open() for _ in range(20)]
    async with open_libp2p_host(KeyOnly(bytes(32)), listen=["/ip4/127.0.0.1/tcp/0"]) as hub:
        for spoke in spokes:
            spoke.add_addresses(hub.peer_id, hub.addresses())
            await spoke.connect(hub.peer_id)
        while len(hub.connected_peers()) < len(spokes):
            await trio.lowlevel.checkpoint()
        began = trio.current_time()
    # Moments, unless the machine is busy; the library takes as long for 50 connections.
    assert trio.current_time() - began < 10


async def test_stock_a_host_that_was_left_goes_on_listening() -> None:
    host = new_host()
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        port = stock_port(host)
    stream = await dial(port)
    await stream.aclose()
    await host.close()


async def test_a_host_that_was_left_listens_no_more() -> None:
    async with open_libp2p_host(KeyOnly(bytes(32)), listen=["/ip4/127.0.0.1/tcp/0"]) as host:
        port = int(host.addresses()[0].rpartition("/")[2])
    with pytest.raises(ConnectionRefusedError):
        await dial(port)
