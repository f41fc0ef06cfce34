"""A peer whose process is really stopped, or killed, while we are connected to it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from meshnode.dht.host import ConnectionEvent
from meshnode.dht.peer_id import PeerId
from meshnode.errors import PeerError
from meshnode.node.identity import Identity
from meshnode.node.transport.libp2p_host import Libp2pHost, open_libp2p_host
from meshnode.node.transport.limits import HostLimits

ECHO = "/test/echo/1"
IMPATIENT = HostLimits(keepalive=0.3, negotiation_timeout=0.3, dial_timeout=1.0)


@dataclass(frozen=True, slots=True)
class PeerProcess:
    process: trio.Process
    peer: PeerId
    address: str

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@asynccontextmanager
async def peer_process() -> AsyncIterator[PeerProcess]:
    script = str(Path(__file__).with_name("peer_process.py"))
    process = await trio.lowlevel.open_process([sys.executable, script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        with trio.fail_after(30):
            line = b""
            while not line.endswith(b"\n"):
                received = await process.stdout.receive_some()
                assert received, "the peer process ended"
                line += received
        peer, address = line.decode().split()
        yield PeerProcess(process, PeerId.parse(peer), address)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        await process.stdout.aclose()


@asynccontextmanager
async def connected(limits: HostLimits) -> AsyncIterator[tuple[Libp2pHost, PeerProcess]]:
    async with peer_process() as other, open_libp2p_host(Identity.generate(), limits=limits) as us:
        us.add_addresses(other.peer, [other.address])
        await us.connect(other.peer)
        yield us, other


async def test_a_stopped_peer_is_noticed_and_fails_what_waits_for_it() -> None:
    async with connected(IMPATIENT) as (us, other), us.events() as events:
        stream = await us.open_stream(other.peer, ECHO)
        await stream.write(b"before")
        assert await stream.read_some() == b"before"
        other.send(signal.SIGSTOP)
        await stream.write(b"after")
        with pytest.raises(PeerError, match="did not answer"):
            await us.open_stream(other.peer, ECHO)
        with trio.fail_after(10), pytest.raises(PeerError, match="silent"):
            await stream.read_some()
        assert await events.receive() == ConnectionEvent(other.peer, connected=False)
        with trio.fail_after(10), pytest.raises(PeerError, match="cannot be reached"):
            await us.connect(other.peer)
        other.send(signal.SIGCONT)


async def test_without_the_keep_alive_a_stopped_peer_is_never_noticed() -> None:
    """The fault of the library: when this fails, it has learnt to notice."""
    async with connected(HostLimits(keepalive=3600)) as (us, other):
        stream = await us.open_stream(other.peer, ECHO)
        other.send(signal.SIGSTOP)
        with trio.move_on_after(0.8):
            await stream.read_some()
        assert us.connected_peers() == {other.peer}


async def test_a_peer_stopped_for_a_moment_stays_connected() -> None:
    async with connected(HostLimits(keepalive=1.0)) as (us, other):
        stream = await us.open_stream(other.peer, ECHO)
        other.send(signal.SIGSTOP)
        await stream.write(b"hello")
        await trio.sleep(0.5)
        other.send(signal.SIGCONT)
        with trio.fail_after(10):
            assert await stream.read_some() == b"hello"


async def test_a_killed_peer_is_noticed_at_once() -> None:
    async with connected(HostLimits(keepalive=3600)) as (us, other), us.events() as events:
        stream = await us.open_stream(other.peer, ECHO)
        other.send(signal.SIGKILL)
        with trio.fail_after(10), pytest.raises(PeerError, match="lost"):
            await stream.read_some()
        with trio.fail_after(10):
            assert await events.receive() == ConnectionEvent(other.peer, connected=False)
            await other.process.wait()
        with trio.fail_after(10), pytest.raises(PeerError, match="cannot be reached"):
            await us.connect(other.peer)
