"""Whatever bytes come in: our own errors only, and no memory the input does not justify."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import msgpack
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.errors import FormatError
from meshnode.node.content import (
    ChunkList,
    ChunkTable,
    DirectoryManifest,
    Entry,
    FileManifest,
    Link,
    Sealer,
    Slice,
    encode_manifest,
    encoding,
    open_root,
)
from meshnode.node.content.encoding import (
    BodyKind,
    decode_body,
    decode_list,
    encode_body,
    encode_list,
)

SEALED, PUBLIC = Sealer(bytes(32), "none"), Sealer(None, "none")


def bodies() -> list[tuple[BodyKind, bytes]]:
    table = ChunkTable()
    parts = tuple(Slice(table.add(SEALED.seal(b"%d" % i * 50).ref), 3, 40) for i in range(3))
    file = FileManifest(b"f", 120, bytes(32), 0o644, -1, "a/b", "fixed:1024:v1", table.refs, parts)
    entries = (
        Entry(b"a", "dir", 0o755, 2**62),
        Entry(b"a/f", "file", 0o644, 0, 120, bytes(32), "text/plain", parts),
        Entry(b"a/l", "symlink", 0o777, -(2**62), target=b"../x"),
    )
    folder = DirectoryManifest(b"d", table.refs, entries)
    listed = [SEALED.seal(bytes([i]) * 500).ref for i in range(4)]
    return [
        (BodyKind.FILE, encode_body(file)),
        (BodyKind.DIRECTORY, encode_body(folder)),
        (BodyKind.CHUNK_LIST, encode_list(1, BodyKind.FILE, 2000, listed)),
    ]


def decode(kind: BodyKind, body: bytes) -> object:
    return decode_list(body) if kind is BodyKind.CHUNK_LIST else decode_body(kind, body)


BODIES = bodies()
FLIP = st.tuples(st.just("flip"), st.integers(0, 4000), st.integers(1, 255))
CUT = st.tuples(st.just("cut"), st.integers(0, 4000), st.integers(1, 40))
COPY = st.tuples(st.just("copy"), st.integers(0, 4000), st.integers(1, 80))
INSERT = st.tuples(
    st.just("insert"),
    st.integers(0, 4000),
    st.sampled_from([b"\x00", b"\xc0", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91"]),
)


def damage(data: bytes, how: str, place: int, what: int | bytes) -> bytes:
    place %= len(data) or 1
    head, tail = data[:place], data[place:]
    if isinstance(what, bytes):
        return head + what + tail
    if how == "flip":
        return head + bytes([tail[0] ^ what]) + tail[1:] if tail else head
    return head + tail[what:] if how == "cut" else head + tail[:what] + tail


@pytest.mark.parametrize(("kind", "body"), BODIES, ids=[kind.name for kind, _ in BODIES])
@settings(deadline=None, max_examples=250)
@given(changes=st.lists(st.one_of(FLIP, CUT, COPY, INSERT), min_size=1, max_size=3))
def test_a_damaged_body_is_refused_or_is_another_sound_one(
    kind: BodyKind, body: bytes, changes: list[tuple[str, int, int | bytes]]
) -> None:
    for change in changes:
        body = damage(body, *change)
    try:
        found = decode(kind, body)
    except FormatError:
        return
    # What is accepted has this one spelling, so nothing of the damage was overlooked.
    if isinstance(found, FileManifest | DirectoryManifest):
        assert encode_body(found) == body


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(list(BodyKind)), st.binary(max_size=300))
def test_random_bytes_are_refused(kind: BodyKind, body: bytes) -> None:
    with pytest.raises(FormatError):
        decode(kind, body)


ROOT = encode_manifest(
    DirectoryManifest(b"d", (), tuple(Entry(b"%d" % i, "dir", 0, 0) for i in range(9))),
    Sealer(None, "zstd"),
).root.data


@settings(deadline=None, max_examples=250)
@given(st.lists(st.one_of(FLIP, CUT, COPY, INSERT), min_size=1, max_size=3))
def test_a_damaged_root_whose_digest_fits_is_refused_or_sound(
    changes: list[tuple[str, int, int | bytes]],
) -> None:
    data = ROOT
    for change in changes:
        data = damage(data, *change)
    if not data.startswith(b"mesh"):
        return
    try:
        found = open_root(Link(blake3(data).digest()), data)
    except FormatError:
        return
    assert isinstance(found, FileManifest | DirectoryManifest | ChunkList)


def peak_of(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def header(entries: int, table: bytes = b"") -> bytes:
    return bytes(msgpack.packb([b"d", entries, 0, table]))


BOMBS = {
    "array of 4 billion": b"\xdd\xff\xff\xff\xff",
    "map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "bin of 4 GiB": b"\xc6\xff\xff\xff\xff",
    "str of 4 GiB": b"\xdb\xff\xff\xff\xff",
    "ext of 4 GiB": b"\xc9\xff\xff\xff\xff\x01",
    "timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "arrays in arrays": b"\x9a" * 20_000,
    "large arrays in arrays": b"\xdd\x00\x00\xff\xff" * 5_000,
    "believable arrays in arrays": b"\xdc\x7f\xff" * 20_000,
    "2^64 entries": header(2**64 - 1),
    "as many entries as are allowed": header(1_000_000),
    "entry of 4 billion": header(1) + b"\xdd\xff\xff\xff\xff",
    "entry with a bin of 4 GiB": header(1) + b"\x92\x01\xc6\xff\xff\xff\xff",
    "entry of arrays in arrays": header(1) + b"\x9a" * 20_000,
    "half a row": header(0, bytes(40)),
}


@pytest.mark.parametrize("kind", list(BodyKind))
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_an_announced_size_allocates_nothing(kind: BodyKind, bomb: bytes) -> None:
    def attempt() -> None:
        with pytest.raises(FormatError):
            decode(kind, bomb)

    attempt()
    assert peak_of(attempt) < 200_000


def test_slices_are_counted_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MAX_SLICES", 1000)
    entry = msgpack.packb((1, b"a", 0, 0, 0, bytes(32), "", bytes(12 * 400)))
    body = header(500) + entry * 500  # 200,000 slices, some hundred bytes each when parsed

    def attempt() -> None:
        with pytest.raises(FormatError, match="1200 slices; 1000 is the most"):
            decode_body(BodyKind.DIRECTORY, body)

    assert peak_of(attempt) < 2 * len(body)


def test_entries_are_refused_by_their_number_before_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoding, "MAX_ENTRIES", 1000)
    entry = msgpack.packb((2, b"a", 0, 0))
    body = header(50_000) + entry * 50_000

    def attempt() -> None:
        with pytest.raises(FormatError, match="50000 entries; 1000 is the most"):
            decode_body(BodyKind.DIRECTORY, body)

    assert peak_of(attempt) < 3 * len(body)


def test_an_error_does_not_repeat_the_input() -> None:
    body = msgpack.packb([b"d", 0, 0, b""])[:-2] + b"\xda\xff\xff" + b"\xff" * 65535
    with pytest.raises(FormatError) as caught:
        decode_body(BodyKind.DIRECTORY, body)
    assert len(str(caught.value)) < 200


def test_deep_paths_cost_memory_in_proportion_to_their_length() -> None:
    paths = sorted(b"%d/" % i + b"a/" * 2000 + b"f" for i in range(200))
    rows = [msgpack.packb((2, path, 0, 0)) for path in paths]
    body = header(len(rows)) + b"".join(rows)
    assert peak_of(lambda: decode_body(BodyKind.DIRECTORY, body)) < 8 * len(body)


def test_a_root_that_would_inflate_without_measure_is_refused_unread() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(200 * 1024 * 1024))
    for announced in (200 * 1024 * 1024, 1024 * 1024, 10):
        data = struct.pack(">4sBBBBI", b"mesh", 1, 2, 1, 0, announced) + bomb
        link = Link(blake3(data).digest())

        def attempt(link: Link = link, data: bytes = data) -> None:
            with pytest.raises(FormatError):
                open_root(link, data)

        assert len(data) < 48 * 1024
        assert peak_of(attempt) < 400_000
