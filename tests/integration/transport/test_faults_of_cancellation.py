"""Faults of the library: what a cancelled read, write or opening leaves behind.

Shown on py-libp2p 0.8.1, then absent here. When a test named `test_stock_...` fails, the library
has been mended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.io.trio import TrioTCPStream
from libp2p.stream_muxer.yamux.yamux import Yamux
from meshnode.dht.host import Stream
from meshnode.errors import PeerError
from meshnode.node.transport.native_connection import NativeConnection
from meshnode.node.transport.native_socket import NativeSocket

from tests.unit.transport.native_in_the_clear import InTheClear

from .conftest import Hosts, KeyOnly, with_hosts
from .stock_library import (
    ECHO,
    assert_echoes,
    echo,
    stock_dial,
    stock_host,
)


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


def native(stream: trio.SocketStream, *, initiator: bool, stall: float = 5.0) -> NativeConnection:
    wire = NativeSocket(stream)
    peer = KeyOnly(bytes(32)).peer_id
    return NativeConnection(peer, wire, InTheClear(), initiator=initiator, stall_timeout=stall)


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
