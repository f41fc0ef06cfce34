"""Content: cutting files into chunks, sealing them, and the manifests and links that name them.

Pure code over bytes. It must not know trio, files, sockets, peers or the store. The formats are
specified byte by byte in docs/formats.md; every decoder here bounds what it is given, and raises
nothing but `FormatError` (with `IntegrityError`, `WrongKeyError`) and `LinkError`.
"""

from __future__ import annotations

from .chunker import CHUNKER_KINDS, ChunkerKind, ChunkerProfile, cut
from .cid import decode_cid, encode_cid
from .compression import Codec, CompressionMode
from .limits import (
    MAX_MANIFEST_BYTES,
    MAX_PLAIN_BYTES,
    MAX_ROOT_BYTES,
    MAX_STORED_BYTES,
    Buffer,
    Digest,
)
from .link import Link
from .manifest import (
    ChunkTable,
    DirectoryManifest,
    Entry,
    EntryKind,
    FileManifest,
    Manifest,
    Slice,
    extract_entry,
    file_manifest_of,
    symlinks_leaving,
)
from .packer import SMALL_FILE_BYTES, Packer, PackSlot
from .sealing import ChunkRef, SealedChunk, Sealer, open_chunk
from .tree import ChunkList, EncodedManifest, TreeLayout, encode_manifest, open_root

__all__ = [
    "CHUNKER_KINDS",
    "MAX_MANIFEST_BYTES",
    "MAX_PLAIN_BYTES",
    "MAX_ROOT_BYTES",
    "MAX_STORED_BYTES",
    "SMALL_FILE_BYTES",
    "Buffer",
    "ChunkList",
    "ChunkRef",
    "ChunkTable",
    "ChunkerKind",
    "ChunkerProfile",
    "Codec",
    "CompressionMode",
    "Digest",
    "DirectoryManifest",
    "EncodedManifest",
    "Entry",
    "EntryKind",
    "FileManifest",
    "Link",
    "Manifest",
    "PackSlot",
    "Packer",
    "SealedChunk",
    "Sealer",
    "Slice",
    "TreeLayout",
    "cut",
    "decode_cid",
    "encode_cid",
    "encode_manifest",
    "extract_entry",
    "file_manifest_of",
    "open_chunk",
    "open_root",
    "symlinks_leaving",
]
