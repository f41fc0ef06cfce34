"""One spelling per manifest: bringing one into canonical order, and refusing any other.

Canonical: entries sorted by path; table rows in order of first use, each used, none twice;
everything within its bounds. Hence equal content gives equal bytes, whatever order it was put in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from ...errors import FormatError
from .compression import Codec
from .limits import (
    DIGEST_BYTES,
    KEY_BYTES,
    MAX_CHUNKS,
    MAX_ENTRIES,
    MAX_MEDIA_TYPE_CHARS,
    MAX_PATH_BYTES,
    MAX_PLAIN_BYTES,
    MAX_PROFILE_CHARS,
    MAX_SLICES,
    MAX_STORED_BYTES,
)
from .manifest import ChunkTable, DirectoryManifest, Entry, FileManifest, Manifest, Slice
from .paths import check_name, check_path, shown
from .sealing import TAG_BYTES, ChunkRef

_MAX_SIZE = 2**63 - 1


def canonical(manifest: Manifest) -> Manifest:
    """The same manifest in canonical order, checked.

    Raises:
        FormatError: it breaks a bound or contradicts itself.
    """
    if isinstance(manifest, FileManifest):
        chunks, moved = _first_use(manifest.chunks, manifest.slices)
        if chunks != manifest.chunks:
            slices = _moved(manifest.slices, moved)
            manifest = replace(manifest, chunks=chunks, slices=slices)
    else:
        entries = tuple(sorted(manifest.entries, key=lambda entry: entry.path))
        every = (part for entry in entries for part in entry.slices)
        chunks, moved = _first_use(manifest.chunks, every)
        if chunks != manifest.chunks:
            entries = tuple(
                replace(entry, slices=_moved(entry.slices, moved)) if entry.slices else entry
                for entry in entries
            )
        manifest = DirectoryManifest(manifest.name, chunks, entries)
    check(manifest)
    return manifest


def check(manifest: Manifest) -> None:
    """Check everything a canonical manifest promises.

    Raises:
        FormatError: says what is wrong, and with which entry.
    """
    check_name(manifest.name)
    check_chunks(manifest.chunks)
    used = _SliceCheck(manifest.chunks)
    if isinstance(manifest, FileManifest):
        check_count(len(manifest.slices), MAX_SLICES, "slices")
        _check_attributes(manifest.mode, manifest.mtime_ns, manifest.name)
        _check_content(manifest, manifest.name, used)
        if not _is_plain_text(manifest.profile, MAX_PROFILE_CHARS):
            raise FormatError("The manifest's chunker profile is not plain text.")
    else:
        check_count(len(manifest.entries), MAX_ENTRIES, "entries")
        check_count(sum(len(entry.slices) for entry in manifest.entries), MAX_SLICES, "slices")
        for entry in manifest.entries:
            _check_entry(entry, used)
        _check_tree(manifest.entries)
    used.finish()


def check_count(count: int, most: int, what: str) -> None:
    """Refuse a manifest of more than `most` parts.

    Raises:
        FormatError: there are more, or fewer than none.
    """
    if not 0 <= count <= most:
        raise FormatError(
            f"The manifest has {count} {what}; {most} is the most.",
            hint="Put the content in several parts.",
        )


def check_chunks(chunks: Sequence[ChunkRef]) -> None:
    """Check a table: sizes that can be, all sealed or all public, no row twice.

    Raises:
        FormatError: otherwise.
    """
    check_count(len(chunks), MAX_CHUNKS, "chunks")
    sealed = bool(chunks) and chunks[0].key is not None
    overhead = TAG_BYTES if sealed else 0
    for ref in chunks:
        if len(ref.digest) != DIGEST_BYTES or (ref.key is not None) is not sealed:
            raise FormatError("The chunk table mixes sealed and public chunks, or is damaged.")
        if ref.key is not None and len(ref.key) != KEY_BYTES:
            raise FormatError("A key in the chunk table has the wrong length.")
        payload = ref.size - overhead
        told = payload == ref.plain_size if ref.codec is Codec.RAW else payload < ref.plain_size
        if not (told and payload > 0 and ref.size <= MAX_STORED_BYTES):
            raise FormatError("The sizes of a chunk in the table cannot be.")
        if ref.plain_size > MAX_PLAIN_BYTES:
            raise FormatError(f"A chunk in the table is larger than {MAX_PLAIN_BYTES} bytes.")
    if len({(ref.digest, ref.codec) for ref in chunks}) != len(chunks):
        raise FormatError("The chunk table has a row twice.")


class _SliceCheck:
    """Checks slices against the table, in order; rows must come into use one after another."""

    def __init__(self, chunks: Sequence[ChunkRef]) -> None:
        self._sizes = [ref.plain_size for ref in chunks]
        self._used = 0

    def add(self, slices: Sequence[Slice], size: int, path: bytes) -> None:
        sizes, total = self._sizes, 0
        for part in slices:
            if not 0 <= part.chunk <= self._used or part.chunk >= len(sizes):
                raise FormatError(f"{shown(path)} names chunks out of order or out of the table.")
            if part.chunk == self._used:
                self._used += 1
            if part.offset < 0 or part.length < 1 or part.offset + part.length > sizes[part.chunk]:
                raise FormatError(f"{shown(path)} wants bytes that lie outside a chunk.")
            total += part.length
        if total != size:
            raise FormatError(f"{shown(path)} should have {size} bytes; its slices have {total}.")

    def finish(self) -> None:
        if self._used != len(self._sizes):
            raise FormatError("The chunk table has rows that no file uses.")


def _check_content(thing: FileManifest | Entry, path: bytes, used: _SliceCheck) -> None:
    if not 0 <= thing.size <= _MAX_SIZE or len(thing.digest) != DIGEST_BYTES:
        raise FormatError(f"{shown(path)} has an impossible size or digest.")
    if not _is_plain_text(thing.media_type, MAX_MEDIA_TYPE_CHARS):
        raise FormatError(f"The media type of {shown(path)} is not plain text.")
    used.add(thing.slices, thing.size, path)


def _check_entry(entry: Entry, used: _SliceCheck) -> None:
    check_path(entry.path)
    _check_attributes(entry.mode, entry.mtime_ns, entry.path)
    if entry.kind == "file":
        _check_content(entry, entry.path, used)
        if entry.target:
            raise FormatError(f"{shown(entry.path)} is a file and yet has a target.")
        return
    if entry.size or entry.digest or entry.media_type or entry.slices:
        raise FormatError(f"{shown(entry.path)} is a {entry.kind} and yet has content.")
    some = 1 if entry.kind == "symlink" else 0
    if not some <= len(entry.target) <= some * MAX_PATH_BYTES or b"\0" in entry.target:
        raise FormatError(f"The {entry.kind} {shown(entry.path)} has an impossible target.")


def _check_attributes(mode: int, mtime_ns: int, path: bytes) -> None:
    if not 0 <= mode <= 0o7777 or not -_MAX_SIZE <= mtime_ns <= _MAX_SIZE:
        raise FormatError(f"{shown(path)} has an impossible mode or time.")


def _check_tree(entries: Sequence[Entry]) -> None:
    """Paths strictly ascending, and nothing lies below a file or a symlink."""
    last = b""
    for entry in entries:
        if entry.path <= last:
            raise FormatError(f"{shown(entry.path)} comes twice or out of order.")
        last = entry.path
    # With the slash as the smallest byte, what lies below a path directly follows it. (Looking up
    # every folder above every path would cost a hostile manifest nothing, and us its square.)
    ordered = sorted((entry.path.replace(b"/", b"\0"), entry.kind) for entry in entries)
    for (above, kind), (path, _) in pairwise(ordered):
        if kind != "dir" and path.startswith(above + b"\0"):
            leaf = shown(above.replace(b"\0", b"/"))
            raise FormatError(f"{leaf} is both a folder and a {kind}.")


def _is_plain_text(text: str, most: int) -> bool:
    return len(text) <= most and text.isascii() and text.isprintable()


def _first_use(
    chunks: Sequence[ChunkRef], slices: Iterator[Slice] | Sequence[Slice]
) -> tuple[tuple[ChunkRef, ...], dict[int, int]]:
    """The table in order of first use, and where each old row went."""
    table = ChunkTable()
    moved: dict[int, int] = {}
    for part in slices:
        if part.chunk not in moved:
            if not 0 <= part.chunk < len(chunks):
                raise FormatError(f"A slice names chunk {part.chunk} of a table of {len(chunks)}.")
            moved[part.chunk] = table.add(chunks[part.chunk])
    return table.refs, moved


def _moved(slices: Sequence[Slice], moved: dict[int, int]) -> tuple[Slice, ...]:
    return tuple(Slice(moved[part.chunk], part.offset, part.length) for part in slices)
