"""What `ls` and `stat` show of a manifest. Pure code; paths are bytes, "/"-separated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ...errors import NotFoundError
from ..content import DirectoryManifest, Entry, FileManifest, encode_cid
from .text_paths import text_of_path

Manifest = FileManifest | DirectoryManifest
JsonObject = dict[str, object]


def list_manifest(manifest: Manifest, path: bytes | None, *, recursive: bool) -> JsonObject:
    """The entries at `path` (a folder's direct children, or all below it with `recursive`).

    A folder's size is that of all files below it. Paths are relative to the root of the link.

    Raises:
        NotFoundError: no such path.
    """
    if isinstance(manifest, FileManifest):
        if path:
            raise NotFoundError(f"There is no {_shown(path)} in this link: it is a single file.")
        entries = [_file_json(manifest)]
    else:
        entries = list(_tree_json(manifest, path or b"", recursive=recursive))
    return {
        "name": text_of_path(manifest.name),
        "kind": "file" if isinstance(manifest, FileManifest) else "dir",
        "path": text_of_path(path or b""),
        "entries": entries,
    }


def is_folder(manifest: Manifest, path: bytes | None) -> bool:
    """Whether a folder is at `path`, listed or only because something is below it."""
    if isinstance(manifest, FileManifest):
        return False
    if not path:
        return True
    return any(
        entry.path.startswith(path + b"/") or (entry.path == path and entry.kind == "dir")
        for entry in manifest.entries
    )


def describe_manifest(manifest: Manifest) -> JsonObject:
    """Totals of what a link leads to: sizes in bytes, before and after compression and sealing."""
    told: JsonObject = {
        "name": text_of_path(manifest.name),
        "chunks": len(manifest.chunks),
        "stored_bytes": sum(chunk.size for chunk in manifest.chunks),
        "public": all(chunk.key is None for chunk in manifest.chunks),
    }
    if isinstance(manifest, FileManifest):
        return told | {
            "kind": "file",
            "size": manifest.size,
            "files": 1,
            "mode": manifest.mode,
            "mtime_ns": manifest.mtime_ns,
            "media_type": manifest.media_type,
            "digest": manifest.digest.hex(),
            "profile": manifest.profile,
        }
    kinds = Counter(entry.kind for entry in manifest.entries)
    return told | {
        "kind": "dir",
        "size": sum(entry.size for entry in manifest.entries),
        "files": kinds["file"],
        "folders": kinds["dir"],
        "symlinks": kinds["symlink"],
    }


def describe_link(digest: bytes, *, has_key: bool) -> JsonObject:
    """The public half of a link."""
    return {"cid": encode_cid(digest), "has_key": has_key}


def _file_json(manifest: FileManifest) -> JsonObject:
    return {
        "path": text_of_path(manifest.name),
        "kind": "file",
        "size": manifest.size,
        "mode": manifest.mode,
        "mtime_ns": manifest.mtime_ns,
        "media_type": manifest.media_type,
    }


def _tree_json(
    manifest: DirectoryManifest, path: bytes, *, recursive: bool
) -> Iterator[JsonObject]:
    shown: dict[bytes, Entry | None] = {}
    sizes: dict[bytes, int] = {}
    prefix = path + b"/" if path else b""
    found = not path
    for entry in manifest.entries:
        if entry.path == path:
            found = True
            if entry.kind != "dir":
                yield _entry_json(entry, entry.size)
                return
        if not entry.path.startswith(prefix) or entry.path == path:
            continue
        found = True
        for ancestor in _ancestors(entry.path, len(prefix)):
            # A folder may be listed after, before or not at all: what holds something is there.
            shown.setdefault(ancestor, None)
            sizes[ancestor] = sizes.get(ancestor, 0) + entry.size
        shown[entry.path] = entry
    if not found:
        raise NotFoundError(
            f"There is no {_shown(path)} in this link.",
            hint="`meshnode ls LINK` lists what is in it.",
        )
    for name in sorted(shown):
        if recursive or b"/" not in name[len(prefix) :]:
            entry_or_none = shown[name]
            if entry_or_none is None:
                yield _folder_json(name, sizes[name])
            else:
                yield _entry_json(entry_or_none, sizes.get(name, entry_or_none.size))


def _ancestors(path: bytes, start: int) -> Iterator[bytes]:
    """The folders between the listed one, `start` bytes long, and `path`."""
    at = path.find(b"/", start)
    while at >= 0:
        yield path[:at]
        at = path.find(b"/", at + 1)


def _entry_json(entry: Entry, size: int) -> JsonObject:
    told: JsonObject = {
        "path": text_of_path(entry.path),
        "kind": entry.kind,
        "size": size,
        "mode": entry.mode,
        "mtime_ns": entry.mtime_ns,
    }
    if entry.kind == "file":
        told["media_type"] = entry.media_type
    elif entry.kind == "symlink":
        told["target"] = text_of_path(entry.target)
    return told


def _folder_json(path: bytes, size: int) -> JsonObject:
    return {"path": text_of_path(path), "kind": "dir", "size": size}


def _shown(path: bytes) -> str:
    return repr(path.decode("utf-8", "backslashreplace"))
