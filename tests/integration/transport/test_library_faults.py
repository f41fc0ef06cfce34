"""Each fault of py-libp2p 0.8.1 that made us write our own: shown on the library, then absent here.

When the first half of such a test fails, the library has been mended.
"""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p import new_host
from libp2p.abc import IHost, INetStream
from libp2p.io.trio import TrioTCPStream
from libp2p.network.exceptions import SwarmException
from libp2p.peer.peerinfo import PeerInfo
from libp2p.stream_muxer.yamux.yamux import Yamux
from meshnode.dht.host import Buffer, Stream
from meshnode.errors import PeerError
from meshnode.node.transport.libp2p_host import Libp2pHost
from meshnode.node.transport.limits import HostLimits
from meshnode.node.transport.native_connection import NativeConnection
from meshnode.node.transport.native_socket import NativeSocket
from multiaddr import Multiaddr

from .conftest import Hosts, KeyOnly, with_hosts

ECHO = "/test/echo/1"
INVALID_UTF8 = b"\x03\xff\xfe\n"


async def echo(stream: Stream) -> None:
    while data := await stream.read_some():
        await stream.write(data)


async def assert_echoes(host: Libp2pHost, other: Libp2pHost) -> None:
    stream = await host.open_stream(other.peer_id, ECHO)
    await stream.write(b"still here")
    assert await stream.read_some() == b"still here"
    await stream.close()
    assert await stream.read_some() == b""


@asynccontextmanager
async def stock_host() -> AsyncIterator[IHost]:
    host = new_host()
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        try:
            yield host
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await host.close()


async def stock_dial(host: IHost, other: IHost) -> None:
    await host.get_network().dial_addr(other.get_addrs()[0], other.get_id())


async def stock_survives(attack: Callable[[IHost, IHost], Awaitable[None]]) -> bool:
    """Whether a stock host is still running shortly after another one has done something to it."""
    survived = True
    try:
        async with stock_host() as victim, stock_host() as attacker:
            await stock_dial(attacker, victim)
            await attack(attacker, victim)
            await trio.sleep(0.5)
    except* (ValueError, UnicodeDecodeError):
        survived = False
    return survived


# --- one bad stream must not end the process ------------------------------------------------------


async def test_stock_a_failing_handler_ends_the_whole_host() -> None:
    async def attack(attacker: IHost, victim: IHost) -> None:
        async def fail(stream: INetStream) -> None:
            raise ValueError("a bug in a handler")

        victim.set_stream_handler("/test/fail/1", fail)  # type: ignore[arg-type]
        await attacker.new_stream(victim.get_id(), ["/test/fail/1"])  # type: ignore[list-item]

    assert not await stock_survives(attack)


@with_hosts
async def test_a_failing_handler_ends_its_stream_alone(hosts: Hosts) -> None:
    async def fail(stream: Stream) -> None:
        raise ValueError("a bug in a handler")

    one, other = await hosts.pair()
    other.set_handler(ECHO, echo)
    other.set_handler("/test/fail/1", fail)
    stream = await one.open_stream(other.peer_id, "/test/fail/1")
    with pytest.raises(PeerError, match="reset"):
        await stream.read_some()
    assert other.counts.failed == 1
    await assert_echoes(one, other)


async def test_stock_invalid_utf8_from_a_peer_ends_the_whole_host() -> None:
    async def attack(attacker: IHost, victim: IHost) -> None:
        (connection,) = attacker.get_network().get_connections(victim.get_id())
        stream = await connection.muxed_conn.open_stream()
        await stream.write(INVALID_UTF8)

    assert not await stock_survives(attack)


@with_hosts
async def test_invalid_utf8_from_a_peer_ends_its_stream_alone(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    other.set_handler(ECHO, echo)
    await one.connect(other.peer_id)
    stream = one._connections[other.peer_id][0]._muxer.open()
    await stream.write(INVALID_UTF8)
    assert await stream.read(100) == b"\x13/multistream/1.0.0\n"
    with pytest.raises(PeerError, match="reset"):
        await stream.read(100)
    await assert_echoes(one, other)


# --- who may connect ------------------------------------------------------------------------------


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


# --- cancellation ---------------------------------------------------------------------------------


async def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    left, right = trio.socket.socketpair()
    return trio.SocketStream(left), trio.SocketStream(right)


FRAME = bytes(range(256)) * 16384
"""4 MiB: more than a socket buffers."""


async def test_stock_a_cancelled_write_leaves_half_a_frame() -> None:
    near, far = await socket_pair()
    got = 0
    async with near, far, trio.open_nursery() as nursery:

        async def drain() -> None:
            nonlocal got
            await trio.testing.wait_all_tasks_blocked()
            writing.cancel()
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.3):
                while got < len(FRAME):
                    got += len(await far.receive_some())

        nursery.start_soon(drain)
        with trio.CancelScope() as writing:
            await TrioTCPStream(near).write(FRAME)
    assert 0 < got < len(FRAME)


class NullSession:
    """Yamux in the clear."""

    def seal_into(self, pieces: Sequence[Buffer], scratch: memoryview) -> bytes:
        return b"".join(pieces)

    def open(self, received: memoryview) -> tuple[list[bytes], int]:
        return [bytes(received)], len(received)


def native(stream: trio.SocketStream, *, initiator: bool, stall: float = 5.0) -> NativeConnection:
    wire = NativeSocket(stream)
    peer = KeyOnly(bytes(32)).peer_id
    return NativeConnection(peer, wire, NullSession(), initiator=initiator, stall_timeout=stall)


async def test_a_cancelled_write_cuts_no_frame() -> None:
    near, far = await socket_pair()
    ours, theirs = native(near, initiator=True), native(far, initiator=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.run)
        stream = ours.open()
        with trio.CancelScope() as writing:
            nursery.start_soon(cancel_when_blocked, writing)
            await stream.write(FRAME)
        assert writing.cancelled_caught
        nursery.start_soon(theirs.run)
        accepted = await theirs.accept()
        stream.close()
        got = bytearray()
        while data := await accepted.read(1 << 20):
            got += data
        assert 0 < len(got) < len(FRAME)
        assert FRAME.startswith(bytes(got))
        other = ours.open()
        await other.write(b"in order")
        assert await (await theirs.accept()).read(100) == b"in order"
        nursery.cancel_scope.cancel()


async def cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


async def test_a_write_the_peer_never_takes_closes_the_connection() -> None:
    near, far = await socket_pair()
    ours = native(near, initiator=True, stall=0.1)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(ours.run)

        async def fill() -> None:
            while True:
                await ours.open().write(bytes(200_000))

        with pytest.raises(PeerError, match="takes no bytes"):
            await fill()
    assert ours.why_closed is not None
    assert near.socket.fileno() == -1


@with_hosts
async def test_cancelled_writes_leave_the_connection_in_order(hosts: Hosts) -> None:
    async def drain(stream: Stream) -> None:
        while await stream.read_some():
            pass

    one, other = await hosts.pair()
    other.set_handler(ECHO, echo)
    other.set_handler("/test/drain/1", drain)
    for number in range(30):
        stream = await one.open_stream(other.peer_id, "/test/drain/1")
        with trio.move_on_after(0.0005 * number):
            await stream.write(FRAME)
        await stream.reset()
    await assert_echoes(one, other)
    assert len(one._connections[other.peer_id]) == 1


async def cancel_within(yamux: Yamux, action: Callable[[], Awaitable[object]]) -> None:
    """Cancel something of the library while its first frame waits for its turn to be written."""
    await yamux._write_lock.acquire()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(action)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    finally:
        yamux._write_lock.release()


async def test_stock_a_cancelled_read_loses_bytes() -> None:
    async def count(stream: INetStream) -> None:
        await stream.write(b"0123456789")
        await stream.read(1)

    async with stock_host() as other, stock_host() as one:
        other.set_stream_handler("/test/count/1", count)  # type: ignore[arg-type]
        await stock_dial(one, other)
        stream = await one.new_stream(other.get_id(), ["/test/count/1"])  # type: ignore[list-item]
        (connection,) = one.get_network().get_connections(other.get_id())
        yamux = connection.muxed_conn
        assert isinstance(yamux, Yamux)
        while not any(yamux.stream_buffers.values()):
            await trio.lowlevel.checkpoint()
        await cancel_within(yamux, lambda: stream.read(4))
        assert await stream.read(4) == b"4567"


@with_hosts
async def test_a_cancelled_read_ends_its_stream_and_takes_nothing(hosts: Hosts) -> None:
    async def count(stream: Stream) -> None:
        await stream.write(b"0123456789")
        await stream.read_some()

    one, other = await hosts.pair()
    other.set_handler(ECHO, echo)
    other.set_handler("/test/count/1", count)
    stream = await one.open_stream(other.peer_id, "/test/count/1")
    muxed = one._connections[other.peer_id][0]._muxer.open()
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.read_some(4)
    with pytest.raises(PeerError, match="a read on it was cancelled"):
        await stream.read_some()
    # One level below, where a stream stays usable.
    propose = b"\x13/multistream/1.0.0\n\x0e/test/count/1\n"
    await muxed.write(propose)
    expected = propose + b"0123456789"
    got = b""
    while len(got) < len(expected):
        with trio.CancelScope() as scope:
            scope.cancel()
            await muxed.read(4)
        got += await muxed.read(4)
    assert got == expected
    await assert_echoes(one, other)


async def test_stock_a_cancelled_opening_costs_a_slot_for_ever() -> None:
    async with stock_host() as other, stock_host() as one:
        await stock_dial(one, other)
        (connection,) = one.get_network().get_connections(other.get_id())
        yamux = connection.muxed_conn
        assert isinstance(yamux, Yamux)
        for _ in range(5):
            await cancel_within(yamux, yamux.open_stream)
        # Its own identification comes and goes meanwhile.
        assert yamux.stream_backlog_semaphore.value <= 256 - 5


@with_hosts
async def test_cancelled_openings_cost_nothing(hosts: Hosts) -> None:
    one, other = await hosts.pair()
    other.set_handler(ECHO, echo)
    await one.connect(other.peer_id)
    for number in range(50):
        with trio.move_on_after(0.0002 * number):
            await (await one.open_stream(other.peer_id, ECHO)).reset()
    await assert_echoes(one, other)
    (connection,) = one._connections[other.peer_id]
    with trio.fail_after(5):
        while connection._muxer.streams:
            await trio.lowlevel.checkpoint()


# --- limits and silence ---------------------------------------------------------------------------


def test_the_library_blocks_at_256_streams_and_we_stay_below() -> None:
    with pytest.raises(ValueError, match="max_streams_per_peer"):
        HostLimits(max_streams_per_peer=256)


@with_hosts
async def test_too_many_streams_are_an_error_at_once_on_either_side(hosts: Hosts) -> None:
    one = await hosts.open(HostLimits(max_streams_per_peer=100))
    other = await hosts.open(HostLimits(max_streams_per_peer=5))
    one.add_addresses(other.peer_id, other.addresses())
    other.set_handler(ECHO, echo)
    streams = [await one.open_stream(other.peer_id, ECHO) for _ in range(5)]
    with pytest.raises(PeerError):
        await one.open_stream(other.peer_id, ECHO)
    assert other.counts.refused == 1
    for stream in streams:
        await stream.close()
        assert await stream.read_some() == b""
    for _ in range(20):
        await assert_echoes(one, other)
    one._limits = one._connections[other.peer_id][0]._limits = HostLimits(max_streams_per_peer=1)
    await one.open_stream(other.peer_id, ECHO)
    with pytest.raises(PeerError, match="open already"):
        await one.open_stream(other.peer_id, ECHO)


@with_hosts
async def test_streams_that_never_name_a_protocol_are_bounded_and_hold_nobody_up(
    hosts: Hosts,
) -> None:
    one, victim = await hosts.pair(HostLimits(max_streams_per_peer=50))
    other = await hosts.open()
    other.add_addresses(victim.peer_id, victim.addresses())
    victim.set_handler(ECHO, echo)
    await one.connect(victim.peer_id)
    muxer = one._connections[victim.peer_id][0]._muxer
    silent = [muxer.open() for _ in range(200)]
    await assert_echoes(other, victim)
    with trio.fail_after(10):
        while victim.counts.refused < len(silent) - 50:
            await trio.lowlevel.checkpoint()


@with_hosts
async def test_a_reader_that_never_reads_fails_the_writer_and_no_other_stream(hosts: Hosts) -> None:
    async def never_read(stream: Stream) -> None:
        await trio.sleep(math.inf)

    one, other = await hosts.pair()
    other.set_handler(ECHO, echo)
    other.set_handler("/test/stalled/1", never_read)
    stream = await one.open_stream(other.peer_id, "/test/stalled/1")
    with pytest.raises(PeerError, match="window"):
        await stream.write(FRAME * 5)
    await assert_echoes(one, other)
