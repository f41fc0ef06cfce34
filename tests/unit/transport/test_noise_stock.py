"""Our `/noise` against the library's own, in both roles, over memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from libp2p.abc import ISecureConn
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.secp256k1 import create_new_key_pair as new_secp256k1_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519_key_pair
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.messages import NoiseExtensions, NoiseHandshakePayload
from libp2p.security.noise.patterns import PatternXX
from meshnode.errors import PeerError
from meshnode.node.identity import Identity
from meshnode.node.transport.noise import NoiseHandshake, NoiseSession

OURS = Identity.from_seed(b"o" * 32)
SEED = b"s" * 32
STOCK = Identity.from_seed(SEED)
SENT = bytes(range(251)) * 1000


def ed25519_keys() -> KeyPair:
    private = Ed25519PrivateKey.new(SEED)
    return KeyPair(private, private.get_public_key())


class Pipe(ReadWriteCloser):
    """One end of a connection in memory, as the library wants it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = b""

    async def read(self, n: int | None = None) -> bytes:
        if not self._buffer:
            self._buffer = bytes(await self._stream.receive_some())
        data = self._buffer[:n]
        self._buffer = self._buffer[len(data) :]
        return data

    async def write(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def close(self) -> None:
        await self._stream.aclose()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


class Stock(PatternXX):
    """The library's handshake, with the extensions it can encode but never sends."""

    def __init__(self, keys: KeyPair, muxers: list[str]) -> None:
        super().__init__(
            ID.from_pubkey(keys.public_key), keys.private_key, new_x25519_key_pair().private_key
        )
        self._muxers = muxers

    def make_handshake_payload(
        self, extensions: NoiseExtensions | None = None
    ) -> NoiseHandshakePayload:
        if self._muxers:
            extensions = NoiseExtensions([b"hash"], self._muxers, b"early data")
        return super().make_handshake_payload(extensions)

    async def run(self, stream: trio.abc.Stream, *, initiator: bool) -> ISecureConn:
        raw = RawConnection(Pipe(stream), initiator=initiator)
        if initiator:
            return await self.handshake_outbound(raw, ID(bytes(OURS.peer_id)))
        return await self.handshake_inbound(raw)


async def shake(handshake: NoiseHandshake, stream: trio.abc.Stream) -> NoiseSession:
    while True:
        if data := handshake.data_to_send():
            await stream.send_all(data)
        if handshake.done:
            return handshake.session()
        if not (received := await stream.receive_some()):
            raise PeerError("closed the connection")
        handshake.receive(received)


async def receive(session: NoiseSession, stream: trio.abc.Stream, size: int) -> bytes:
    got, buffer = session.open(b"")[0], bytearray()
    while sum(map(len, got)) < size:
        buffer += await stream.receive_some()
        plaintexts, used = session.open(bytes(buffer))
        del buffer[:used]
        got += plaintexts
    assert not buffer
    return b"".join(got)


async def together(*calls: Callable[[], Awaitable[object]]) -> list[object]:
    """Run all calls at once; their results in order."""
    results: list[object] = [None] * len(calls)

    async def run(index: int) -> None:
        results[index] = await calls[index]()

    async with trio.open_nursery() as nursery:
        for index in range(len(calls)):
            nursery.start_soon(run, index)
    return results


@pytest.mark.parametrize("muxers", [[], ["/mplex/6.7.0", "/yamux/1.0.0"]])
@pytest.mark.parametrize("we_dial", [True, False])
async def test_the_library_and_we_understand_each_other(we_dial: bool, muxers: list[str]) -> None:
    near, far = trio.testing.memory_stream_pair()
    expected = STOCK.peer_id if we_dial else None
    handshake = NoiseHandshake(OURS, initiator=we_dial, expected=expected)
    stock = Stock(ed25519_keys(), muxers)
    with trio.fail_after(10):
        session, secured = await together(
            lambda: shake(handshake, near), lambda: stock.run(far, initiator=not we_dial)
        )
        assert isinstance(session, NoiseSession)
        assert isinstance(secured, ISecureConn)
        assert handshake.peer == STOCK.peer_id
        assert secured.get_remote_peer().to_bytes() == bytes(OURS.peer_id)
        assert handshake.muxer == ("/yamux/1.0.0" if muxers else None)

        pieces = [SENT[:12], SENT[12:70_000], SENT[70_000:]]
        results = await together(
            lambda: near.send_all(b"".join(session.seal(pieces))),
            lambda: secured.read(len(SENT)),
        )
        assert results[1] == SENT
        results = await together(
            lambda: secured.write(SENT), lambda: receive(session, near, len(SENT))
        )
        assert results[1] == SENT


async def test_a_stock_peer_with_another_kind_of_key_is_refused_by_name() -> None:
    near, far = trio.testing.memory_stream_pair()
    handshake = NoiseHandshake(OURS, initiator=True, expected=None)
    stock = Stock(new_secp256k1_key_pair(), [])

    async def stock_listens() -> None:
        await stock.run(far, initiator=False)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stock_listens)
            with pytest.raises(PeerError, match=r"Secp256k1.*only Ed25519"):
                await shake(handshake, near)
            nursery.cancel_scope.cancel()


async def test_the_library_refuses_us_when_it_dialled_somebody_else() -> None:
    # So the id we prove is the one it checks, not one it takes on trust.
    near, far = trio.testing.memory_stream_pair()
    somebody = NoiseHandshake(Identity.generate(), initiator=False, expected=None)
    stock = Stock(ed25519_keys(), [])

    async def stock_dials() -> None:
        with pytest.raises(Exception, match="peer id does not correspond"):
            await stock.run(far, initiator=True)
        await far.aclose()

    async def we_listen() -> None:
        with pytest.raises(PeerError):
            await shake(somebody, near)

    with trio.fail_after(10):
        await together(stock_dials, we_listen)
    assert not somebody.done
