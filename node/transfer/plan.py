"""From a manifest to what must be written where, or read in which order: pure decisions.

A manifest that `content` decoded is sound: no path leaves the root, none lies below a file or a
symlink, none is there twice, slices lie inside their chunks and add up to sizes. Nothing of that is
checked again here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import NotFoundError
from ..content import ChunkRef, DirectoryManifest, Entry, FileManifest, Manifest, Slice


@dataclass(frozen=True, slots=True)
class TargetFile:
    """One file to write. `path` is relative to the root of the tree, b"" for a file alone."""

    path: bytes
    size: int
    digest: bytes
    mode: int
    mtime_ns: int
    pieces: int
    """How many slices it has."""


@dataclass(frozen=True, slots=True)
class TargetNode:
    """A folder (`target` None; path b"" is the root itself) or a symlink to make."""

    path: bytes
    mode: int
    mtime_ns: int
    target: bytes | None


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes of an opened chunk that belong into a file. Offsets and lengths in bytes."""

    file: int
    """Index into `GetPlan.files`."""
    piece: int
    """Which of the file's slices this is, in file order."""
    file_offset: int
    chunk_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class GetPlan:
    """Everything a get does, decided before its first byte."""

    is_tree: bool
    files: Sequence[TargetFile]
    folders: Sequence[TargetNode]
    symlinks: Sequence[TargetNode]
    chunks: Sequence[ChunkRef]
    """Chunks needed, each once, in the order their first bytes are needed."""
    writes: Sequence[Sequence[Write]]
    """For each of `chunks`, all places its bytes go to."""
    total_bytes: int


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """A byte range of one file, in order, for streaming."""

    parts: Sequence[tuple[ChunkRef, int, int]]
    """(chunk, offset in the opened chunk, length), in file order."""
    total_bytes: int
    digest: bytes | None
    """Of the whole file, when the range is the whole file."""


class _Builder:
    """Collects chunks in order of first use."""

    def __init__(self, table: Sequence[ChunkRef]) -> None:
        self._table = table
        self._position: dict[int, int] = {}
        self.chunks: list[ChunkRef] = []
        self.writes: list[list[Write]] = []
        self.files: list[TargetFile] = []
        self.total = 0

    def add(
        self,
        path: bytes,
        size: int,
        digest: bytes,
        mode: int,
        mtime_ns: int,
        slices: Sequence[Slice],
    ) -> None:
        index, offset = len(self.files), 0
        for piece, part in enumerate(slices):
            position = self._position.get(part.chunk)
            if position is None:
                position = self._position[part.chunk] = len(self.chunks)
                self.chunks.append(self._table[part.chunk])
                self.writes.append([])
            self.writes[position].append(Write(index, piece, offset, part.offset, part.length))
            offset += part.length
        self.files.append(TargetFile(path, size, digest, mode, mtime_ns, len(slices)))
        self.total += size


def plan_get(manifest: Manifest, path: bytes | None = None) -> GetPlan:
    """What to write for the whole manifest, or for the entry at `path` and what lies below it.

    Raises:
        NotFoundError: no such path in it.
    """
    build = _Builder(manifest.chunks)
    if isinstance(manifest, FileManifest):
        if path:
            raise NotFoundError(f"{_show(path)} is not in this link: it is a single file.")
        build.add(
            b"", manifest.size, manifest.digest, manifest.mode, manifest.mtime_ns, manifest.slices
        )
        return _finish(build, is_tree=False, folders=[], symlinks=[])
    entries = manifest.entries if not path else _below(manifest.entries, path)
    if path and len(entries) == 1 and entries[0].path == path and entries[0].kind != "dir":
        return _plan_single(build, entries[0])
    skip = len(path) + 1 if path else 0
    folders: list[TargetNode] = []
    symlinks: list[TargetNode] = []
    for entry in entries:
        relative = entry.path[skip:]
        if entry.kind == "file":
            build.add(relative, entry.size, entry.digest, entry.mode, entry.mtime_ns, entry.slices)
        elif entry.kind == "dir":
            folders.append(TargetNode(relative, entry.mode, entry.mtime_ns, None))
        else:
            symlinks.append(TargetNode(relative, entry.mode, entry.mtime_ns, entry.target))
    return _finish(build, is_tree=True, folders=folders, symlinks=symlinks)


def _plan_single(build: _Builder, entry: Entry) -> GetPlan:
    if entry.kind == "symlink":
        node = TargetNode(b"", entry.mode, entry.mtime_ns, entry.target)
        return _finish(build, is_tree=False, folders=[], symlinks=[node])
    build.add(b"", entry.size, entry.digest, entry.mode, entry.mtime_ns, entry.slices)
    return _finish(build, is_tree=False, folders=[], symlinks=[])


def _finish(
    build: _Builder, *, is_tree: bool, folders: list[TargetNode], symlinks: list[TargetNode]
) -> GetPlan:
    return GetPlan(is_tree, build.files, folders, symlinks, build.chunks, build.writes, build.total)


def folders_of(plan: GetPlan) -> set[bytes]:
    """Paths of all folders to make below the root: those of the plan, and those above its files."""
    needed = {folder.path for folder in plan.folders if folder.path}
    paths = [file.path for file in plan.files]
    paths += [node.path for node in (*plan.symlinks, *plan.folders)]
    for path in paths:
        parent = path.rpartition(b"/")[0]
        while parent and parent not in needed:
            needed.add(parent)
            parent = parent.rpartition(b"/")[0]
    return needed


def plan_read(
    manifest: Manifest, path: bytes | None, offset: int = 0, length: int | None = None
) -> ReadPlan:
    """The parts of a file that make up `length` bytes from `offset`; what lies past the end of
    the file is left out.

    Raises:
        NotFoundError: no such file in it.
    """
    if isinstance(manifest, FileManifest):
        if path:
            raise NotFoundError(f"{_show(path)} is not in this link: it is a single file.")
        size, digest, slices = manifest.size, manifest.digest, manifest.slices
    else:
        entry = _file_at(manifest, path)
        size, digest, slices = entry.size, entry.digest, entry.slices
    end = size if length is None else min(size, offset + length)
    parts: list[tuple[ChunkRef, int, int]] = []
    at = total = 0
    for part in slices:
        start, stop = max(offset, at), min(end, at + part.length)
        if start < stop:
            parts.append((manifest.chunks[part.chunk], part.offset + start - at, stop - start))
            total += stop - start
        at += part.length
    return ReadPlan(parts, total, digest if total == size else None)


def _file_at(manifest: DirectoryManifest, path: bytes | None) -> Entry:
    if not path:
        raise NotFoundError(
            "The link is a folder; only a file in it can be read as bytes.",
            hint="Name one with its path inside the folder; `meshnode ls LINK` lists them.",
        )
    for entry in manifest.entries:
        if entry.path == path:
            if entry.kind == "file":
                return entry
            raise NotFoundError(f"{_show(path)} in this link is a {entry.kind}, not a file.")
    raise _no_such_path(path)


def _below(entries: Sequence[Entry], path: bytes) -> list[Entry]:
    prefix = path + b"/"
    found = [e for e in entries if e.path == path or e.path.startswith(prefix)]
    if not found:
        raise _no_such_path(path)
    return found


def _no_such_path(path: bytes) -> NotFoundError:
    return NotFoundError(
        f"There is no {_show(path)} in this link.", hint="`meshnode ls LINK` lists what is in it."
    )


def _show(path: bytes) -> str:
    return repr(path.decode("utf-8", "backslashreplace"))
