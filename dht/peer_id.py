"""Peer ids without the network library: the multihash of a peer's public key.

libp2p specification, peer-ids: an Ed25519 id is the identity multihash of the protobuf-encoded
public key, written in base58btc ("12D3Koo...").
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import base58

from ..errors import FormatError

_MAX_ID_BYTES = 64
_ED25519_PREFIX = bytes.fromhex("002408011220")  # identity multihash of 36 bytes; key type 1


class PeerId(bytes):
    """A peer's id: the multihash bytes; `str()` gives the base58 form people know."""

    __slots__ = ()

    def __str__(self) -> str:
        return _base58(bytes(self))

    def __repr__(self) -> str:
        return f"PeerId({self!s})"

    @property
    def short(self) -> str:
        """The last eight characters: enough to tell peers apart in a table or a log line."""
        return str(self)[-8:]

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """Parse the base58 form.

        Raises:
            FormatError: not base58, or not a multihash of a believable length.
        """
        if not 0 < len(text) <= 2 * _MAX_ID_BYTES:
            raise FormatError(f"{text[:80]!r} is not a peer id.")
        try:
            return cls.from_bytes(base58.b58decode(text))
        except ValueError as error:
            raise FormatError(f"{text[:80]!r} is not a peer id.") from error

    @classmethod
    def from_bytes(cls, data: bytes) -> PeerId:
        """Check and wrap the multihash bytes (identity of a key, or SHA-256 of one).

        Raises:
            FormatError: not such a multihash.
        """
        sound = 2 < len(data) <= _MAX_ID_BYTES and data[0] in (0x00, 0x12)
        if not sound or data[1] != len(data) - 2:
            raise FormatError(f"{len(data)} bytes are not a peer id.")
        return cls(data)

    @classmethod
    def from_ed25519(cls, public_key: bytes) -> PeerId:
        """The id of the 32-byte Ed25519 public key `public_key`."""
        if len(public_key) != 32:
            raise ValueError("an Ed25519 public key has 32 bytes")
        return cls(_ED25519_PREFIX + public_key)

    @property
    def ed25519_public_key(self) -> bytes | None:
        """The 32 key bytes when this id embeds an Ed25519 key, else None."""
        if len(self) == 38 and self.startswith(_ED25519_PREFIX):
            return bytes(self[6:])
        return None

    @property
    def kad_id(self) -> bytes:
        """Position in the keyspace: SHA-256 of the id (libp2p kad-dht specification)."""
        return _sha256(self)


@lru_cache(maxsize=16384)
def _base58(data: bytes) -> str:
    return base58.b58encode(data).decode("ascii")


@lru_cache(maxsize=16384)
def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
