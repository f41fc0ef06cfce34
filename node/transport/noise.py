"""`/noise`: from a byte stream to an authenticated, encrypted one. Bytes in, bytes out; no I/O.

Source: libp2p specifications, noise and connections/inlined-muxer-negotiation. The protocol below
is in `noise_xx.py`, what libp2p says in it in `noise_payload.py`, the frames that follow in
`noise_session.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ...dht.host import Buffer
from ...dht.peer_id import PeerId
from ...errors import FormatError, PeerError
from .noise_payload import Payload, encode_payload, open_payload
from .noise_session import LENGTH_BYTES, MAX_FRAME, MAX_PLAINTEXT, NoiseSession
from .noise_xx import KEY_BYTES, XXHandshake

__all__ = [
    "MAX_FRAME",
    "MAX_PLAINTEXT",
    "NOISE_PROTOCOL",
    "HostIdentity",
    "NoiseHandshake",
    "NoiseSession",
]

NOISE_PROTOCOL: Final = "/noise"
_MAX_HANDSHAKE_MESSAGE: Final = 4096
"""Ours have some 250 bytes; the largest sensible ones carry an RSA key and certificate hashes."""


class HostIdentity(Protocol):
    """The part of a node's identity that the transport needs."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def private_key(self) -> bytes:
        """32-byte Ed25519 seed."""
        ...


class NoiseHandshake:
    """Proves to each other who both sides are, and agrees on the keys of a session.

    Send what `data_to_send` gives, `receive` what arrives, until `done`; then send what is left.
    Never holds more than one message of at most 4 KiB and what a single `receive` brought.

    Args:
        initiator: whether we dialled. Both sides must agree on it.
        expected: the peer that must be there; None for whoever proves an identity.
        muxers: what we speak, in our order of preference; empty to leave it to multistream-select.
    """

    def __init__(
        self,
        identity: HostIdentity,
        *,
        initiator: bool,
        expected: PeerId | None,
        muxers: Sequence[str] = ("/yamux/1.0.0",),
    ) -> None:
        self._identity = identity
        self._initiator = initiator
        self._expected = expected
        self._muxers = tuple(muxers)
        # A static key for each connection: nothing to keep secret for long, nothing to correlate.
        self._static = X25519PrivateKey.generate()
        self._xx = XXHandshake(
            initiator=initiator, static=self._static, ephemeral=X25519PrivateKey.generate()
        )
        self._received = bytearray()
        self._outgoing = bytearray()
        self._failed = ""
        self._payload: Payload | None = None
        self._muxer: str | None = None
        self._session: NoiseSession | None = None
        if initiator:
            self._send(b"")

    @property
    def done(self) -> bool:
        """Both sides are proven. `data_to_send` may still have our last message."""
        return self._session is not None

    @property
    def peer(self) -> PeerId:
        """Who is there. Only once `done`."""
        return self.session().peer

    @property
    def muxer(self) -> str | None:
        """The muxer agreed on; None when the peer leaves it to multistream-select."""
        self.session()
        return self._muxer

    def session(self) -> NoiseSession:
        """The session, always the same one. Only once `done`."""
        if self._session is None:
            raise RuntimeError("the handshake has not finished")
        return self._session

    def data_to_send(self) -> bytes:
        """What must go to the peer now; empty when it is the peer's turn."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def receive(self, data: Buffer) -> None:
        """Take bytes from the peer. What comes after the handshake goes to the session.

        Raises:
            PeerError: another peer than expected, or a handshake that proves nothing. Nothing more
                is sent or taken; the connection must be closed.
        """
        if self.done:
            raise RuntimeError("the handshake has finished: bytes belong to the session")
        if self._failed:
            raise PeerError(self._failed)
        self._received += data
        try:
            while self._session is None:
                message = self._next_message()
                if message is None:
                    return
                self._take(message)
        except FormatError as error:
            self._failed = f"failed the handshake ({error.message})"
            self._received.clear()
            self._outgoing.clear()
            raise PeerError(self._failed) from error

    def _next_message(self) -> bytes | None:
        if len(self._received) < LENGTH_BYTES:
            return None
        size = int.from_bytes(self._received[:LENGTH_BYTES], "big")
        # Nobody is proven yet, so what is too long is refused before it is kept. The first message
        # carries nothing but a key.
        first = not self._initiator and not self._xx.remote_ephemeral
        if size > _MAX_HANDSHAKE_MESSAGE or (first and size != KEY_BYTES):
            raise FormatError(f"a handshake message of {size} bytes")
        end = LENGTH_BYTES + size
        if len(self._received) < end:
            return None
        message = bytes(self._received[LENGTH_BYTES:end])
        del self._received[:end]
        return message

    def _take(self, message: bytes) -> None:
        data = self._xx.read_message(message)
        if self._xx.remote_static:
            self._payload = self._check_payload(data)
        if not self._xx.finished:
            payload = encode_payload(
                self._identity.private_key,
                self._static.public_key().public_bytes_raw(),
                self._muxers,
            )
            self._send(payload)
        if self._xx.finished and self._payload is not None:
            sending, receiving = self._xx.split()
            rest = bytes(self._received)
            self._session = NoiseSession(self._payload.peer, sending, receiving, rest)
            self._received.clear()

    def _check_payload(self, data: bytes) -> Payload:
        payload = open_payload(data, self._xx.remote_static)
        if self._expected is not None and payload.peer != self._expected:
            raise FormatError(f"peer {payload.peer.short} is there, not {self._expected.short}")
        if self._muxers and payload.muxers:
            self._muxer = self._agree(payload.muxers)
        return payload

    def _agree(self, theirs: tuple[str, ...]) -> str:
        """The first of the initiator's muxers that both speak."""
        preferred, spoken = (self._muxers, theirs) if self._initiator else (theirs, self._muxers)
        for muxer in preferred:
            if muxer in spoken:
                return muxer
        raise FormatError("no muxer in common")

    def _send(self, payload: bytes) -> None:
        message = self._xx.write_message(payload)
        self._outgoing += len(message).to_bytes(LENGTH_BYTES, "big") + message
