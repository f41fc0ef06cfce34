"""What libp2p puts into a Noise handshake: who we are, signed, and the muxers we speak.

Source: libp2p specifications, noise ("The libp2p Signed Handshake Payload") and peer-ids (keys).
The two protobuf messages are so small that they are read by hand:

    NoiseHandshakePayload { bytes identity_key = 1; bytes identity_sig = 2;
                            NoiseExtensions extensions = 4; }
    NoiseExtensions { repeated bytes webtransport_certhashes = 1;
                      repeated string stream_muxers = 2; }
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ...dht.peer_id import PeerId
from ...errors import FormatError
from .protobuf_fields import encode_field, read_fields

_SIGNED_PREFIX: Final = b"noise-libp2p-static-key:"
_ED25519_KEY: Final = bytes.fromhex("08011220")  # PublicKey { Type = Ed25519; Data = 32 bytes }
_OTHER_KEYS: Final = {b"\x08\x00": "RSA", b"\x08\x02": "Secp256k1", b"\x08\x03": "ECDSA"}


@dataclass(frozen=True, slots=True)
class Payload:
    """A peer's payload, its signature checked."""

    peer: PeerId
    muxers: tuple[str, ...]
    """In the peer's order of preference; empty when it says nothing of muxers."""


def encode_payload(seed: bytes, static_key: bytes, muxers: Sequence[str]) -> bytes:
    """Our payload: `seed` is the 32-byte Ed25519 seed, `static_key` our public X25519 key."""
    identity = Ed25519PrivateKey.from_private_bytes(seed)
    payload = encode_field(1, _ED25519_KEY + identity.public_key().public_bytes_raw())
    payload += encode_field(2, identity.sign(_SIGNED_PREFIX + static_key))
    if muxers:
        payload += encode_field(
            4, b"".join(encode_field(2, name.encode("ascii")) for name in muxers)
        )
    return payload


def open_payload(data: bytes, static_key: bytes) -> Payload:
    """Read a peer's payload and check that its identity has signed `static_key`.

    Unknown fields are skipped, as protobuf demands.

    Raises:
        FormatError: not such a payload, another kind of identity key, or a wrong signature.
    """
    key = signature = b""
    muxers: list[str] = []
    for number, value in read_fields(data):
        if number == 1:
            key = value
        elif number == 2:
            signature = value
        elif number == 4:
            names = (name for field, name in read_fields(value) if field == 2)
            muxers.extend(name.decode("utf-8", errors="replace") for name in names)
    public_key = _read_identity_key(key)
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            signature, _SIGNED_PREFIX + static_key
        )
    except (InvalidSignature, ValueError) as error:
        raise FormatError("the identity's signature is wrong") from error
    return Payload(PeerId.from_ed25519(public_key), tuple(muxers))


def _read_identity_key(data: bytes) -> bytes:
    # A peer id is a digest of exactly these bytes, so the specification allows one encoding only.
    if len(data) == len(_ED25519_KEY) + 32 and data.startswith(_ED25519_KEY):
        return data[len(_ED25519_KEY) :]
    if not data:
        raise FormatError("the identity key is missing")
    other = _OTHER_KEYS.get(data[:2])
    if other is not None:
        raise FormatError(f"the identity is a key of type {other}; only Ed25519 is known here")
    raise FormatError("the identity key is malformed")
