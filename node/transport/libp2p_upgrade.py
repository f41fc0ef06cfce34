"""From a TCP connection to an authenticated, multiplexed one, as every libp2p node does it.

multistream-select agrees on `/noise`; the Noise handshake proves both peers and, when both know the
extension, agrees on `/yamux/1.0.0`; otherwise multistream-select does that inside.
Exactly these two are offered: over `/plaintext/2.0.0` anybody could claim any peer id.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ...dht.host import Buffer
from ...dht.peer_id import PeerId
from ...errors import PeerError
from . import multistream
from .limits import HostLimits
from .native_connection import NativeConnection, new_scratch
from .native_socket import NativeSocket
from .noise import MAX_FRAME, NOISE_PROTOCOL, HostIdentity, NoiseHandshake, NoiseSession
from .streams import BufferedStream
from .yamux import PROTOCOL as YAMUX_PROTOCOL
from .yamux_budget import ReceiveBudget

_UNPROVEN = PeerId(b"")


class Upgrader:
    """Runs the handshakes of one host.

    Args:
        violated: told the reason when a peer breaks the protocol of a connection later.
        budget: what all connections together may hold in memory; the default when None.
    """

    def __init__(
        self,
        identity: HostIdentity,
        limits: HostLimits,
        violated: Callable[[str], None],
        budget: ReceiveBudget | None = None,
    ) -> None:
        public = Ed25519PrivateKey.from_private_bytes(identity.private_key).public_key()
        if PeerId.from_ed25519(public.public_bytes_raw()) != identity.peer_id:
            raise ValueError("the identity's peer id does not belong to its private key")
        self._identity = identity
        self._limits = limits
        self._violated = violated
        self._scratch = new_scratch()
        self._budget = budget or ReceiveBudget()

    async def upgrade(self, wire: NativeSocket, expected: PeerId | None) -> NativeConnection:
        """Prove who both sides are and set up the muxer; `expected` is None for inbound.

        Raises:
            PeerError: another peer than expected, a broken handshake, a lost connection.
        """
        try:
            return await self._upgrade(wire, expected)
        except PeerError as error:
            if error.message.startswith("failed the handshake ("):
                raise
            raise PeerError(f"failed the handshake ({error.message})") from error

    async def _upgrade(self, wire: NativeSocket, expected: PeerId | None) -> NativeConnection:
        initiator = expected is not None
        plain = _PlainStream(wire, expected or _UNPROVEN, self._limits.stall_timeout)
        beyond = await _agree(plain, NOISE_PROTOCOL, initiator=initiator)
        handshake = NoiseHandshake(
            self._identity, initiator=initiator, expected=expected, muxers=(YAMUX_PROTOCOL,)
        )
        if beyond:
            handshake.receive(beyond)
        while True:
            if data := handshake.data_to_send():
                await plain.write(data)
            if handshake.done:
                break
            if not (data := await plain.read_some()):
                raise PeerError("the connection was lost")
            handshake.receive(data)
        secured = _SecuredStream(plain, handshake.session())
        early = b""
        if handshake.muxer is None:
            early = await _agree(secured, YAMUX_PROTOCOL, initiator=initiator)
        return NativeConnection(
            handshake.peer,
            wire,
            secured.session,
            initiator=initiator,
            stall_timeout=self._limits.stall_timeout,
            early=early + secured.take_opened(),
            unopened=secured.unopened,
            scratch=self._scratch,
            budget=self._budget,
            violated=self._violated,
        )


async def _agree(stream: _PlainStream | _SecuredStream, protocol: str, *, initiator: bool) -> bytes:
    """Agree on `protocol`; returns what the peer has sent beyond that."""
    buffered = BufferedStream(stream)
    if initiator:
        await multistream.propose(buffered, protocol)
    else:
        await multistream.answer(buffered, (protocol,))
    return buffered.take_rest()


class _PlainStream:
    """The bare connection as a `Stream`, for as long as nobody is proven."""

    protocol: Final = "connection"

    def __init__(self, wire: NativeSocket, peer: PeerId, stall_timeout: float) -> None:
        self.peer = peer
        self._wire = wire
        self._stall_timeout = stall_timeout
        self._buffer = memoryview(bytearray(MAX_FRAME))

    async def read_some(self, max_bytes: int = 65536) -> bytes:
        size = await self._wire.receive_into(self._buffer[:max_bytes])
        return bytes(self._buffer[:size])

    async def write(self, data: Buffer) -> None:
        await self._wire.send_all(data, self._stall_timeout)

    async def close(self) -> None:
        self._wire.close()

    async def reset(self) -> None:
        self._wire.close()


class _SecuredStream:
    """The encrypted connection as a `Stream`, until the muxer takes over."""

    protocol: Final = "connection"

    def __init__(self, inner: _PlainStream, session: NoiseSession) -> None:
        self.peer = session.peer
        self.session = session
        self.unopened = b""
        self._inner = inner
        self._opened: deque[bytes] = deque(session.open(b"")[0])

    async def read_some(self, max_bytes: int = 65536) -> bytes:
        while not self._opened:
            if not (data := await self._inner.read_some()):
                return b""
            received = self.unopened + data
            opened, used = self.session.open(received)
            self._opened.extend(opened)
            self.unopened = received[used:]
        first = self._opened.popleft()
        if len(first) > max_bytes:
            self._opened.appendleft(first[max_bytes:])
        return first[:max_bytes]

    async def write(self, data: Buffer) -> None:
        for sealed in self.session.seal((data,)):
            await self._inner.write(sealed)

    def take_opened(self) -> bytes:
        """Decrypted and not read."""
        return b"".join(self._opened)

    async def close(self) -> None:
        await self._inner.close()

    async def reset(self) -> None:
        await self._inner.reset()
