from __future__ import annotations

import struct
from bisect import bisect_left
from dataclasses import replace

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.errors import FormatError, IntegrityError, LinkError, WrongKeyError
from meshnode.node.content import (
    MAX_ROOT_BYTES,
    ChunkList,
    ChunkTable,
    DirectoryManifest,
    EncodedManifest,
    Entry,
    FileManifest,
    Link,
    Manifest,
    Sealer,
    Slice,
    TreeLayout,
    encode_manifest,
    open_chunk,
    open_root,
)
from meshnode.node.content.encoding import BodyKind, encode_body, encode_list

SECRET = bytes(range(32))
TINY = TreeLayout(node_bytes=1024, root_bytes=1024)


def listing(count: int, name: bytes = b"folder") -> DirectoryManifest:
    sealer, table, entries = Sealer(SECRET), ChunkTable(), []
    for number in range(count):
        data = b"content %d" % number
        part = Slice(table.add(sealer.seal(data).ref), 0, len(data))
        digest = blake3(data).digest()
        entries.append(
            Entry(b"dir/file %06d" % number, "file", 0o644, number, len(data), digest, "", (part,))
        )
    return DirectoryManifest(name, table.refs, tuple(entries))


def links_only(count: int, target: bytes = b"x") -> DirectoryManifest:
    entries = tuple(Entry(b"%06d" % i, "symlink", 0o777, 0, target=target) for i in range(count))
    return DirectoryManifest(b"links", (), entries)


def levels(encoded: EncodedManifest, link: Link | None = None) -> list[Manifest | ChunkList]:
    """What a reader finds from the root down, with nothing but the link and the stored bytes."""
    stored = {node.ref.digest: node.data for node in encoded.nodes}
    found = [open_root(link or encoded.link, encoded.root.data)]
    while isinstance(last := found[-1], ChunkList):
        found.append(last.assemble([open_chunk(ref, stored[ref.digest]) for ref in last.refs]))
    return found


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 200),
    st.none() | st.binary(min_size=32, max_size=32),
    st.sampled_from(["auto", "zstd", "none"]),
    st.sampled_from([TINY, TreeLayout(), TreeLayout(4096, 2000)]),
)
def test_every_manifest_is_found_again_through_its_link(
    count: int, secret: bytes | None, mode: str, layout: TreeLayout
) -> None:
    manifest = listing(count)
    sealer = Sealer(secret, mode)  # type: ignore[arg-type]
    encoded = encode_manifest(manifest, sealer, layout=layout)
    assert levels(encoded)[-1] == manifest
    assert len(encoded.root.data) <= layout.root_bytes
    assert encoded.link.digest == blake3(encoded.root.data).digest()
    assert (encoded.link.key is None) is (secret is None)
    assert encode_manifest(manifest, sealer, layout=layout) == encoded


def test_a_small_manifest_is_one_root() -> None:
    encoded = encode_manifest(listing(20), Sealer(SECRET))
    assert encoded.nodes == ()
    assert len(levels(encoded)) == 1


def test_a_large_listing_becomes_a_tree_with_a_root_of_at_most_48_kib() -> None:
    encoded = encode_manifest(listing(3000), Sealer(SECRET))
    assert encoded.nodes
    assert len(encoded.root.data) <= MAX_ROOT_BYTES == 48 * 1024
    assert levels(encoded)[-1] == listing(3000)


@pytest.mark.parametrize("mode", ["auto", "none"])
def test_a_root_is_used_up_to_its_bound_and_no_further(mode: str) -> None:
    sealer, whole = Sealer(SECRET, mode), listing(800)  # type: ignore[arg-type]

    def encoded(count: int) -> EncodedManifest:
        return encode_manifest(replace(whole, entries=whole.entries[:count]), sealer)

    assert encoded(800).nodes
    first_tree = bisect_left(range(800), True, key=lambda count: bool(encoded(count).nodes))
    last_root = encoded(first_tree - 1)
    assert MAX_ROOT_BYTES - 200 < len(last_root.root.data) <= MAX_ROOT_BYTES
    assert len(encoded(first_tree).root.data) < MAX_ROOT_BYTES


def test_a_manifest_grows_to_any_depth() -> None:
    encoded = encode_manifest(listing(2500), Sealer(SECRET, "none"), layout=TINY)
    found = levels(encoded)
    depths = [level.depth for level in found if isinstance(level, ChunkList)]
    assert depths == [3, 2, 1]
    assert found[-1] == listing(2500)


def test_a_listing_compresses_into_one_root() -> None:
    manifest = links_only(5000)
    assert encode_manifest(manifest, Sealer(SECRET, "none")).nodes
    packed = encode_manifest(manifest, Sealer(SECRET, "auto"))
    assert packed.nodes == ()
    assert open_root(packed.link, packed.root.data) == manifest


def test_a_root_that_would_inflate_beyond_a_mebibyte_becomes_a_tree() -> None:
    manifest = links_only(2000, b"x" * 600)
    assert len(zstandard.compress(encode_body(manifest))) < MAX_ROOT_BYTES
    encoded = encode_manifest(manifest, Sealer(SECRET))
    assert encoded.nodes
    assert levels(encoded)[-1] == manifest


def test_equal_pieces_of_a_manifest_are_one_node() -> None:
    entries = tuple(
        Entry(b"%04d" % i + b"x" * 250, "symlink", 0o777, 0, target=b"x" * 4096) for i in range(40)
    )
    encoded = encode_manifest(
        DirectoryManifest(b"", (), entries), Sealer(SECRET, "none"), layout=TINY
    )
    digests = [node.ref.digest for node in encoded.nodes]
    assert len(set(digests)) == len(digests)
    assert levels(encoded)[-1] == DirectoryManifest(b"", (), entries)


ENCODED = encode_manifest(listing(5), Sealer(SECRET))
PUBLIC = encode_manifest(listing(5), Sealer(None, "none"))


def test_a_damaged_root_is_an_integrity_error() -> None:
    for damaged in (ENCODED.root.data[:-1], ENCODED.root.data + b"x", b""):
        with pytest.raises(IntegrityError):
            open_root(ENCODED.link, damaged)
    with pytest.raises(FormatError, match="the most is 49152"):
        open_root(ENCODED.link, bytes(MAX_ROOT_BYTES + 1))


def test_a_wrong_key_is_a_wrong_key_error() -> None:
    with pytest.raises(WrongKeyError, match="mistyped after '#'"):
        open_root(Link(ENCODED.link.digest, bytes(32)), ENCODED.root.data)


def test_a_sealed_root_and_a_link_without_key_say_that_the_key_is_missing() -> None:
    with pytest.raises(LinkError, match="no key part"):
        open_root(Link(ENCODED.link.digest), ENCODED.root.data)


def test_a_public_root_and_a_link_with_a_key_say_that_the_key_is_too_much() -> None:
    with pytest.raises(WrongKeyError, match="Leave out"):
        open_root(Link(PUBLIC.link.digest, bytes(32)), PUBLIC.root.data)
    assert open_root(PUBLIC.link, PUBLIC.root.data) == listing(5)


def test_a_chunk_is_not_mistaken_for_a_manifest() -> None:
    chunk = Sealer(SECRET).seal(b"just data")
    with pytest.raises(FormatError, match="no manifest"):
        open_root(Link(chunk.ref.digest, chunk.ref.key), chunk.data)


def rewritten(**fields: int | bytes) -> tuple[Link, bytes]:
    """A public root with other fields in its envelope, under a digest that fits."""
    names = ("magic", "version", "kind", "codec", "reserved", "size")
    envelope = struct.Struct(">4sBBBBI")
    values = dict(zip(names, envelope.unpack_from(PUBLIC.root.data), strict=True)) | fields
    data = envelope.pack(*values.values()) + PUBLIC.root.data[envelope.size :]
    return Link(blake3(data).digest()), data


def test_rewriting_nothing_gives_the_same_root() -> None:
    assert rewritten() == (PUBLIC.link, PUBLIC.root.data)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"version": 2}, "Update meshnode"),
        ({"version": 0}, "version 0"),
        ({"kind": 0}, "unknown"),
        ({"kind": 4}, "unknown"),
        ({"kind": 1}, "wrong types"),
        ({"kind": 3}, "wrong types"),
        ({"codec": 1}, "zstd"),
        ({"codec": 2}, "unknown"),
        ({"reserved": 1}, "unknown"),
        ({"size": 0}, "announces"),
        ({"size": 1}, "belong"),
        ({"size": 2**32 - 1}, "announces"),
    ],
)
def test_an_unknown_envelope_is_refused(fields: dict[str, int], why: str) -> None:
    link, data = rewritten(**fields)
    with pytest.raises(FormatError, match=why):
        open_root(link, data)


def deep() -> tuple[EncodedManifest, ChunkList, list[bytes]]:
    encoded = encode_manifest(listing(300), Sealer(SECRET, "none"), layout=TINY)
    root = open_root(encoded.link, encoded.root.data)
    assert isinstance(root, ChunkList)
    assert root.depth == 2
    stored = {node.ref.digest: node.data for node in encoded.nodes}
    return encoded, root, [open_chunk(ref, stored[ref.digest]) for ref in root.refs]


def test_pieces_in_another_order_or_number_are_refused() -> None:
    _, root, plains = deep()
    for wrong in ([], plains[:-1], [*plains, b"x"], [plains[0][:-1], *plains[1:]]):
        with pytest.raises(FormatError, match="pieces"):
            root.assemble(wrong)
    with pytest.raises(FormatError):
        root.assemble(plains[::-1])


@pytest.mark.parametrize(
    "lie",
    [
        {"depth": 3},
        {"depth": 1},
        {"kind": BodyKind.FILE},
        {"manifest_size": 12345},
    ],
)
def test_levels_that_contradict_each_other_are_refused(lie: dict[str, int]) -> None:
    _, root, plains = deep()
    with pytest.raises(FormatError):
        replace(root, **lie).assemble(plains)  # type: ignore[arg-type]


def public_list(depth: int, kind: int, size: int, plain_sizes: list[int]) -> tuple[Link, bytes]:
    refs = [Sealer(None, "none").seal(bytes([i]) * n).ref for i, n in enumerate(plain_sizes)]
    body = encode_list(depth, kind, size, refs)  # type: ignore[arg-type]
    data = struct.pack(">4sBBBBI", b"mesh", 1, 3, 0, 0, len(body)) + body
    return Link(blake3(data).digest()), data


def test_a_sound_list_opens_before_it_is_spoiled() -> None:
    found = open_root(*public_list(1, 2, 3000, [1000, 2000]))
    assert isinstance(found, ChunkList)
    assert found.manifest_size == 3000


@pytest.mark.parametrize(
    ("depth", "kind", "size", "plain_sizes"),
    [
        (0, 2, 3000, [1000, 2000]),
        (9, 2, 3000, [1000, 2000]),
        (1, 0, 3000, [1000, 2000]),
        (1, 3, 3000, [1000, 2000]),
        (1, 2, 2999, [1000, 2000]),
        (1, 2, 3001, [1000, 2000]),
        (2, 2, 2999, [1000, 2000]),
        (1, 2, 0, []),
        (2, 2, 10, []),
        (2, 2, 2**28 + 1, [1000]),
        (1, 2, -1, [1]),
    ],
)
def test_a_list_with_impossible_totals_is_refused(
    depth: int, kind: int, size: int, plain_sizes: list[int]
) -> None:
    with pytest.raises(FormatError):
        open_root(*public_list(depth, kind, size, plain_sizes))


def test_an_invalid_manifest_is_not_encoded() -> None:
    empty = FileManifest(b"x", 1, bytes(32), 0, 0, "", "", (), ())
    with pytest.raises(FormatError, match="its slices have 0"):
        encode_manifest(empty, Sealer(SECRET))


def test_a_layout_out_of_bounds_is_refused() -> None:
    for node_bytes, root_bytes in [(10, 1024), (1024, 10), (1024, 49153), (2**24, 1024)]:
        with pytest.raises(ValueError, match="layout"):
            TreeLayout(node_bytes, root_bytes)
