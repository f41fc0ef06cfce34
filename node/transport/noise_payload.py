"""What libp2p puts into a Noise handshake: who we are, signed, and the muxers we speak.

Source: libp2p specifications, noise ("The libp2p Signed Handshake Payload") and peer-ids (keys).
The two protobuf messages are so small, and come from so far away, that they are read by hand:

    NoiseHandshakePayload { bytes identity_key = 1; bytes identity_sig = 2;
                            NoiseExtensions extensions = 4; }
    NoiseExtensions { repeated bytes webtransport_certhashes = 1;
                      repeated string stream_muxers = 2; }
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ...dht.peer_id import PeerId
from ...errors import FormatError

_SIGNED_PREFIX: Final = b"noise-libp2p-static-key:"
_ED25519_KEY: Final = bytes.fromhex("08011220")  # PublicKey { Type = Ed25519; Data = 32 bytes }
_OTHER_KEYS: Final = {b"\x08\x00": "RSA", b"\x08\x02": "Secp256k1", b"\x08\x03": "ECDSA"}

_VARINT: Final = 0
_BYTES: Final = 2
_FIXED_SIZES: Final = {1: 8, 5: 4}


@dataclass(frozen=True, slots=True)
class Payload:
    """A peer's payload, its signature checked."""

    peer: PeerId
    muxers: tuple[str, ...]
    """In the peer's order of preference; empty when it says nothing of muxers."""


def encode_payload(seed: bytes, static_key: bytes, muxers: Sequence[str]) -> bytes:
    """Our payload: `seed` is the 32-byte Ed25519 seed, `static_key` our public X25519 key."""
    identity = Ed25519PrivateKey.from_private_bytes(seed)
    payload = _field(1, _ED25519_KEY + identity.public_key().public_bytes_raw())
    payload += _field(2, identity.sign(_SIGNED_PREFIX + static_key))
    if muxers:
        payload += _field(4, b"".join(_field(2, name.encode("ascii")) for name in muxers))
    return payload


def open_payload(data: bytes, static_key: bytes) -> Payload:
    """Read a peer's payload and check that its identity has signed `static_key`.

    Unknown fields are skipped, as protobuf demands.

    Raises:
        FormatError: not such a payload, another kind of identity key, or a wrong signature.
    """
    key = signature = b""
    muxers: list[str] = []
    for number, value in _read_fields(data):
        if number == 1:
            key = value
        elif number == 2:
            signature = value
        elif number == 4:
            names = (name for field, name in _read_fields(value) if field == 2)
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


def _field(number: int, data: bytes) -> bytes:
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(data)) + data


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a protobuf message as (number, bytes); others are skipped."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise FormatError("the payload has a field of impossible number")
        if wire_type == _VARINT:
            _, position = _read_varint(data, position)
            continue
        if wire_type == _BYTES:
            size, position = _read_varint(data, position)
        elif wire_type in _FIXED_SIZES:
            size = _FIXED_SIZES[wire_type]
        else:
            raise FormatError("the payload has a field of unknown type")
        if size > len(data) - position:
            raise FormatError("the payload is cut short")
        if wire_type == _BYTES:
            yield number, data[position : position + size]
        position += size


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if position == len(data):
            raise FormatError("the payload is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise FormatError("the payload has a number out of range")
