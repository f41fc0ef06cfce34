"""From a TCP connection to an authenticated, multiplexed one: the library's Noise and Yamux.

Exactly one security protocol and one muxer are offered. The library's default list accepts
`/plaintext/2.0.0`, over which anybody can claim any peer id.
"""

from __future__ import annotations

from typing import Protocol

from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519_key_pair
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.upgrader import TransportUpgrader

from ...dht.peer_id import PeerId
from ...errors import PeerError
from .libp2p_muxer import Muxer
from .libp2p_pipe import RawPipe


class HostIdentity(Protocol):
    """The part of a node's identity that the transport needs."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def private_key(self) -> bytes:
        """32-byte Ed25519 seed."""
        ...


class Upgrader:
    """Runs the handshakes. To replace Noise or Yamux, change the two tables below."""

    def __init__(self, identity: HostIdentity) -> None:
        private_key = Ed25519PrivateKey.new(identity.private_key)
        keys = KeyPair(private_key, private_key.get_public_key())
        if ID.from_pubkey(keys.public_key).to_bytes() != bytes(identity.peer_id):
            raise ValueError("the identity's peer id does not belong to its private key")
        noise = NoiseTransport(keys, noise_privkey=new_x25519_key_pair().private_key)
        self._upgrader = TransportUpgrader(
            secure_transports_by_protocol={NOISE: noise},
            muxer_transports_by_protocol={YAMUX: Yamux},  # type: ignore[dict-item]
        )

    async def upgrade(self, pipe: RawPipe, expected: PeerId | None) -> Muxer:
        """Prove who both sides are and set up the muxer; `expected` is None for inbound.

        Raises:
            PeerError: another peer than expected, a broken handshake, a lost connection.
        """
        raw = RawConnection(pipe, initiator=expected is not None)
        wanted = None if expected is None else ID(bytes(expected))
        try:
            secured = await self._upgrader.upgrade_security(raw, expected is not None, wanted)
            peer = PeerId.from_bytes(secured.get_remote_peer().to_bytes())
            muxed = await self._upgrader.upgrade_connection(secured, secured.get_remote_peer())
        # A hostile handshake makes a dozen unrelated exception classes escape from the library
        # and from the three cryptography packages below it.
        except Exception as error:
            raise PeerError(
                f"failed the handshake ({str(error) or type(error).__name__})"
            ) from error
        if not isinstance(muxed, Yamux):
            raise PeerError("agreed on another muxer than the one it was offered")
        return Muxer(peer, muxed)
