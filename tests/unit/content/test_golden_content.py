"""Every format that was ever written still opens, and is still written the same way."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import zstandard
from meshnode.node.content import (
    ChunkList,
    ChunkRef,
    Codec,
    DirectoryManifest,
    Link,
    Manifest,
    decode_cid,
    open_chunk,
    open_root,
    symlinks_leaving,
)

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
MADE: dict[str, Any] = runpy.run_path(str(HERE / "make_golden.py"))
FILES: dict[str, bytes] = MADE["golden_files"]()
ZSTD_DEPENDENT = {
    "chunk-compressed.bin",
    "chunk-compressed.json",
    "manifest-compressed.link",
    "manifest-compressed.root",
}


def same_zstd() -> bool:
    recorded = json.loads((GOLDEN / "chunk-compressed.json").read_text())["zstd"]
    return bool(recorded == ".".join(map(str, zstandard.ZSTD_VERSION)))


def read_chunk(name: str) -> tuple[ChunkRef, bytes]:
    told = json.loads((GOLDEN / f"chunk-{name}.json").read_text())
    key = None if told["key"] is None else bytes.fromhex(told["key"])
    digest, codec = bytes.fromhex(told["digest"]), Codec(told["codec"])
    ref = ChunkRef(digest, key, codec, told["size"], told["plain_size"])
    return ref, (GOLDEN / f"chunk-{name}.bin").read_bytes()


def read_manifest(name: str) -> tuple[Manifest, int]:
    """The manifest behind the committed link, and how many chunk lists stood above it."""
    link = Link.parse((GOLDEN / f"{name}.link").read_text())
    found, depth = open_root(link, (GOLDEN / f"{name}.root").read_bytes()), 0
    nodes = {decode_cid(path.name): path for path in GOLDEN.glob(f"{name}.nodes/*")}
    while isinstance(found, ChunkList):
        plains = [open_chunk(ref, nodes[ref.digest].read_bytes()) for ref in found.refs]
        found, depth = found.assemble(plains), depth + 1
    return found, depth


@pytest.mark.parametrize(("name", "codec"), [("sealed", 0), ("public", 0), ("compressed", 1)])
def test_a_golden_chunk_opens(name: str, codec: int) -> None:
    ref, stored = read_chunk(name)
    assert ref.codec == codec
    assert (ref.key is None) is (name == "public")
    assert open_chunk(ref, stored) == MADE["plain"](name)


@pytest.mark.parametrize(
    ("name", "maker", "depth"),
    [
        ("manifest-file", "file_manifest", 0),
        ("manifest-directory", "directory_manifest", 0),
        ("manifest-tree", "tree_manifest", 2),
        ("manifest-public", "tree_manifest", 2),
        ("manifest-compressed", "tree_manifest", 0),
    ],
)
def test_a_golden_manifest_opens(name: str, maker: str, depth: int) -> None:
    found, levels = read_manifest(name)
    assert repr(found) == repr(MADE[maker]())
    assert levels == depth


def test_the_golden_folder_has_what_it_was_made_to_show() -> None:
    folder, _ = read_manifest("manifest-directory")
    assert isinstance(folder, DirectoryManifest)
    by_path = {entry.path: entry for entry in folder.entries}
    pack = {
        by_path[path].slices[0].chunk for path in (b"docs/a.txt", b"docs/new\nline", b"\xff\xfe")
    }
    assert len(pack) == 1
    assert by_path[b"docs/big"].slices[0].chunk not in pack
    assert by_path[b"empty"].slices == ()
    assert symlinks_leaving(folder) == {b"link-out"}


def test_golden_links_open() -> None:
    links = json.loads((GOLDEN / "links.json").read_text())
    digest, key = bytes.fromhex(links["digest"]), bytes.fromhex(links["key"])
    assert Link.parse(links["sealed"]) == Link(digest, key)
    assert Link.parse(links["public"]) == Link(digest)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_golden_file_is_still_written_byte_for_byte(name: str) -> None:
    if name in ZSTD_DEPENDENT and not same_zstd():
        pytest.skip("another zstd version compresses to other, equally valid bytes")
    made = FILES[name]
    if name.endswith(".json") and name.startswith(("chunk", "manifest")):
        then, now = json.loads((GOLDEN / name).read_text()), json.loads(made)
        assert now | {"zstd": then["zstd"]} == then
    else:
        assert (GOLDEN / name).read_bytes() == made


def test_no_golden_file_is_without_its_maker() -> None:
    here = {str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob("*") if path.is_file()}
    assert here == set(FILES)
