"""From files read and sealed to a manifest: pure."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Sequence

from ..content import ChunkTable, DirectoryManifest, Entry, FileManifest, Slice
from .reading import Draft
from .source import FoundNode

# The built-in table alone: the machine's own (/etc/mime.types) would give the same file another
# root on another machine.
_MEDIA_TYPES = mimetypes.MimeTypes()
_MEDIA_TYPE_OF_ENCODING = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
    "br": "application/x-brotli",
}
_UNKNOWN = "application/octet-stream"


def media_type_of(path: bytes) -> str:
    """By extension; `application/octet-stream` when it says nothing."""
    name = os.fsdecode(path.rpartition(b"/")[2])
    media_type, encoding = _MEDIA_TYPES.guess_type(f"file:{name}", strict=False)
    if encoding is not None:
        return _MEDIA_TYPE_OF_ENCODING.get(encoding, _UNKNOWN)
    return media_type or _UNKNOWN


def file_manifest(name: bytes, draft: Draft, profile: str) -> FileManifest:
    """The manifest of one file; its name decides the media type."""
    table = ChunkTable()
    slices = _slices(draft, table)
    return FileManifest(
        name=name,
        size=draft.size,
        digest=draft.digest,
        mode=draft.mode,
        mtime_ns=draft.mtime_ns,
        media_type=media_type_of(name),
        profile=profile,
        chunks=table.refs,
        slices=slices,
    )


def directory_manifest(
    name: bytes, drafts: Sequence[Draft], nodes: Sequence[FoundNode]
) -> DirectoryManifest:
    """The manifest of a folder."""
    table = ChunkTable()
    entries = [
        Entry(
            path=draft.path,
            kind="file",
            mode=draft.mode,
            mtime_ns=draft.mtime_ns,
            size=draft.size,
            digest=draft.digest,
            media_type=media_type_of(draft.path),
            slices=_slices(draft, table),
        )
        for draft in sorted(drafts, key=lambda draft: draft.path)
    ]
    for node in nodes:
        if node.target is None:
            entries.append(Entry(node.path, "dir", node.mode, node.mtime_ns))
        else:
            entries.append(
                Entry(node.path, "symlink", node.mode, node.mtime_ns, target=node.target)
            )
    return DirectoryManifest(name, table.refs, tuple(entries))


def _slices(draft: Draft, table: ChunkTable) -> tuple[Slice, ...]:
    if draft.slot is not None:
        slot = draft.slot
        return (Slice(table.add(slot.ref), slot.offset, slot.length),)
    slices = []
    for ref in draft.refs:
        assert ref is not None, "a file is finished before all its pieces are sealed"
        slices.append(Slice(table.add(ref), 0, ref.plain_size))
    return tuple(slices)
