"""Manifests as bytes: a sequence of msgpack objects, one spelling each.

The layout is specified in docs/formats.md. Two choices carry the bounds: chunk tables and slices
are packed records inside one msgpack `bin` (their count follows from its length), and entries are
objects of their own after the header (so no array header can announce more than it brings).
Decoding ends with encoding again: other bytes for the same manifest are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from itertools import chain, starmap
from typing import Any, Final

import msgpack

from ...errors import FormatError
from .canonical import check, check_chunks, check_count
from .compression import Codec
from .limits import MAX_CHUNKS, MAX_ENTRIES, MAX_SLICES, MAX_TREE_DEPTH, Buffer
from .manifest import DirectoryManifest, Entry, FileManifest, Manifest, Slice
from .paths import shown
from .sealing import ChunkRef


class BodyKind(IntEnum):
    """What a body describes; stands in the envelope around it."""

    FILE = 1
    DIRECTORY = 2
    CHUNK_LIST = 3


_SEALED_ROW: Final = struct.Struct(">32s32sBII")
_PUBLIC_ROW: Final = struct.Struct(">32sBII")
_SLICE: Final = struct.Struct(">III")

_FILE_FIELDS: Final = (bytes, int, bytes, int, int, str, str, int, bytes, bytes)
_DIRECTORY_FIELDS: Final = (bytes, int, int, bytes)
_LIST_FIELDS: Final = (int, int, int, int, bytes)
_ENTRY_FIELDS: Final = {
    1: (int, bytes, int, int, int, bytes, str, bytes),
    2: (int, bytes, int, int),
    3: (int, bytes, int, int, bytes),
}
_MAX_FIELDS: Final = len(_FILE_FIELDS)

Parsed = tuple[Any, ...]
"""A row whose types have been compared with one of the tuples above."""


def body_kind(manifest: Manifest) -> BodyKind:
    return BodyKind.FILE if isinstance(manifest, FileManifest) else BodyKind.DIRECTORY


def encode_body(manifest: Manifest) -> bytes:
    """Encode a manifest that is canonical already (see `canonical`)."""
    if isinstance(manifest, FileManifest):
        return _pack_all([_file_row(manifest)])
    header = (manifest.name, len(manifest.entries), *_pack_table(manifest.chunks))
    return _pack_all(chain([header], map(_entry_row, manifest.entries)))


def decode_body(kind: BodyKind, body: Buffer) -> Manifest:
    """Decode and check a manifest.

    Raises:
        FormatError: `body` is not the canonical encoding of a sound manifest of this kind.
    """
    reader = _Reader(body)
    if kind is BodyKind.FILE:
        manifest: Manifest = _parse_file(reader.row(_FILE_FIELDS))
    elif kind is BodyKind.DIRECTORY:
        manifest = _parse_directory(reader)
    else:
        raise FormatError("A chunk list stands where a manifest belongs.")
    check(manifest)
    if encode_body(manifest) != body:
        raise FormatError("A manifest is not in its canonical encoding, or has bytes behind it.")
    return manifest


def encode_list(depth: int, kind: BodyKind, manifest_size: int, refs: Sequence[ChunkRef]) -> bytes:
    """Encode one level of a manifest tree; see `tree.ChunkList` for the fields."""
    return _pack_all([(depth, int(kind), manifest_size, *_pack_table(refs))])


def decode_list(body: Buffer) -> tuple[int, BodyKind, int, tuple[ChunkRef, ...]]:
    """Decode and check one level of a manifest tree: depth, kind, manifest size, chunks.

    Raises:
        FormatError: not the canonical encoding of a sound list.
    """
    reader = _Reader(body)
    depth, kind, manifest_size, sealed, table = reader.row(_LIST_FIELDS)
    refs = _parse_table(sealed, table)
    check_list_chunks(refs)
    if kind not in (BodyKind.FILE, BodyKind.DIRECTORY) or not 1 <= depth <= MAX_TREE_DEPTH:
        raise FormatError("A manifest's chunk list has an impossible kind or depth.")
    if encode_list(depth, BodyKind(kind), manifest_size, refs) != body:
        raise FormatError("A manifest's chunk list is not in its canonical encoding.")
    return depth, BodyKind(kind), manifest_size, refs


def check_list_chunks(refs: Sequence[ChunkRef]) -> None:
    """As `check_chunks`, but the same chunk may come again: equal pieces of a manifest do."""
    check_chunks(tuple(dict.fromkeys(refs)))


# --- writing ----------------------------------------------------------------------------------


def _pack_all(rows: Iterable[Parsed]) -> bytes:
    packer = msgpack.Packer(use_bin_type=True, autoreset=False)
    for row in rows:
        packer.pack(row)
    return bytes(packer.bytes())


def _file_row(manifest: FileManifest) -> Parsed:
    return (
        manifest.name,
        manifest.size,
        manifest.digest,
        manifest.mode,
        manifest.mtime_ns,
        manifest.media_type,
        manifest.profile,
        *_pack_table(manifest.chunks),
        _pack_slices(manifest.slices),
    )


def _entry_row(entry: Entry) -> Parsed:
    if entry.kind == "file":
        return (
            1,
            entry.path,
            entry.mode,
            entry.mtime_ns,
            entry.size,
            entry.digest,
            entry.media_type,
            _pack_slices(entry.slices),
        )
    if entry.kind == "dir":
        return (2, entry.path, entry.mode, entry.mtime_ns)
    return (3, entry.path, entry.mode, entry.mtime_ns, entry.target)


def _pack_table(refs: Sequence[ChunkRef]) -> tuple[int, bytes]:
    if not refs or refs[0].key is None:
        pack = _PUBLIC_ROW.pack
        return 0, b"".join(pack(ref.digest, ref.codec, ref.size, ref.plain_size) for ref in refs)
    pack = _SEALED_ROW.pack
    return 1, b"".join(
        pack(ref.digest, ref.key, ref.codec, ref.size, ref.plain_size) for ref in refs
    )


def _pack_slices(slices: Sequence[Slice]) -> bytes:
    pack = _SLICE.pack
    return b"".join([pack(part.chunk, part.offset, part.length) for part in slices])


# --- reading ----------------------------------------------------------------------------------


class _Reader:
    """msgpack objects from one buffer; allocates no more than the buffer's own size allows."""

    def __init__(self, body: Buffer) -> None:
        size = len(body)
        self._unpacker = msgpack.Unpacker(
            raw=False,
            use_list=False,
            max_buffer_size=size,
            max_bin_len=size,
            max_str_len=size,
            max_array_len=_MAX_FIELDS,
            max_map_len=0,
            max_ext_len=0,
        )
        self._unpacker.feed(body)

    def row(self, types: tuple[type, ...]) -> Parsed:
        """The next object, which must be an array of exactly these types (bool is no int)."""
        row = self.any_row()
        if tuple(map(type, row)) != types:
            raise FormatError("A manifest has fields of the wrong types.")
        return row

    def any_row(self) -> Parsed:
        """The next object, which must be an array."""
        try:
            row = self._unpacker.unpack()
        except (ValueError, msgpack.UnpackException) as error:
            # Only the error's type: a UnicodeDecodeError carries, and would print, the whole text.
            why = type(error).__name__
            raise FormatError(f"A manifest is not the msgpack it should be ({why}).") from error
        if not isinstance(row, tuple):
            raise FormatError("A manifest has something else where an array belongs.")
        return row


def _parse_file(row: Parsed) -> FileManifest:
    name, size, digest, mode, mtime_ns, media_type, profile, sealed, table, slices = row
    chunks, parts = _parse_table(sealed, table), _parse_slices(slices)
    return FileManifest(name, size, digest, mode, mtime_ns, media_type, profile, chunks, parts)


def _parse_directory(reader: _Reader) -> DirectoryManifest:
    name, count, sealed, table = reader.row(_DIRECTORY_FIELDS)
    chunks = _parse_table(sealed, table)
    check_count(count, MAX_ENTRIES, "entries")
    entries = []
    slices = 0
    for _ in range(count):
        entry = _parse_entry(reader.any_row())
        entries.append(entry)
        slices += len(entry.slices)
        # Here and not only in `check`: a slice in memory is many times larger than its bytes.
        check_count(slices, MAX_SLICES, "slices")
    return DirectoryManifest(name, chunks, tuple(entries))


def _parse_entry(row: Parsed) -> Entry:
    types = _ENTRY_FIELDS.get(row[0]) if row and type(row[0]) is int else None
    if types is None or tuple(map(type, row)) != types:
        raise FormatError("An entry of a folder has fields of the wrong types.")
    if row[0] == 1:
        _, path, mode, mtime_ns, size, digest, media_type, slices = row
        parts = _parse_slices(slices)
        return Entry(path, "file", mode, mtime_ns, size, digest, media_type, parts)
    if row[0] == 2:
        return Entry(row[1], "dir", row[2], row[3])
    _, path, mode, mtime_ns, target = row
    if not target:
        raise FormatError(f"The symlink {shown(path)} has no target.")
    return Entry(path, "symlink", mode, mtime_ns, target=target)


def _parse_table(sealed: int, table: bytes) -> tuple[ChunkRef, ...]:
    if sealed not in (0, 1):
        raise FormatError("A chunk table is neither sealed nor public.")
    row = _SEALED_ROW if sealed else _PUBLIC_ROW
    if len(table) % row.size:
        raise FormatError("A chunk table ends inside a row.")
    check_count(len(table) // row.size, MAX_CHUNKS, "chunks")
    try:
        if sealed:
            return tuple(
                ChunkRef(digest, key, Codec(codec), size, plain_size)
                for digest, key, codec, size, plain_size in row.iter_unpack(table)
            )
        return tuple(
            ChunkRef(digest, None, Codec(codec), size, plain_size)
            for digest, codec, size, plain_size in row.iter_unpack(table)
        )
    except ValueError as error:
        raise FormatError(
            "A chunk is compressed in a way this version does not know.",
            hint="Update meshnode and try again.",
        ) from error


def _parse_slices(packed: bytes) -> tuple[Slice, ...]:
    if len(packed) % _SLICE.size:
        raise FormatError("A list of slices ends inside a slice.")
    check_count(len(packed) // _SLICE.size, MAX_SLICES, "slices")
    return tuple(starmap(Slice, _SLICE.iter_unpack(packed)))
