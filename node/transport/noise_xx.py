"""The Noise protocol Noise_XX_25519_ChaChaPoly_SHA256: keys and messages, nothing of libp2p.

Source: Trevor Perrin, "The Noise Protocol Framework", revision 34. Names and section numbers are
those of that document. Only what XX needs is here: no pre-shared keys, no rekey.
"""

from __future__ import annotations

import hashlib
import hmac
from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ...dht.host import Buffer
from ...errors import FormatError

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
MAX_MESSAGE: Final = 65_535
"""No Noise message is longer (section 3)."""

_PROTOCOL: Final = b"Noise_XX_25519_ChaChaPoly_SHA256"  # 32 bytes: it is its own first hash
_PATTERN: Final = (("e",), ("e", "ee", "s", "es"), ("s", "se"))
_LAST_NONCE: Final = 2**64 - 2  # section 5.1 reserves 2^64 - 1
_NONCE: Final = Struct("<4xQ")
_USED_UP: Final = "the session's key is used up"
_NOT_AUTHENTIC: Final = "a message fails its authentication"


class CipherState:
    """One direction's key and its counter (section 5.1). A nonce is never used twice."""

    __slots__ = ("_aead", "_next")

    def __init__(self, key: bytes, next_nonce: int = 0) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._next = next_nonce

    def encrypt(self, plaintext: Buffer, associated: bytes = b"") -> bytes:
        """Ciphertext and tag of `plaintext`. Raises FormatError when all nonces are used."""
        return self._aead.encrypt(self._nonce(), plaintext, associated)

    def encrypt_into(self, plaintext: Buffer, out: memoryview) -> None:
        """Like `encrypt`, into `out`, which is `TAG_BYTES` longer and lies elsewhere."""
        nonce = self._next
        if nonce > _LAST_NONCE:
            raise FormatError(_USED_UP)
        self._next = nonce + 1
        self._aead.encrypt_into(_NONCE.pack(nonce), plaintext, None, out)

    def decrypt(self, ciphertext: Buffer, associated: bytes = b"") -> bytes:
        """The plaintext of the next ciphertext in order.

        Raises:
            FormatError: not that, or all nonces are used. The counter has moved all the same, so
                nothing can be opened any more: the connection must end.
        """
        nonce = self._next
        if nonce > _LAST_NONCE:
            raise FormatError(_USED_UP)
        self._next = nonce + 1
        try:
            return self._aead.decrypt(_NONCE.pack(nonce), ciphertext, associated)
        except InvalidTag as error:
            raise FormatError(_NOT_AUTHENTIC) from error

    def decrypt_into(self, ciphertext: Buffer, out: memoryview) -> None:
        """Like `decrypt`, into `out`, which is `TAG_BYTES` shorter and lies elsewhere. What is in
        `out` after an error is nothing that anybody vouches for."""
        nonce = self._next
        if nonce > _LAST_NONCE:
            raise FormatError(_USED_UP)
        self._next = nonce + 1
        try:
            self._aead.decrypt_into(_NONCE.pack(nonce), ciphertext, None, out)
        except InvalidTag as error:
            raise FormatError(_NOT_AUTHENTIC) from error

    def _nonce(self) -> bytes:
        if self._next > _LAST_NONCE:
            raise FormatError(_USED_UP)
        nonce = _NONCE.pack(self._next)
        self._next += 1
        return nonce


class XXHandshake:
    """The three messages of XX, from one side (section 5.3).

        -> e
        <- e, ee, s, es
        -> s, se

    Calls alternate between `write_message` and `read_message`; the initiator writes first. After
    the third, `split` gives the keys. After an error the object is of no further use.
    """

    def __init__(
        self,
        *,
        initiator: bool,
        static: X25519PrivateKey,
        ephemeral: X25519PrivateKey,
        prologue: bytes = b"",
    ) -> None:
        self._initiator = initiator
        self._static = static
        self._ephemeral = ephemeral
        self.remote_ephemeral = b""
        """The peer's key for this handshake (32 bytes), once its first message was read."""
        self.remote_static = b""
        """The peer's static key (32 bytes), once the message that carries it was read."""
        self._symmetric = _SymmetricState(prologue)
        self._messages = 0

    @property
    def finished(self) -> bool:
        return self._messages == len(_PATTERN)

    @property
    def handshake_hash(self) -> bytes:
        """Binds everything both sides have sent so far (section 11.2)."""
        return self._symmetric.hash

    def write_message(self, payload: bytes) -> bytes:
        """Our next handshake message. Raises FormatError for a peer's key of low order."""
        out = []
        for token in self._next_tokens(writing=True):
            if token == "e":
                out.append(self._ephemeral.public_key().public_bytes_raw())
                self._symmetric.mix_hash(out[-1])
            elif token == "s":
                key = self._static.public_key().public_bytes_raw()
                out.append(self._symmetric.encrypt_and_hash(key))
            else:
                self._symmetric.mix_key(self._shared_secret(token))
        out.append(self._symmetric.encrypt_and_hash(payload))
        return b"".join(out)

    def read_message(self, message: bytes) -> bytes:
        """The payload of the peer's next handshake message.

        Raises:
            FormatError: cut short, not authentic, or with a key of low order.
        """
        position = 0

        def take(size: int) -> bytes:
            nonlocal position
            if len(message) - position < size:
                raise FormatError("a handshake message is cut short")
            position += size
            return message[position - size : position]

        for token in self._next_tokens(writing=False):
            if token == "e":
                self.remote_ephemeral = take(KEY_BYTES)
                self._symmetric.mix_hash(self.remote_ephemeral)
            elif token == "s":
                sealed = take(KEY_BYTES + TAG_BYTES)
                self.remote_static = self._symmetric.decrypt_and_hash(sealed)
            else:
                self._symmetric.mix_key(self._shared_secret(token))
        return self._symmetric.decrypt_and_hash(message[position:])

    def split(self) -> tuple[CipherState, CipherState]:
        """The keys of the session: for what we send, for what we receive."""
        if not self.finished:
            raise RuntimeError("the handshake has not finished")
        to_responder, to_initiator = self._symmetric.split()
        if self._initiator:
            return to_responder, to_initiator
        return to_initiator, to_responder

    def _next_tokens(self, *, writing: bool) -> tuple[str, ...]:
        if self.finished or writing is not (self._initiator == (self._messages % 2 == 0)):
            raise RuntimeError("a handshake message out of turn")
        self._messages += 1
        return _PATTERN[self._messages - 1]

    def _shared_secret(self, token: str) -> bytes:
        # The first letter is the initiator's key, the second the responder's.
        mine, theirs = (token[0], token[1]) if self._initiator else (token[1], token[0])
        private = self._ephemeral if mine == "e" else self._static
        public = self.remote_ephemeral if theirs == "e" else self.remote_static
        try:
            return private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:  # the shared secret is zero, known to everybody
            raise FormatError("a public key is of low order") from error


class _SymmetricState:
    """The running hash and chaining key of a handshake (section 5.2)."""

    __slots__ = ("_chaining_key", "_cipher", "hash")

    def __init__(self, prologue: bytes) -> None:
        self.hash = self._chaining_key = _PROTOCOL
        self._cipher: CipherState | None = None
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self.hash = hashlib.sha256(self.hash + data).digest()

    def mix_key(self, secret: bytes) -> None:
        self._chaining_key, key = _hkdf(self._chaining_key, secret)
        self._cipher = CipherState(key)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        sealed = plaintext if self._cipher is None else self._cipher.encrypt(plaintext, self.hash)
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        plaintext = sealed if self._cipher is None else self._cipher.decrypt(sealed, self.hash)
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        first, second = _hkdf(self._chaining_key, b"")
        return CipherState(first), CipherState(second)


def _hkdf(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    """Two keys (section 4.3: HKDF of RFC 5869 with empty info)."""
    extracted = hmac.digest(chaining_key, material, "sha256")
    first = hmac.digest(extracted, b"\x01", "sha256")
    return first, hmac.digest(extracted, first + b"\x02", "sha256")
