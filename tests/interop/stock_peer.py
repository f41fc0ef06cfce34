"""A stock py-libp2p host that does what it is told, in the same words as js/peer.mjs.

python -m tests.interop.stock_peer
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Awaitable, Callable

import trio
from libp2p import new_host
from libp2p.abc import IHost, INetStream
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.host.exceptions import StreamFailure
from libp2p.host.ping import PingService
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.network.stream.exceptions import StreamClosed, StreamEOF, StreamError, StreamReset
from libp2p.peer.id import ID
from libp2p.utils.varint import read_length_prefixed_protobuf
from meshnode.dht.host import Buffer, Stream
from meshnode.dht.peer_id import PeerId
from meshnode.errors import PeerError
from multiaddr import Multiaddr

from .roles import Roles

ROLE_DEADLINE = 40.0
LIBRARY_ERRORS = (StreamClosed, StreamError, StreamReset)


class StockStream:
    """The library's stream behind our face."""

    def __init__(self, inner: INetStream, protocol: str) -> None:
        self._inner = inner
        self.protocol = protocol
        self.peer = PeerId.from_bytes(inner.muxed_conn.peer_id.to_bytes())

    async def read_some(self, max_bytes: int = 65536) -> bytes:
        try:
            return await self._inner.read(max_bytes)
        except StreamEOF:
            # The library calls a reset an end; its muxer knows better.
            if self._inner.muxed_stream.reset_received:
                raise PeerError("reset by the peer") from None
            return b""
        except LIBRARY_ERRORS as error:
            raise self._failed(error) from error

    async def write(self, data: Buffer) -> None:
        try:
            await self._inner.write(bytes(data))
        except LIBRARY_ERRORS as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> PeerError:
        reset = self._inner.muxed_stream.reset_received
        return PeerError("reset by the peer" if reset else f"{type(error).__name__}: {error}")

    async def close(self) -> None:
        await self._inner.close_write()

    async def reset(self) -> None:
        await self._inner.reset()


class StockPeer:
    """Answers one request after the other's arrival, each in a task of its own."""

    def __init__(self, host: IHost) -> None:
        self._host = host
        self._roles = Roles()
        for protocol, handler in self._roles.handlers.items():
            host.set_stream_handler(protocol, _guarded(handler, protocol))  # type: ignore[arg-type]

    async def answer(self, line: bytes) -> None:
        request = json.loads(line)
        reply: dict[str, object]
        try:
            with trio.fail_after(ROLE_DEADLINE):
                reply = {"result": await self._perform(request.pop("do"), request)}
        except Exception as error:  # noqa: BLE001 - whatever went wrong is the answer
            reply = {"error": repr(error)}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()

    async def _perform(self, name: str, given: dict[str, object]) -> object:
        peer = ID.from_base58(given.pop("peer")) if "peer" in given else None  # type: ignore[arg-type]
        network = self._host.get_network()
        match name:
            case "hello":
                address = str(self._host.get_addrs()[0]).partition("/p2p/")[0]
                return {"peer": str(self._host.get_id()), "address": address}
            case "dial":
                await network.dial_addr(Multiaddr(str(given["address"])), peer)
                return True
            case "wait_connected" | "wait_disconnected":
                wanted = name == "wait_connected"
                # The library's notifications come before its table says the same.
                while bool(network.get_connections(peer)) != wanted:  # noqa: ASYNC110
                    await trio.sleep(0.005)
                return True
            case "is_connected":
                return bool(network.get_connections(peer))
            case "ping":
                return (await PingService(self._host).ping(peer))[0]  # type: ignore[arg-type]
            case "identify":
                return await self._identify(peer)  # type: ignore[arg-type]
            case "wait_speaks":
                # Its own question and our push may come in any order; both end here.
                while given["protocol"] not in self._host.get_peerstore().get_protocols(peer):  # type: ignore[arg-type]  # noqa: ASYNC110
                    await trio.sleep(0.005)
                return True
            case "hang_up":
                await network.close_peer(peer)
                return True

        async def open_stream(protocol: str) -> Stream:
            try:
                inner = await self._host.new_stream(peer, [protocol])  # type: ignore[list-item]
            except StreamFailure as error:
                if "protocols not supported" in str(error.__cause__):
                    raise PeerError(f"the peer does not speak {protocol}") from error
                raise
            return StockStream(inner, protocol)

        return await self._roles.play(name, open_stream, given)

    async def _identify(self, peer: ID) -> dict[str, object]:
        """What a peer says of itself, asked now."""
        stream = await self._host.new_stream(peer, [IDENTIFY])
        told = Identify.FromString(await read_length_prefixed_protobuf(stream))
        await stream.close()
        return {
            "peer": str(ID.from_pubkey(deserialize_public_key(told.public_key))),
            "agent": told.agent_version,
            "listen": [str(Multiaddr(data)) for data in told.listen_addrs],
            "protocols": list(told.protocols),
            "observed": str(Multiaddr(told.observed_addr)),
        }


def _guarded(
    handler: Callable[[Stream], Awaitable[None]], protocol: str
) -> Callable[[INetStream], Awaitable[None]]:
    async def serve(inner: INetStream) -> None:
        stream = StockStream(inner, protocol)
        try:
            await handler(stream)
            await stream.close()
        # An exception here would end the library's whole host.
        except Exception:
            logging.getLogger(__name__).exception("handler failed")
            await stream.reset()

    return serve


async def main() -> None:
    host = new_host()
    async with (
        host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]),
        trio.open_nursery() as nursery,
    ):
        peer = StockPeer(host)
        unfinished = b""
        async for data in trio.lowlevel.FdStream(sys.stdin.fileno()):
            *lines, unfinished = (unfinished + data).split(b"\n")
            for line in lines:
                nursery.start_soon(peer.answer, line)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    trio.run(main)
