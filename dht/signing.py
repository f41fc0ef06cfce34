"""Ed25519 signatures over statements, each in a domain of its own.

A domain begins what is signed, so that a signature made for one purpose can never be taken for
another's. Statements and records are canonical msgpack: one value has one encoding, and decoders
refuse every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgpack
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..errors import FormatError, IntegrityError
from .peer_id import PeerId
from .plain_msgpack import unpack

SIGNATURE_BYTES = 64


class Signer(Protocol):
    """Our identity, as far as the DHT needs it."""

    @property
    def peer_id(self) -> PeerId: ...

    def sign(self, message: bytes, /) -> bytes:
        """A 64-byte Ed25519 signature."""
        ...


def pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack_bounded(data: bytes, max_bytes: int, what: str) -> object:
    """The one value in `data`; see `plain_msgpack.unpack`.

    Raises:
        FormatError: also when it is longer than `max_bytes`.
    """
    if len(data) > max_bytes:
        raise FormatError(f"{what} of {len(data)} bytes; at most {max_bytes}.")
    return unpack(data)


def check_canonical(data: bytes, fields: Sequence[object], what: str) -> None:
    """Check that `data` is the one encoding of `fields`, which were read from it.

    Python takes 1, 1.0 and True for equal; without this a record would have several encodings.

    Raises:
        FormatError: it is another one.
    """
    if pack(list(fields)) != data:
        raise FormatError(f"{what} is not in canonical form.")


def check_signature(signer: PeerId, statement: bytes, signature: bytes, what: str) -> None:
    """Check that the key inside `signer` made `signature` over `statement`.

    Raises:
        IntegrityError: it did not, or there is no Ed25519 key in that id.
    """
    key = signer.ed25519_public_key
    try:
        if key is None or len(signature) != SIGNATURE_BYTES:
            raise InvalidSignature
        Ed25519PublicKey.from_public_bytes(key).verify(signature, statement)
    except (InvalidSignature, ValueError) as error:
        raise IntegrityError(f"{what} is not signed by {signer.short}.") from error
