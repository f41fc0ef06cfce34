"""A host that is left takes everything with it, whatever was under way."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import AsyncExitStack

import trio
from meshnode.dht.host import Stream
from meshnode.errors import PeerError
from meshnode.node.transport.libp2p_host import Libp2pHost, open_libp2p_host

from .attacker import HEADER, attack, dial
from .conftest import KeyOnly

LISTEN = ["/ip4/127.0.0.1/tcp/0"]
NOBODY = KeyOnly(bytes(31) + b"\xfd").peer_id


def standing() -> tuple[int, int, int]:
    """Tasks, file descriptors, threads."""
    tasks = trio.lowlevel.current_statistics().tasks_living
    return tasks, len(os.listdir("/proc/self/fd")), threading.active_count()


async def never_return(stream: Stream) -> None:
    await trio.sleep_forever()


async def fails(what: object) -> None:
    """Await something that can only end in failure or cancellation."""
    try:
        await what  # type: ignore[misc]
    except PeerError:
        return
    raise AssertionError("it ended well")


async def leave_with_everything_under_way(silent: socket.socket) -> None:
    other = KeyOnly(bytes(31) + b"\x02")
    async with AsyncExitStack() as stack:
        peer = await stack.enter_async_context(open_libp2p_host(other, listen=LISTEN))
        peer.set_handler("/test/hold/1", never_return)
        calls = await stack.enter_async_context(trio.open_nursery())
        foreign: list[trio.SocketStream] = []
        async with open_libp2p_host(KeyOnly(bytes(31) + b"\x01"), listen=LISTEN) as host:
            host.set_handler("/test/hold/1", never_return)
            port = int(host.addresses()[0].rpartition("/")[2])
            host.add_addresses(peer.peer_id, peer.addresses())
            peer.add_addresses(host.peer_id, host.addresses())
            await start_all(host, peer, calls, silent)
            foreign += [await dial(port) for _ in range(3)]
            await foreign[0].send_all(HEADER)
            attacker = await attack(port, host.peer_id)
            await attacker.request(1, "/test/hold/1")
            await trio.testing.wait_all_tasks_blocked(0.05)
        with trio.fail_after(10):
            while peer.connected_peers():
                await trio.lowlevel.checkpoint()
        calls.cancel_scope.cancel()
        attacker.wire.close()
        for stream in foreign:
            await stream.aclose()


async def start_all(
    host: Libp2pHost, peer: Libp2pHost, calls: trio.Nursery, silent: socket.socket
) -> None:
    """Reads, writes, openings and dials that do not end by themselves."""
    stalled = await host.open_stream(peer.peer_id, "/test/hold/1")
    calls.start_soon(fails, stalled.read_some())
    calls.start_soon(fails, stalled.write(bytes(32 << 20)))
    inbound = await peer.open_stream(host.peer_id, "/test/hold/1")
    calls.start_soon(fails, inbound.read_some())
    host.add_addresses(NOBODY, [f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"])
    calls.start_soon(fails, host.connect(NOBODY))
    calls.start_soon(fails, host.open_stream(NOBODY, "/test/hold/1"))


async def test_nothing_stays_behind_whatever_was_under_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        await leave_with_everything_under_way(silent)  # what a first use opens for good
        before = standing()
        for _ in range(3):
            with trio.fail_after(20):
                await leave_with_everything_under_way(silent)
            while silent_backlog := accept_one(silent):
                silent_backlog.close()
        assert standing() == before


def accept_one(listener: socket.socket) -> socket.socket | None:
    listener.setblocking(False)
    try:
        return listener.accept()[0]
    except BlockingIOError:
        return None
