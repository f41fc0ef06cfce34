"""docs/formats.md is enough to write a reader: this one uses nothing of meshnode's to read.

It knows the page and the golden files, and agrees with what the golden files were made from.
"""

from __future__ import annotations

import base64
import io
import math
import re
import runpy
import struct
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from fastcdc.fastcdc_py import GEAR  # type: ignore[import-untyped]
from meshnode.node.content import ChunkerProfile, FileManifest, Manifest, cut

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
PAGE = (HERE.parents[2] / "docs" / "formats.md").read_text()
MADE: dict[str, Any] = runpy.run_path(str(HERE / "make_golden.py"))

Rows = list[tuple[bytes, bytes | None, int, int, int]]


def cid_of(stored: bytes) -> str:
    raw = bytes.fromhex("01551e20") + blake3(stored).digest()
    return "b" + base64.b32encode(raw).decode().lower().rstrip("=")


def open_payload(key: bytes | None, stored: bytes) -> bytes:
    return stored if key is None else AESGCM(key).decrypt(bytes(12), stored, None)


def inflate(codec: int, payload: bytes) -> bytes:
    return zstandard.decompress(payload) if codec == 1 else payload


def rows_of(sealed: int, table: bytes) -> Rows:
    if sealed:
        return list(struct.iter_unpack(">32s32sBII", table))
    return [(row[0], None, *row[1:]) for row in struct.iter_unpack(">32sBII", table)]


def read_body(name: str) -> tuple[int, bytes]:
    """Kind and body of the manifest behind a golden link."""
    cid, _, key_text = (
        (GOLDEN / f"{name}.link").read_text().strip().removeprefix("meshnode:").partition("#")
    )
    key = base64.urlsafe_b64decode(key_text + "=") if key_text else None
    stored = (GOLDEN / f"{name}.root").read_bytes()
    assert cid_of(stored) == cid
    envelope = open_payload(key, stored)
    magic, version, kind, codec, zero, size = struct.unpack_from(">4sBBBBI", envelope)
    assert (magic, version, zero) == (b"mesh", 1, 0)
    body = inflate(codec, envelope[12:])
    assert len(body) == size
    depth = None
    while kind == 3 or depth:
        depth, kind, manifest_size, sealed, table = msgpack.unpackb(body)
        pieces = []
        for digest, key, codec, stored_size, plain_size in rows_of(sealed, table):
            [path] = GOLDEN.glob(f"{name}.nodes/{cid_for_digest(digest)}")
            stored = path.read_bytes()
            assert blake3(stored).digest() == digest
            assert len(stored) == stored_size
            pieces.append(inflate(codec, open_payload(key, stored)))
            assert len(pieces[-1]) == plain_size
        body, depth = b"".join(pieces), depth - 1
        assert depth or len(body) == manifest_size
    return kind, body


def cid_for_digest(digest: bytes) -> str:
    raw = bytes.fromhex("01551e20") + digest
    return "b" + base64.b32encode(raw).decode().lower().rstrip("=")


def facts(sealed: int, table: bytes, slices: bytes) -> list[tuple[Any, ...]]:
    rows = rows_of(sealed, table)
    return [(rows[i], offset, length) for i, offset, length in struct.iter_unpack(">III", slices)]


def read(name: str) -> Any:
    """The manifest as plain values."""
    kind, body = read_body(name)
    if kind == 1:
        *plain, sealed, table, slices = msgpack.unpackb(body)
        return [*plain, facts(sealed, table, slices)]
    objects = list(msgpack.Unpacker(io.BytesIO(body)))
    folder, count, sealed, table = objects[0]
    assert count == len(objects) - 1
    return [folder] + [
        [*row[:-1], facts(sealed, table, row[-1])] if row[0] == 1 else row for row in objects[1:]
    ]


def expected(manifest: Manifest) -> Any:
    def sliced(slices: Any) -> list[tuple[Any, ...]]:
        refs = [manifest.chunks[part.chunk] for part in slices]
        rows = [(ref.digest, ref.key, int(ref.codec), ref.size, ref.plain_size) for ref in refs]
        return [(r, part.offset, part.length) for r, part in zip(rows, slices, strict=True)]

    if isinstance(manifest, FileManifest):
        m = manifest
        head = [m.name, m.size, m.digest, m.mode, m.mtime_ns, m.media_type, m.profile]
        return [*head, sliced(m.slices)]
    rows: list[Any] = [manifest.name]
    for e in manifest.entries:
        if e.kind == "file":
            head = [1, e.path, e.mode, e.mtime_ns, e.size, e.digest, e.media_type]
            rows.append([*head, sliced(e.slices)])
        elif e.kind == "dir":
            rows.append([2, e.path, e.mode, e.mtime_ns])
        else:
            rows.append([3, e.path, e.mode, e.mtime_ns, e.target])
    return rows


@pytest.mark.parametrize(
    ("name", "maker"),
    [
        ("manifest-file", "file_manifest"),
        ("manifest-directory", "directory_manifest"),
        ("manifest-tree", "tree_manifest"),
        ("manifest-public", "tree_manifest"),
        ("manifest-compressed", "tree_manifest"),
    ],
)
def test_a_reader_written_from_the_page_reads_every_golden_manifest(name: str, maker: str) -> None:
    assert read(name) == expected(MADE[maker]())


def cut_by_the_page(data: bytes, least: int, target: int, most: int) -> list[int]:
    bits = round(math.log2(target))
    centre = target - min(target, least + math.ceil(least / 2))
    ends, start = [], 0
    while start < len(data):
        b, pattern = data[start : start + most], 0
        i = min(least, len(b))
        while i < len(b):
            mask = 2 ** (bits + 1 if i < centre else bits - 1) - 1
            pattern = (pattern >> 1) + GEAR[b[i]]
            i += 1
            if pattern & mask == 0:
                break
        start += i
        ends.append(start)
    return ends


@pytest.mark.parametrize("sizes", [(256, 1024, 4096), (64, 3000, 5000), (900, 1024, 1500)])
def test_content_defined_cuts_follow_from_the_page(sizes: tuple[int, int, int]) -> None:
    data = MADE["noise"]("page", 120_000) + bytes(20_000)
    profile = ChunkerProfile.parse(f"cdc:{sizes[0]}:{sizes[1]}:{sizes[2]}:v1")
    assert cut(profile, data, True) == cut_by_the_page(data, *sizes)


def test_the_page_names_the_right_table_and_cid() -> None:
    [digest] = re.findall(r"`([0-9a-f]{64})`", PAGE)
    assert blake3(struct.pack(">256I", *GEAR)).hexdigest() == digest
    assert cid_of(b"hello") in PAGE
