"""What a link leads to: the description of one file or of a folder.

A file's content is a list of slices of chunks, in order. The chunks stand once in a table beside
them, so thousands of small files that share chunks stay compact. All sizes in bytes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ...errors import NotFoundError
from .limits import Digest
from .paths import leads_outside, shown
from .sealing import ChunkRef

EntryKind = Literal["file", "dir", "symlink"]


@dataclass(frozen=True, slots=True)
class Slice:
    """`length` plaintext bytes from `offset` of the chunk at index `chunk` of the table."""

    chunk: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class FileManifest:
    """One file.

    `digest` is BLAKE3-256 of the whole plaintext; `mode` has permission bits only (0o7777);
    `mtime_ns` may be negative; `profile` is `str()` of the `ChunkerProfile` that cut the file,
    empty when none did; an empty file has no chunks and no slices.
    """

    name: bytes
    size: int
    digest: Digest
    mode: int
    mtime_ns: int
    media_type: str
    profile: str
    chunks: tuple[ChunkRef, ...]
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a folder, relative to its root.

    Only files have `size`, `digest` (of the whole plaintext), `media_type` and `slices`; only
    symlinks have a `target` (bytes as the file system had them).
    """

    path: bytes
    kind: EntryKind
    mode: int
    mtime_ns: int
    size: int = 0
    digest: Digest = b""
    media_type: str = ""
    slices: tuple[Slice, ...] = ()
    target: bytes = b""


@dataclass(frozen=True, slots=True)
class DirectoryManifest:
    """A folder: its entries sorted by path (bytewise), over one table of chunks.

    Folders that only contain something need no entry of their own.
    """

    name: bytes
    chunks: tuple[ChunkRef, ...]
    entries: tuple[Entry, ...]


Manifest = FileManifest | DirectoryManifest


class ChunkTable:
    """Collects the chunks of a manifest; the same chunk twice is one row."""

    def __init__(self) -> None:
        self._rows: dict[ChunkRef, int] = {}

    def add(self, ref: ChunkRef) -> int:
        """The index of `ref` in the table, for `Slice.chunk`."""
        return self._rows.setdefault(ref, len(self._rows))

    @property
    def refs(self) -> tuple[ChunkRef, ...]:
        return tuple(self._rows)


def extract_entry(manifest: DirectoryManifest, path: bytes) -> tuple[Entry, tuple[ChunkRef, ...]]:
    """One entry of a folder with just the chunks it needs; its slices index those.

    The chunks may hold other files too (packs), and a chunk's key opens all of it: seal the
    content anew (`file_manifest_of`) before giving away a link to the single file.

    Raises:
        NotFoundError: no such path.
    """
    entry = next((entry for entry in manifest.entries if entry.path == path), None)
    if entry is None:
        raise NotFoundError(
            f"{shown(path)} is not in {shown(manifest.name)}.", hint=_nearest(manifest, path)
        )
    table = ChunkTable()
    slices = tuple(
        replace(part, chunk=table.add(manifest.chunks[part.chunk])) for part in entry.slices
    )
    return replace(entry, slices=slices), table.refs


def file_manifest_of(
    entry: Entry, profile: str, chunks: Sequence[ChunkRef], slices: Iterable[Slice]
) -> FileManifest:
    """The manifest of a single file whose content was sealed anew into `chunks`."""
    if entry.kind != "file":
        raise ValueError(f"{shown(entry.path)} is a {entry.kind}, not a file")
    return FileManifest(
        name=entry.path.rpartition(b"/")[2],
        size=entry.size,
        digest=entry.digest,
        mode=entry.mode,
        mtime_ns=entry.mtime_ns,
        media_type=entry.media_type,
        profile=profile,
        chunks=tuple(chunks),
        slices=tuple(slices),
    )


def symlinks_leaving(manifest: DirectoryManifest) -> frozenset[bytes]:
    """Paths of the symlinks whose target lies outside the tree (or cannot be told to lie inside).

    A writer should not follow these, nor create them without being asked to.
    """
    links = {entry.path: entry.target for entry in manifest.entries if entry.kind == "symlink"}
    return frozenset(path for path in links if leads_outside(links, path))


def _nearest(manifest: DirectoryManifest, path: bytes) -> str:
    names = [entry.path.decode("utf-8", "backslashreplace") for entry in manifest.entries[:2000]]
    near = difflib.get_close_matches(path[:200].decode("utf-8", "backslashreplace"), names, 1)
    return f"Did you mean {near[0]!r}?" if near else ""
