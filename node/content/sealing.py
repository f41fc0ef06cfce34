"""Sealing: convergent encryption of one chunk, and opening it again.

A chunk is AES-256-GCM (NIST SP 800-38D) over the bytes left after compression, with

    key   = BLAKE3 keyed hash (key: convergence secret, message: BLAKE3-256 of those very bytes)
    nonce = twelve zero bytes, no associated data

A constant nonce is sound only because a key never meets a second message: it is derived from the
message itself, so another message has another key. Three things follow and must stay so. The codec
is not authenticated as associated data: the same bytes under two codecs would give two tags for one
key, which reveals the authentication key; the codec stands in the manifest, which is sealed itself.
The digest is taken after compression, so other settings give other keys. And the bytes that are
hashed are the bytes that are encrypted even when the caller's buffer changes in between (a file
mapped into memory): see `_frozen`, and `Sealer.seal_own` for memory that cannot.

Members of a mesh share the convergence secret, so equal chunks dedupe between them; outsiders
cannot test whether a chunk they know is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...errors import FormatError, IntegrityError, WrongKeyError
from .cid import encode_cid
from .compression import DEFAULT_LEVEL, Codec, CompressionMode, Compressor, decompress
from .limits import KEY_BYTES, MAX_PLAIN_BYTES, MAX_STORED_BYTES, Buffer, Digest

TAG_BYTES: Final = 16
_ZERO_NONCE: Final = bytes(12)


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """Everything needed to fetch, verify and open one chunk. `repr()` hides the key."""

    digest: Digest
    """BLAKE3-256 of the stored bytes."""
    key: bytes | None = field(repr=False)
    """32 bytes; None for a public chunk."""
    codec: Codec
    size: int
    """Stored bytes."""
    plain_size: int
    """Bytes after unsealing and decompression."""


@dataclass(frozen=True, slots=True)
class SealedChunk:
    """A chunk ready to be stored: `data` is `ref.size` bytes named by `ref.digest`."""

    ref: ChunkRef
    data: Buffer = field(repr=False)


class Sealer:
    """Turns plaintext into sealed chunks. Safe for many threads at once.

    Hashing, zstd and (from cryptography 50 on) AES release the GIL, so worker threads run in
    parallel.

    Args:
        secret: the mesh's 32-byte convergence secret; None leaves chunks public (no key).
        compression: see `Compressor`.
        level: zstd level, 1 to 19.

    Raises:
        UsageError: unknown compression mode or level.
    """

    def __init__(
        self,
        secret: bytes | None,
        compression: CompressionMode = "auto",
        level: int = DEFAULT_LEVEL,
    ) -> None:
        if secret is not None and len(secret) != KEY_BYTES:
            raise ValueError(f"a convergence secret has {KEY_BYTES} bytes, not {len(secret)}")
        self._secret = secret
        self.compressor: Final = Compressor(compression, level)

    @property
    def public(self) -> bool:
        """Whether the chunks it makes can be read by everyone who holds them."""
        return self._secret is None

    @property
    def overhead(self) -> int:
        """Bytes that sealing adds to one chunk."""
        return 0 if self.public else TAG_BYTES

    def seal(self, plain: Buffer) -> SealedChunk:
        """Compress when it pays, then seal.

        Args:
            plain: 1 to `MAX_PLAIN_BYTES` contiguous bytes.
        """
        size = memoryview(plain).nbytes
        _check_plain_size(size)
        codec, payload = self.compressor.compress(plain)
        return self._seal(codec, _frozen(payload), size)

    def seal_own(self, plain: memoryview, out: memoryview | None = None) -> SealedChunk:
        """As `seal`, for memory that nobody else can change before this returns: no copy is made.

        Args:
            plain: 1 to `MAX_PLAIN_BYTES` contiguous bytes.
            out: where to put the stored bytes, with room for `plain` and the overhead; the chunk's
                `data` is the part of it that was filled. None: they get memory of their own.
        """
        _check_plain_size(plain.nbytes)
        codec, payload = self.compressor.compress(plain)
        return self._seal(codec, payload, plain.nbytes, out)

    def seal_as_is(self, plain: Buffer) -> SealedChunk:
        """Seal without compressing: for bytes that say themselves how they are compressed."""
        size = memoryview(plain).nbytes
        _check_plain_size(size)
        return self._seal(Codec.RAW, _frozen(plain), size)

    def _seal(
        self, codec: Codec, message: Buffer, plain_size: int, out: memoryview | None = None
    ) -> SealedChunk:
        key = None if self._secret is None else derive_key(self._secret, message)
        data: Buffer
        if out is not None:
            data = out[: len(message) + self.overhead]
            if key is None:
                data[:] = message
            else:
                AESGCM(key).encrypt_into(_ZERO_NONCE, message, None, data)
        elif key is None:
            data = bytes(message)
        else:
            data = AESGCM(key).encrypt(_ZERO_NONCE, message, None)
        digest = blake3(data).digest()
        return SealedChunk(ChunkRef(digest, key, codec, len(data), plain_size), data)


def derive_key(secret: bytes, message: Buffer) -> bytes:
    """The 32-byte key for exactly these bytes in the mesh with this convergence secret."""
    return blake3(blake3(message).digest(), key=secret).digest()


def open_chunk(
    ref: ChunkRef, stored: Buffer, *, verified: bool = False, memory: memoryview | None = None
) -> Buffer:
    """The plaintext of a chunk, `ref.plain_size` bytes.

    Args:
        ref: where the chunk is described; not trusted for allocation beyond `MAX_PLAIN_BYTES`.
        stored: the bytes as they travelled.
        verified: True only if this process has just compared these bytes with `ref.digest`;
            saves hashing them a second time.
        memory: may be used for the result, if it is not smaller than `stored`, which it must not
            overlap. New pages for every chunk cost as much as a part of its decryption.

    Raises:
        IntegrityError: `stored` is not what the digest names.
        WrongKeyError: the digest is right, and the key does not open it.
        FormatError: opened, and not what the reference says (codec, size).
    """
    size = memoryview(stored).nbytes
    if not (0 < ref.plain_size <= MAX_PLAIN_BYTES and 0 < ref.size <= MAX_STORED_BYTES):
        raise FormatError(f"{_name(ref.digest)} is described with an impossible size.")
    if size != ref.size:
        raise IntegrityError(
            f"{_name(ref.digest)} should have {ref.size} bytes stored and has {size}."
        )
    if not verified and blake3(stored).digest() != ref.digest:
        raise IntegrityError(f"The bytes of {_name(ref.digest)} do not match its digest.")
    payload: Buffer
    if ref.key is None:
        payload = stored
    elif memory is None or len(memory) < size:
        payload = unseal(ref.digest, ref.key, stored)
    else:
        payload = _unseal_into(ref.digest, ref.key, stored, memory)
    if ref.codec is Codec.ZSTD:
        return decompress(payload, ref.plain_size)
    if memoryview(payload).nbytes != ref.plain_size:
        raise FormatError(f"{_name(ref.digest)} does not hold the {ref.plain_size} bytes it should")
    return payload


def unseal(digest: Digest, key: bytes, stored: Buffer) -> bytes:
    """Undo the seal alone. `digest` names the chunk in the error.

    Raises:
        WrongKeyError: the key does not open these bytes.
    """
    cipher = _cipher(digest, key, stored)
    try:
        return cipher.decrypt(_ZERO_NONCE, stored, None)
    except InvalidTag as error:
        raise _wrong_key(digest) from error


def _unseal_into(digest: Digest, key: bytes, stored: Buffer, memory: memoryview) -> memoryview:
    """As `unseal`, into the beginning of `memory`, which is returned."""
    cipher = _cipher(digest, key, stored)
    plain = memory[: memoryview(stored).nbytes - TAG_BYTES]
    try:
        cipher.decrypt_into(_ZERO_NONCE, stored, None, plain)
    except InvalidTag as error:
        raise _wrong_key(digest) from error
    return plain


def _cipher(digest: Digest, key: bytes, stored: Buffer) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise WrongKeyError(f"The key for {_name(digest)} has {len(key)} bytes, not {KEY_BYTES}.")
    if memoryview(stored).nbytes < TAG_BYTES:
        raise WrongKeyError(f"{_name(digest)} is too short to be sealed, yet has a key.")
    return AESGCM(key)


def _wrong_key(digest: Digest) -> WrongKeyError:
    return WrongKeyError(
        f"{_name(digest)} is intact, but this key does not open it.",
        hint="The link is mistyped after '#', or belongs to other content.",
    )


def _frozen(payload: Buffer) -> Buffer:
    """The payload as memory nobody else can change; no copy when it is already so.

    Otherwise a writer (another thread, or another process for a mapped file) could change it
    between hashing and encryption, and one key would meet two messages. The copy costs 3 %.
    """
    owner = payload.obj if isinstance(payload, memoryview) else payload
    return payload if isinstance(owner, bytes) else bytes(payload)


def _check_plain_size(size: int) -> None:
    if not 0 < size <= MAX_PLAIN_BYTES:
        raise ValueError(f"a chunk holds 1 to {MAX_PLAIN_BYTES} bytes, not {size}")


def _name(digest: Digest) -> str:
    return f"Chunk {encode_cid(digest)}"
