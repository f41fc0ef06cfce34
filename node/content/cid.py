"""Chunk names for the outside: CIDv1, codec `raw`, multihash `blake3`, in base32.

Sources: the CIDv1 and multibase specifications; the multicodec table (raw 0x55, blake3 0x1e);
RFC 4648 base32 without padding, in lower case as multibase prefix `b` says. One digest has exactly
one spelling: upper case, padding and stray trailing bits are refused, so CIDs compare as text.
"""

from __future__ import annotations

import base64
from typing import Final

from ...errors import LinkError
from .limits import DIGEST_BYTES, Digest

_PREFIX: Final = bytes((0x01, 0x55, 0x1E, DIGEST_BYTES))
_ALPHABET: Final = frozenset("abcdefghijklmnopqrstuvwxyz234567")
CID_CHARS: Final = 59
_PADDING: Final = "======"  # 58 base32 characters lack six of the next multiple of eight


def encode_cid(digest: Digest) -> str:
    """The CID of a chunk: 59 characters, `b` first.

    Args:
        digest: 32 bytes, BLAKE3-256 of the stored bytes.
    """
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"a digest has {DIGEST_BYTES} bytes, not {len(digest)}")
    return "b" + base64.b32encode(_PREFIX + digest).decode("ascii").rstrip("=").lower()


def decode_cid(text: str) -> Digest:
    """The 32-byte digest a CID names.

    Raises:
        LinkError: not the CID of a meshnode chunk, or not in its one spelling.
    """
    # No more than a CID is long: what follows may be a key whose '#' got lost.
    shown = text if len(text) <= CID_CHARS else text[:CID_CHARS] + "..."
    if not text.startswith("b"):
        why = "is in upper case" if text.startswith("B") else "does not begin with 'b' (base32)"
        raise LinkError(f"{shown!r} is not a content id: it {why}.", hint=_HINT)
    stray = next((char for char in text if char not in _ALPHABET), None)
    if stray is not None:
        raise LinkError(f"{shown!r} is not a content id: {stray!r} is not base32.", hint=_HINT)
    if len(text) != CID_CHARS:
        why = "cut short" if len(text) < CID_CHARS else "too long"
        raise LinkError(
            f"{shown!r} is {why}: a content id has {CID_CHARS} characters, this has {len(text)}.",
            hint=_HINT,
        )
    raw = base64.b32decode(text[1:].upper() + _PADDING)
    if not raw.startswith(_PREFIX):
        raise LinkError(
            f"{shown!r} is a content id of another kind (not raw, BLAKE3-256).", hint=_HINT
        )
    digest = raw[len(_PREFIX) :]
    if encode_cid(digest) != text:
        raise LinkError(f"{shown!r} is mistyped: its last character is impossible.", hint=_HINT)
    return digest


_HINT: Final = "Copy it again, whole, as `put` printed it."
