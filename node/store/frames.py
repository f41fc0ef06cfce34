"""The bytes of a segment file: its header and its framed entries. Pure code, no I/O.

A segment is one 48-byte header and then entries, each a 48-byte header, the payload, and zero
padding to a multiple of 8. All integers are little-endian. `docs/store.md` has the table of bytes.

The CRC of an entry header starts from a seed made of the store's random id and the segment number.
Whoever chooses a chunk's bytes (any peer) does not know that id, so a chunk cannot carry a forged
entry that a scan for lost entries would take for one of ours.
"""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass

from .protocol import MAX_CHUNK_BYTES, Digest

SEGMENT_VERSION = 1
STORE_ID_BYTES = 16
HEADER_BYTES = 48
"""Of a segment and of an entry alike."""
ALIGNMENT = 8

ENTRY_MAGIC = b"\xabMNe"
_SEGMENT_MAGIC = b"\xabMNseg\r\n"
_ENTRY_VERSION = 1
_NO_DIGEST = bytes(32)

# magic, version, kind, flags, length, digest, crc
_ENTRY = struct.Struct("<4sBBHI32sI")
# magic, version, segment number, store id, zeros, crc
_SEGMENT = struct.Struct("<8sII16s12sI")
_CRC = struct.Struct("<I")


class Kind(enum.IntEnum):
    """What an entry says."""

    CHUNK = 1
    """Here are the bytes of this digest."""
    TOMBSTONE = 2
    """All earlier entries of this digest are void (deleted or quarantined)."""
    SEAL = 3
    """Everything before is durable and nothing follows: the segment is full."""


@dataclass(frozen=True, slots=True)
class EntryHeader:
    kind: Kind
    digest: Digest
    length: int
    """Payload bytes; 0 for everything but chunks."""


def frame_bytes(length: int) -> int:
    """What a payload of `length` bytes takes on disk: header, payload, padding."""
    return HEADER_BYTES + length + padding_bytes(length)


def padding_bytes(length: int) -> int:
    return -length % ALIGNMENT


def entry_seed(store_id: bytes, segment: int) -> int:
    """Where the CRC of entry headers in this segment starts from."""
    return zlib.crc32(store_id + segment.to_bytes(8, "little"))


def encode_entry(header: EntryHeader, seed: int) -> bytes:
    body = _ENTRY.pack(
        ENTRY_MAGIC, _ENTRY_VERSION, header.kind, 0, header.length, header.digest, 0
    )[: -_CRC.size]
    return body + _CRC.pack(zlib.crc32(body, seed))


def encode_seal(seed: int) -> bytes:
    return encode_entry(EntryHeader(Kind.SEAL, _NO_DIGEST, 0), seed)


def decode_entry(raw: bytes, seed: int) -> EntryHeader | None:
    """The header in the first 48 bytes of `raw`, or None when they are not one of ours.

    None rather than an error: a scan asks this of every place where an entry might begin.
    """
    if len(raw) < HEADER_BYTES or not raw.startswith(ENTRY_MAGIC):
        return None
    _, version, kind, flags, length, digest, crc = _ENTRY.unpack_from(raw)
    if zlib.crc32(raw[: HEADER_BYTES - _CRC.size], seed) != crc:
        return None
    if version != _ENTRY_VERSION or flags != 0 or kind not in Kind.__members__.values():
        return None
    if length > (MAX_CHUNK_BYTES if kind == Kind.CHUNK else 0):
        return None
    return EntryHeader(Kind(kind), digest, length)


def encode_segment_header(store_id: bytes, segment: int) -> bytes:
    body = _SEGMENT.pack(_SEGMENT_MAGIC, SEGMENT_VERSION, segment, store_id, bytes(12), 0)[
        : -_CRC.size
    ]
    return body + _CRC.pack(zlib.crc32(body))


def decode_segment_header(raw: bytes) -> tuple[bytes, int] | None:
    """(store id, segment number), or None when `raw` is no sound header of this version."""
    if len(raw) < HEADER_BYTES:
        return None
    magic, version, segment, store_id, _, crc = _SEGMENT.unpack_from(raw)
    if magic != _SEGMENT_MAGIC or version != SEGMENT_VERSION:
        return None
    if zlib.crc32(raw[: HEADER_BYTES - _CRC.size]) != crc:
        return None
    return store_id, segment
