"""Makes the golden files: one of every format, as this version writes it.

Run `python tests/unit/content/make_golden.py` to add files for a new format. What is there is
never overwritten: files of an older format must keep opening for ever, so a changed format gets
new names beside the old.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3
from meshnode.node.content import (
    ChunkerProfile,
    ChunkTable,
    DirectoryManifest,
    Entry,
    FileManifest,
    Link,
    Packer,
    SealedChunk,
    Sealer,
    Slice,
    TreeLayout,
    cut,
    encode_manifest,
)

GOLDEN = Path(__file__).parent / "golden"
SECRET = bytes(range(32))
ZSTD = ".".join(map(str, zstandard.ZSTD_VERSION))
CUT_PROFILES = (
    "cdc:262144:1048576:4194304:v1",
    "cdc:16384:65536:262144:v1",
    "fixed:1048576:v1",
    "lines:1048576:4194304:v1",
    "lines:4096:16384:v1",
)
TREE_LAYOUT = TreeLayout(node_bytes=1024, root_bytes=1024)


def noise(seed: object, size: int) -> bytes:
    """Bytes that look random and are the same everywhere."""
    return blake3(repr(seed).encode()).digest(length=size)


def plain(name: str) -> bytes:
    """The plaintext of each golden chunk."""
    return b"golden lines compress well\n" * 200 if name == "compressed" else noise(name, 3000)


def sealer(name: str) -> Sealer:
    """The sealer of each golden chunk."""
    return Sealer(None if name == "public" else SECRET, "zstd" if name == "compressed" else "none")


def file_manifest() -> FileManifest:
    """A file of three chunks, cut by lines."""
    seal = Sealer(SECRET, "none").seal
    content = noise("file", 2500)
    chunks = tuple(seal(content[start : start + 1000]).ref for start in (0, 1000, 2000))
    return FileManifest(
        name=b"r\xc3\xa9sum\xc3\xa9.txt",
        size=2500,
        digest=blake3(content).digest(),
        mode=0o640,
        mtime_ns=1_700_000_000_123_456_789,
        media_type="text/plain",
        profile="lines:1048576:4194304:v1",
        chunks=chunks,
        slices=(Slice(0, 0, 1000), Slice(1, 0, 1000), Slice(2, 0, 500)),
    )


def directory_manifest() -> DirectoryManifest:
    """Files in a pack, one in its own chunk, an empty one, a folder, symlinks, odd names."""
    seal, table = Sealer(SECRET, "none"), ChunkTable()
    packer = Packer(seal)
    packed = {b"docs/a.txt": b"first", b"docs/new\nline": b"second", b"\xff\xfe": b"third"}
    slots = {path: packer.add(data) for path, data in packed.items()}
    packer.flush()
    entries = [
        Entry(b"docs", "dir", 0o2755, -1),
        Entry(b"empty", "file", 0o600, 0, 0, blake3(b"").digest()),
        Entry(b"link", "symlink", 0o777, 7, target=b"docs/a.txt"),
        Entry(b"link-out", "symlink", 0o777, 8, target=b"../\xff/elsewhere"),
    ]
    for path, data in packed.items():
        part = Slice(table.add(slots[path].ref), slots[path].offset, slots[path].length)
        digest = blake3(data).digest()
        entries.append(Entry(path, "file", 0o644, 1, len(data), digest, "text/plain", (part,)))
    big = noise("big", 5000)
    part = Slice(table.add(seal.seal(big).ref), 0, 5000)
    kind = "application/octet-stream"
    entries.append(Entry(b"docs/big", "file", 0o755, 2, 5000, blake3(big).digest(), kind, (part,)))
    entries.sort(key=lambda entry: entry.path)
    return DirectoryManifest(b"folder", table.refs, tuple(entries))


def tree_manifest() -> DirectoryManifest:
    """Enough empty files for a tree of two levels of chunk lists in `TREE_LAYOUT`."""
    digest = blake3(b"").digest()
    entries = tuple(Entry(b"many/%04d" % i, "file", 0o644, i, 0, digest) for i in range(450))
    return DirectoryManifest(b"many", (), entries)


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def chunk_files(name: str, chunk: SealedChunk) -> dict[str, bytes]:
    ref = chunk.ref
    described = {
        "digest": ref.digest.hex(),
        "key": None if ref.key is None else ref.key.hex(),
        "codec": int(ref.codec),
        "size": ref.size,
        "plain_size": ref.plain_size,
        "zstd": ZSTD,
    }
    return {f"chunk-{name}.bin": chunk.data, f"chunk-{name}.json": as_json(described)}


def manifest_files(
    name: str, manifest: FileManifest | DirectoryManifest, layout: TreeLayout, with_key: bool = True
) -> dict[str, bytes]:
    encoded = encode_manifest(manifest, Sealer(SECRET if with_key else None, "none"), layout=layout)
    files = {f"{name}.link": f"{encoded.link}\n".encode(), f"{name}.root": encoded.root.data}
    for node in encoded.nodes:
        files[f"{name}.nodes/{Link(node.ref.digest).cid}"] = node.data
    return files


def compressed_manifest_files() -> dict[str, bytes]:
    encoded = encode_manifest(tree_manifest(), Sealer(SECRET, "auto"))
    return {
        "manifest-compressed.link": f"{encoded.link}\n".encode(),
        "manifest-compressed.root": encoded.root.data,
        "manifest-compressed.json": as_json({"zstd": ZSTD}),
    }


def golden_files() -> dict[str, bytes]:
    """Path below golden/ -> content, for every golden file."""
    files: dict[str, bytes] = {}
    for name in ("sealed", "public", "compressed"):
        files |= chunk_files(name, sealer(name).seal(plain(name)))
    files |= manifest_files("manifest-file", file_manifest(), TreeLayout())
    files |= manifest_files("manifest-directory", directory_manifest(), TreeLayout())
    files |= manifest_files("manifest-tree", tree_manifest(), TREE_LAYOUT)
    files |= manifest_files("manifest-public", tree_manifest(), TREE_LAYOUT, with_key=False)
    files |= compressed_manifest_files()
    content = noise("cuts", 12 * 1024 * 1024)
    profiles = {text: ChunkerProfile.parse(text) for text in CUT_PROFILES}
    cuts = {text: cut(profile, content, True) for text, profile in profiles.items()}
    files["cuts.json"] = (json.dumps(cuts, sort_keys=True) + "\n").encode()
    digest, key = noise("link", 32), noise("key", 32)
    links = {"digest": digest.hex(), "key": key.hex(), "public": str(Link(digest))}
    files["links.json"] = as_json(links | {"sealed": str(Link(digest, key))})
    return files


def main() -> int:
    kept = 0
    for name, content in golden_files().items():
        path = GOLDEN / name
        if path.exists():
            kept += 1
            if path.read_bytes() != content:
                print(f"differs, kept as it was: {path}", file=sys.stderr)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        print(f"made {path}")
    print(f"kept {kept} files that were there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
