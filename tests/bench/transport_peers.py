"""One end of a measured connection: meshnode's host, stock py-libp2p, or plain TCP under trio.

Run as a process of its own: `python -m tests.bench.transport_peers KIND` prints where it listens,
then serves until its input ends: `drain` swallows a stream and answers with one byte at its end,
`ping` sends 64 bytes back for every 64, and `ask` (ours alone) answers frames of a `StreamPool`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

import trio
from libp2p import new_host
from libp2p.abc import INetStream
from libp2p.peer.id import ID
from meshnode.dht.host import Stream
from meshnode.dht.peer_id import PeerId
from meshnode.node.identity import Identity
from meshnode.node.transport.libp2p_host import Libp2pHost, open_libp2p_host
from meshnode.node.transport.streams import BufferedStream, StreamPool, open_stream_pool
from multiaddr import Multiaddr

DRAIN = "/bench/drain/1"
PING = "/bench/ping/1"
ASK = "/bench/ask/1"
PING_BYTES = 64
LISTEN = "/ip4/127.0.0.1/tcp/0"


class Pipe(Protocol):
    """What all three kinds have in common."""

    async def read(self, max_bytes: int) -> bytes: ...
    async def write(self, data: bytes) -> None: ...
    async def end(self) -> None: ...


OpenPipe = Callable[[int, str], Awaitable[Pipe]]
"""Opens a stream on connection number n for a protocol."""


async def drain(pipe: Pipe) -> None:
    while await pipe.read(1 << 20):
        pass
    await pipe.write(b".")
    await pipe.end()


async def pong(pipe: Pipe) -> None:
    while data := await pipe.read(PING_BYTES):
        await pipe.write(data)


SERVED = {DRAIN: drain, PING: pong}


# --- meshnode -------------------------------------------------------------------------------------


class _OurPipe:
    def __init__(self, stream: Stream) -> None:
        self.read = stream.read_some
        self.write = stream.write
        self.end = stream.close


@asynccontextmanager
async def _ours_serving() -> AsyncIterator[str]:
    async with open_libp2p_host(Identity.generate(), listen=[LISTEN]) as host:
        for protocol, serve in SERVED.items():

            async def handler(
                stream: Stream, serve: Callable[[Pipe], Awaitable[None]] = serve
            ) -> None:
                await serve(_OurPipe(stream))

            host.set_handler(protocol, handler)
        host.set_handler(ASK, _answer)
        yield f"{host.peer_id} {host.addresses()[0]}"


async def _answer(stream: Stream) -> None:
    framed = BufferedStream(stream)
    while not await framed.at_end():
        await framed.write_frame(await framed.read_frame(PING_BYTES))


class _PooledPipe:
    """Requests through a pool: what is written is sent as one, what is read answers it."""

    def __init__(self, pool: StreamPool, peer: PeerId) -> None:
        self._pool = pool
        self._peer = peer
        self._answer = b""

    async def write(self, data: bytes) -> None:
        self._answer = await self._pool.request(self._peer, ASK, data, max_response=PING_BYTES)

    async def read(self, max_bytes: int) -> bytes:
        return self._answer

    async def end(self) -> None:
        return None


@asynccontextmanager
async def _pooled_dialling(where: str, connections: int) -> AsyncIterator[OpenPipe]:
    name, address = where.split()
    peer = PeerId.parse(name)
    async with open_libp2p_host(Identity.generate()) as host:
        host.add_addresses(peer, [address])
        async with open_stream_pool(host, max_streams=64, max_idle=64) as pool:

            async def open_pipe(number: int, protocol: str) -> Pipe:
                return _PooledPipe(pool, peer)

            yield open_pipe


@asynccontextmanager
async def _ours_dialling(where: str, connections: int) -> AsyncIterator[OpenPipe]:
    name, address = where.split()
    peer = PeerId.parse(name)
    async with AsyncExitStack() as stack:
        hosts: list[Libp2pHost] = []
        for _ in range(connections):
            host = await stack.enter_async_context(open_libp2p_host(Identity.generate()))
            host.add_addresses(peer, [address])
            await host.connect(peer)
            hosts.append(host)

        async def open_pipe(number: int, protocol: str) -> Pipe:
            return _OurPipe(await hosts[number].open_stream(peer, protocol))

        yield open_pipe


# --- stock py-libp2p ------------------------------------------------------------------------------


class _StockPipe:
    def __init__(self, stream: INetStream) -> None:
        self._stream = stream
        self.write = stream.write
        self.end = stream.close

    async def read(self, max_bytes: int) -> bytes:
        try:
            return await self._stream.read(max_bytes)
        except Exception as error:
            if type(error).__name__ in ("StreamEOF", "MuxedStreamEOF"):
                return b""
            raise


@asynccontextmanager
async def _stock_serving() -> AsyncIterator[str]:
    host = new_host()
    async with host.run(listen_addrs=[Multiaddr(LISTEN)]):
        for protocol, serve in SERVED.items():

            async def handler(
                stream: INetStream, serve: Callable[[Pipe], Awaitable[None]] = serve
            ) -> None:
                try:
                    await serve(_StockPipe(stream))
                except Exception as error:  # noqa: BLE001 - one that escapes ends its process
                    sys.stderr.write(f"stock handler: {error!r}\n")

            host.set_stream_handler(protocol, handler)  # type: ignore[arg-type]
        yield f"{host.get_id()} {host.get_addrs()[0]}"


@asynccontextmanager
async def _stock_dialling(where: str, connections: int) -> AsyncIterator[OpenPipe]:
    name, address = where.split()
    peer = ID.from_base58(name)
    async with AsyncExitStack() as stack:
        hosts = []
        for _ in range(connections):
            host = new_host()
            await stack.enter_async_context(host.run(listen_addrs=[Multiaddr(LISTEN)]))
            bare = Multiaddr(address.partition("/p2p/")[0])
            await host.get_network().dial_addr(bare, peer)
            hosts.append(host)

        async def open_pipe(number: int, protocol: str) -> Pipe:
            return _StockPipe(await hosts[number].new_stream(peer, [protocol]))  # type: ignore[list-item]

        yield open_pipe


# --- plain TCP: every stream is a connection ------------------------------------------------------


class _RawPipe:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.read = stream.receive_some
        self.write = stream.send_all
        self.end = stream.send_eof


@asynccontextmanager
async def _raw_serving() -> AsyncIterator[str]:
    async def handler(stream: trio.SocketStream) -> None:
        protocol = DRAIN if await stream.receive_some(1) == b"d" else PING
        await SERVED[protocol](_RawPipe(stream))

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handler, listeners)
        yield str(listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _raw_dialling(where: str, connections: int) -> AsyncIterator[OpenPipe]:
    async with AsyncExitStack() as stack:

        async def open_pipe(number: int, protocol: str) -> Pipe:
            stream = await trio.open_tcp_stream("127.0.0.1", int(where))
            await stack.enter_async_context(stream)
            await stream.send_all(b"d" if protocol == DRAIN else b"p")
            return _RawPipe(stream)

        yield open_pipe


SERVING = {"meshnode": _ours_serving, "py-libp2p": _stock_serving, "trio TCP": _raw_serving}
DIALLING = {"meshnode": _ours_dialling, "py-libp2p": _stock_dialling, "trio TCP": _raw_dialling}
POOLED = _pooled_dialling
"""As meshnode's, with every request through a `StreamPool`."""


async def _main(kind: str) -> None:
    async with SERVING[kind]() as where:
        sys.stdout.write(where + "\n")
        sys.stdout.flush()
        # The parent closes our input when it is done with us, or when it dies.
        await trio.to_thread.run_sync(os.read, sys.stdin.fileno(), 1)
        os._exit(0)


if __name__ == "__main__":
    trio.run(_main, sys.argv[1])
