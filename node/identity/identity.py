"""Who a node is: an Ed25519 key pair, kept as PEM, and the peer id made from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ...config.durable import create_file, read_private_file
from ...dht.peer_id import PeerId
from ...errors import FormatError, MembershipError

_MAX_PEM_BYTES = 16 * 1024
_WHAT = "the node's identity key"


@dataclass(frozen=True, slots=True)
class Identity:
    """A key pair. Whoever has the private key is this node."""

    peer_id: PeerId
    _key: Ed25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def generate(cls) -> Identity:
        """A new identity, in memory only."""
        return cls._of(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity of a 32-byte Ed25519 seed (RFC 8032, "private key")."""
        return cls._of(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read the PEM file (PKCS #8, not encrypted) at `path`.

        Raises:
            MembershipError: there is none; the node was never initialised.
            RefusedError: other users can read it.
            FormatError: it holds something else.
            StoreError: it cannot be read.
        """
        pem = read_private_file(path, max_bytes=_MAX_PEM_BYTES, what=_WHAT)
        if pem is None:
            raise MembershipError(
                f"This node has no identity yet: {path} does not exist.",
                hint="Run `meshnode init` to make a mesh, or `meshnode join TOKEN` to enter one.",
            )
        return cls._of(_parse_pem(pem, path))

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """Read the identity at `path`, or make a new one there if there is none.

        Two processes that do this at once end up with the same identity. Raises like `load`.
        """
        if read_private_file(path, max_bytes=_MAX_PEM_BYTES, what=_WHAT) is None:
            create_file(path, cls.generate().to_pem())
        return cls.load(path)

    @classmethod
    def _of(cls, key: Ed25519PrivateKey) -> Identity:
        return cls(PeerId.from_ed25519(key.public_key().public_bytes_raw()), key)

    @property
    def private_key(self) -> bytes:
        """The 32-byte Ed25519 seed."""
        return self._key.private_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `message`; `verify` checks it."""
        return self._key.sign(message)

    def to_pem(self) -> bytes:
        """The private key as PKCS #8 in PEM."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def verify(peer_id: PeerId, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of `message` by the key inside `peer_id`.

    False for everything else, a peer id without an Ed25519 key included.
    """
    public_key = peer_id.ed25519_public_key
    if public_key is None:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _parse_pem(pem: bytes, path: Path) -> Ed25519PrivateKey:
    hint = (
        "Restore it from a backup. Without one, move it away and run `meshnode join TOKEN` again: "
        "the node then has a new peer id."
    )
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise FormatError(
            f"{path} is encrypted with a password, which meshnode cannot ask for.",
            hint=f"Decrypt it with: openssl pkey -in '{path}' -out NEW",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FormatError(f"{path} should hold {_WHAT}, but is damaged.", hint=hint) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise FormatError(f"{path} holds a key that is not Ed25519.", hint=hint)
    return key
