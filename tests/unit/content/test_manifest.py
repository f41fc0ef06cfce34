from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.errors import FormatError, NotFoundError
from meshnode.node.content import (
    MAX_PLAIN_BYTES,
    ChunkRef,
    ChunkTable,
    Codec,
    DirectoryManifest,
    Entry,
    FileManifest,
    Manifest,
    Slice,
    extract_entry,
    file_manifest_of,
)
from meshnode.node.content.canonical import canonical, check
from meshnode.node.content.encoding import (
    BodyKind,
    body_kind,
    decode_body,
    decode_list,
    encode_body,
    encode_list,
)

DIGEST = blake3(b"content").digest()


def ref(number: int, plain_size: int = 100, *, sealed: bool = True, zstd: bool = False) -> ChunkRef:
    digest = blake3(b"chunk %d" % number).digest()
    payload = plain_size // 2 if zstd else plain_size
    key = blake3(b"key %d" % number).digest() if sealed else None
    size = payload + (16 if sealed else 0)
    return ChunkRef(digest, key, Codec.ZSTD if zstd else Codec.RAW, size, plain_size)


def file_manifest(**changes: Any) -> FileManifest:
    manifest = FileManifest(
        name=b"log.txt",
        size=150,
        digest=DIGEST,
        mode=0o644,
        mtime_ns=1_700_000_000_123_456_789,
        media_type="text/plain",
        profile="fixed:1024:v1",
        chunks=(ref(0), ref(1)),
        slices=(Slice(0, 0, 100), Slice(1, 10, 50)),
    )
    return replace(manifest, **changes)


def entry(path: bytes, **changes: Any) -> Entry:
    whole = Entry(path, "file", 0o600, -5, 100, DIGEST, "", (Slice(0, 0, 100),))
    return replace(whole, **changes)


def folder(*entries: Entry, chunks: tuple[ChunkRef, ...] = (ref(0),)) -> DirectoryManifest:
    return DirectoryManifest(b"folder", chunks, entries)


NAMES = st.binary(min_size=1, max_size=8).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
TIMES = st.integers(-(2**63) + 1, 2**63 - 1)
MODES = st.integers(0, 0o7777)


@st.composite
def chunk_tables(draw: st.DrawFn) -> list[ChunkRef]:
    sealed = draw(st.booleans())
    sizes = draw(st.lists(st.integers(2, MAX_PLAIN_BYTES), max_size=5))
    return [ref(i, size, sealed=sealed, zstd=draw(st.booleans())) for i, size in enumerate(sizes)]


@st.composite
def slices_of(draw: st.DrawFn, chunks: list[ChunkRef]) -> tuple[Slice, ...]:
    if not chunks:
        return ()
    parts = []
    for index in draw(st.lists(st.integers(0, len(chunks) - 1), max_size=4)):
        offset = draw(st.integers(0, chunks[index].plain_size - 1))
        length = draw(st.integers(1, chunks[index].plain_size - offset))
        parts.append(Slice(index, offset, length))
    return tuple(parts)


@st.composite
def file_manifests(draw: st.DrawFn) -> FileManifest:
    chunks = draw(chunk_tables())
    slices = draw(slices_of(chunks))
    return FileManifest(
        name=draw(NAMES | st.just(b"")),
        size=sum(part.length for part in slices),
        digest=draw(st.binary(min_size=32, max_size=32)),
        mode=draw(MODES),
        mtime_ns=draw(TIMES),
        media_type=draw(st.sampled_from(["", "text/plain; charset=utf-8"])),
        profile=draw(st.sampled_from(["", "lines:1024:4096:v1"])),
        chunks=tuple(chunks),
        slices=slices,
    )


@st.composite
def directory_manifests(draw: st.DrawFn) -> DirectoryManifest:
    chunks = draw(chunk_tables())
    paths = draw(st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map(tuple), st.none()))
    leaves = [p for p in paths if not any(o != p and o[: len(p)] == p for o in paths)]
    entries = []
    for parts in paths:
        path, mode, time = b"/".join(parts), draw(MODES), draw(TIMES)
        kind = draw(st.sampled_from(["file", "dir", "symlink"])) if parts in leaves else "dir"
        if kind == "file":
            slices = draw(slices_of(chunks))
            size = sum(part.length for part in slices)
            entries.append(Entry(path, "file", mode, time, size, DIGEST, "a/b", slices))
        elif kind == "symlink":
            target = draw(st.binary(min_size=1, max_size=9).filter(lambda t: b"\0" not in t))
            entries.append(Entry(path, "symlink", mode, time, target=target))
        else:
            entries.append(Entry(path, "dir", mode, time))
    return DirectoryManifest(draw(NAMES), tuple(chunks), tuple(entries))


MANIFESTS = st.one_of(file_manifests(), directory_manifests())


def contents(manifest: Manifest) -> Any:
    """A manifest with its slices resolved: what it means, however its table is ordered."""

    def resolve(slices: tuple[Slice, ...]) -> list[tuple[ChunkRef, int, int]]:
        return [(manifest.chunks[part.chunk], part.offset, part.length) for part in slices]

    if isinstance(manifest, FileManifest):
        return replace(manifest, chunks=(), slices=()), resolve(manifest.slices)
    return manifest.name, sorted(
        (e.path, repr(replace(e, slices=())), resolve(e.slices)) for e in manifest.entries
    )


@settings(deadline=None, max_examples=150)
@given(MANIFESTS)
def test_every_manifest_survives_the_round_trip(manifest: Manifest) -> None:
    ordered = canonical(manifest)
    assert contents(ordered) == contents(manifest)
    assert canonical(ordered) == ordered
    body = encode_body(ordered)
    assert decode_body(body_kind(ordered), body) == ordered
    assert decode_body(body_kind(ordered), memoryview(bytearray(body))) == ordered


@settings(deadline=None, max_examples=60)
@given(directory_manifests(), st.randoms(use_true_random=False))
def test_the_order_of_entries_and_chunks_changes_nothing(
    manifest: DirectoryManifest, random: Any
) -> None:
    order = list(range(len(manifest.chunks)))
    random.shuffle(order)
    moved = {old: new for new, old in enumerate(order)}
    entries = [
        replace(e, slices=tuple(replace(part, chunk=moved[part.chunk]) for part in e.slices))
        for e in manifest.entries
    ]
    random.shuffle(entries)
    shuffled = DirectoryManifest(
        manifest.name, tuple(manifest.chunks[i] for i in order), tuple(entries)
    )
    assert encode_body(canonical(shuffled)) == encode_body(canonical(manifest))


def test_a_chunk_twice_in_the_table_becomes_one_row() -> None:
    twice = file_manifest(chunks=(ref(0), ref(0)), slices=(Slice(0, 0, 100), Slice(1, 10, 50)))
    ordered = canonical(twice)
    assert ordered.chunks == (ref(0),)
    assert ordered == file_manifest(chunks=(ref(0),), slices=(Slice(0, 0, 100), Slice(0, 10, 50)))


GOOD = (ref(0), ref(1))
BAD_FILES: dict[str, dict[str, Any]] = {
    "size too small": {"size": 149},
    "size too large": {"size": 151},
    "negative size": {"size": -1, "chunks": (), "slices": ()},
    "size beyond 63 bits": {"size": 2**63},
    "short digest": {"digest": DIGEST[:-1]},
    "file type bits in mode": {"mode": 0o100644},
    "negative mode": {"mode": -1},
    "time beyond 64 bits": {"mtime_ns": 2**63},
    "name with a slash": {"name": b"a/b"},
    "name too long": {"name": b"x" * 256},
    "media type with a newline": {"media_type": "text/plain\r\nX: y"},
    "media type too long": {"media_type": "x" * 256},
    "profile not ASCII": {"profile": "fixed:١:v1"},
    "profile too long": {"profile": "x" * 65},
    "chunk index out of range": {"slices": (Slice(0, 0, 100), Slice(2, 0, 50))},
    "negative chunk index": {"slices": (Slice(0, 0, 100), Slice(-1, 0, 50))},
    "slice beyond its chunk": {"slices": (Slice(0, 0, 100), Slice(1, 60, 50))},
    "negative offset": {"slices": (Slice(0, 0, 100), Slice(1, -1, 50))},
    "empty slice": {"slices": (Slice(0, 0, 100), Slice(1, 0, 0), Slice(1, 0, 50))},
    "negative length": {"slices": (Slice(0, 0, 100), Slice(1, 0, 60), Slice(1, 20, -10))},
    "public among sealed": {"chunks": (ref(0), ref(1, sealed=False))},
    "raw chunk of another size": {"chunks": (ref(0), replace(ref(1), size=115))},
    "zstd chunk that did not shrink": {"chunks": (ref(0), replace(ref(1), codec=Codec.ZSTD))},
    "chunk without payload": {"chunks": (ref(0), replace(ref(1, zstd=True), size=16))},
    "chunk too large": {"chunks": (ref(0), ref(1, MAX_PLAIN_BYTES + 1))},
    "one digest, two keys": {"chunks": (ref(0), replace(ref(0), key=bytes(32)))},
}


@pytest.mark.parametrize("changes", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_an_impossible_file_is_neither_written_nor_read(changes: dict[str, Any]) -> None:
    manifest = file_manifest(**changes)
    with pytest.raises(FormatError):
        canonical(manifest)
    try:
        body = encode_body(manifest)
    except (OverflowError, struct.error):
        return  # a number that the format has no room for
    with pytest.raises(FormatError):
        decode_body(BodyKind.FILE, body)


@pytest.mark.parametrize("changes", [{"key": b"short"}, {"digest": b"short"}])
def test_a_short_key_or_digest_is_not_padded_into_the_table(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        canonical(file_manifest(chunks=(ref(0), replace(ref(1), **changes))))


LINK = Entry(b"b", "symlink", 0o777, 0, target=b"a")
BAD_FOLDERS: dict[str, tuple[Entry, ...]] = {
    "twice": (entry(b"a"), entry(b"a")),
    "absolute": (entry(b"/a"),),
    "up": (entry(b"../a"),),
    "up in the middle": (entry(b"a/../b"),),
    "empty part": (entry(b"a//b"),),
    "empty path": (entry(b""),),
    "NUL": (entry(b"a\0b"),),
    "file and folder": (entry(b"a"), entry(b"a/b")),
    "file and folder with others between": (
        entry(b"a"), entry(b"a!"), entry(b"a-b/c"), entry(b"a/b/c"),
    ),
    "below a symlink": (LINK, entry(b"b/c"), entry(b"d")),
    "symlink without target": (replace(LINK, target=b""), entry(b"c")),
    "symlink target with NUL": (replace(LINK, target=b"a\0"), entry(b"c")),
    "symlink target too long": (replace(LINK, target=b"x" * 4097), entry(b"c")),
    "symlink with a size": (replace(LINK, size=1), entry(b"c")),
    "file with a target": (entry(b"a", target=b"x"),),
    "folder with a target": (Entry(b"a", "dir", 0, 0, target=b"x"), entry(b"c")),
    "folder with content": (entry(b"a", kind="dir"), entry(b"c")),
    "wrong size": (entry(b"a", size=1),),
    "mode": (entry(b"a", mode=0o10000),),
}  # fmt: skip


@pytest.mark.parametrize("entries", BAD_FOLDERS.values(), ids=BAD_FOLDERS.keys())
def test_an_impossible_folder_is_neither_written_nor_read(entries: tuple[Entry, ...]) -> None:
    manifest = folder(*entries)
    with pytest.raises(FormatError):
        canonical(manifest)
    with pytest.raises(FormatError):
        check(manifest)


BAD_ORDER: dict[str, Manifest] = {
    "entries unsorted": folder(entry(b"b"), entry(b"a")),
    "unused chunk": folder(entry(b"a"), chunks=(ref(0), ref(1))),
    "chunks out of order, all used": file_manifest(
        size=160, slices=(Slice(1, 0, 100), Slice(0, 0, 50), Slice(1, 0, 10))
    ),
    "chunks not in order of use": file_manifest(slices=(Slice(1, 0, 100), Slice(0, 0, 50))),
}


@pytest.mark.parametrize("manifest", BAD_ORDER.values(), ids=BAD_ORDER.keys())
def test_writing_mends_the_order_and_reading_demands_it(manifest: Manifest) -> None:
    with pytest.raises(FormatError):
        decode_body(body_kind(manifest), encode_body(manifest))
    ordered = canonical(manifest)
    assert decode_body(body_kind(manifest), encode_body(ordered)) == ordered


def test_a_dash_sorts_before_a_slash_and_is_no_folder() -> None:
    manifest = folder(
        Entry(b"a", "dir", 0o755, 0), entry(b"a-b"), entry(b"a.txt"), entry(b"a/b"), entry(b"ab")
    )
    assert canonical(manifest) == manifest


FILE_BODY = encode_body(file_manifest())
FOLDER_BODY = encode_body(folder(entry(b"a"), LINK, Entry(b"c", "dir", 0o755, 0)))


def test_only_the_shortest_msgpack_is_canonical() -> None:
    rows = msgpack.unpackb(FILE_BODY)
    at = FILE_BODY.index(b"\xcc\x96")  # size 150 as uint8
    assert rows[1] == 150
    longer = FILE_BODY[:at] + b"\xcd\x00\x96" + FILE_BODY[at + 2 :]
    assert msgpack.unpackb(longer) == rows
    with pytest.raises(FormatError, match="canonical"):
        decode_body(BodyKind.FILE, longer)


def test_a_chunk_list_has_one_encoding_too() -> None:
    body = encode_list(1, BodyKind.FILE, 200, [ref(0), ref(1)])
    assert decode_list(body) == (1, BodyKind.FILE, 200, (ref(0), ref(1)))
    longer = body.replace(b"\xcc\xc8", b"\xcd\x00\xc8", 1)
    assert msgpack.unpackb(longer) == msgpack.unpackb(body)
    for other in (longer, body + b"\0"):
        with pytest.raises(FormatError, match="canonical"):
            decode_list(other)


@pytest.mark.parametrize("place", range(10))
@pytest.mark.parametrize("value", [None, True, 1.5, "text", b"bytes", -1, 2**64 - 1, [], {}])
def test_a_field_of_another_type_or_value_is_refused(place: int, value: object) -> None:
    row = msgpack.unpackb(FILE_BODY)
    sound = [(0, b"bytes"), (4, -1), (5, "text"), (6, "text")]
    if (place, value) in sound and type(row[place]) is type(value):
        return
    row[place] = value
    with pytest.raises(FormatError):
        decode_body(BodyKind.FILE, msgpack.packb(row))


@pytest.mark.parametrize("kind", list(BodyKind))
@pytest.mark.parametrize(
    "body", [b"", b"\xc0", b"\x90", FILE_BODY[:-1], FILE_BODY + b"\0", FOLDER_BODY[:-1]]
)
def test_other_bytes_are_no_manifest(kind: BodyKind, body: bytes) -> None:
    with pytest.raises(FormatError):
        decode_body(kind, body)


@pytest.mark.parametrize("count", [0, 2, 4, 2**63, 2**64 - 1, -1])
def test_a_folder_has_exactly_the_entries_it_announces(count: int) -> None:
    header = [b"folder", 3, 1]
    assert FOLDER_BODY.startswith(b"\x94" + b"".join(map(msgpack.packb, header)))
    rest = FOLDER_BODY[len(b"\x94" + b"".join(map(msgpack.packb, header))) :]
    header[1] = count
    with pytest.raises(FormatError):
        decode_body(BodyKind.DIRECTORY, b"\x94" + b"".join(map(msgpack.packb, header)) + rest)


def test_an_entry_is_extracted_with_just_its_chunks() -> None:
    table = ChunkTable()
    refs = [ref(i) for i in range(4)]
    entries = [
        entry(
            b"%d" % i, slices=(Slice(table.add(refs[i]), 0, 60), Slice(table.add(refs[3]), 5, 40))
        )
        for i in range(3)
    ]
    manifest = canonical(DirectoryManifest(b"pack", table.refs, tuple(entries)))
    assert isinstance(manifest, DirectoryManifest)
    found, chunks = extract_entry(manifest, b"1")
    assert chunks == (refs[1], refs[3])
    assert found == replace(entries[1], slices=(Slice(0, 0, 60), Slice(1, 5, 40)))


def test_a_missing_entry_is_not_found_and_the_nearest_is_named() -> None:
    with pytest.raises(NotFoundError, match=r"Did you mean 'docs/readme\.md'"):
        extract_entry(folder(entry(b"docs/readme.md")), b"docs/readme.txt")
    with pytest.raises(NotFoundError):
        extract_entry(folder(), b"x")


def test_a_file_sealed_anew_gets_its_own_manifest() -> None:
    packed = entry(b"docs/a.txt", media_type="text/plain")
    fresh = ref(9)
    manifest = file_manifest_of(packed, "", [fresh], [Slice(0, 0, 100)])
    assert canonical(manifest) == manifest
    assert (manifest.name, manifest.size, manifest.digest) == (b"a.txt", 100, packed.digest)
    assert (manifest.mode, manifest.mtime_ns, manifest.media_type) == (0o600, -5, "text/plain")
    with pytest.raises(ValueError, match="not a file"):
        file_manifest_of(LINK, "", [], [])
