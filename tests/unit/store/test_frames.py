"""Entry and segment headers: what was written is read back, and nothing else is believed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.node.store import MAX_CHUNK_BYTES
from meshnode.node.store.frames import (
    HEADER_BYTES,
    EntryHeader,
    Kind,
    decode_entry,
    decode_segment_header,
    encode_entry,
    encode_seal,
    encode_segment_header,
    entry_seed,
    frame_bytes,
)
from meshnode.node.store.scan import Found, Scan, is_sealed

SEED = entry_seed(b"i" * 16, 3)
DIGEST = bytes(range(32))

headers = st.one_of(
    st.builds(
        EntryHeader,
        st.just(Kind.CHUNK),
        st.binary(min_size=32, max_size=32),
        st.integers(0, MAX_CHUNK_BYTES),
    ),
    st.builds(
        EntryHeader, st.just(Kind.TOMBSTONE), st.binary(min_size=32, max_size=32), st.just(0)
    ),
)


def test_the_bytes_of_an_entry_header_are_those_of_the_format_page():
    raw = encode_entry(EntryHeader(Kind.CHUNK, DIGEST, 0x010203), 0)
    assert raw[:12].hex() == "ab4d4e65" + "01" + "01" + "0000" + "03020100"
    assert raw[12:44] == DIGEST
    assert len(raw) == HEADER_BYTES == 48


def test_the_bytes_of_a_segment_header_are_those_of_the_format_page():
    raw = encode_segment_header(b"0123456789abcdef", 7)
    assert raw[:16].hex() == "ab4d4e7365670d0a" + "01000000" + "07000000"
    assert raw[16:32] == b"0123456789abcdef"
    assert raw[32:44] == bytes(12)
    assert decode_segment_header(raw) == (b"0123456789abcdef", 7)


@given(headers, st.integers(0, 2**32 - 1))
def test_a_header_survives_the_round_trip(header, seed):
    assert decode_entry(encode_entry(header, seed), seed) == header


@given(headers, st.integers(0, HEADER_BYTES * 8 - 1))
def test_a_header_with_a_flipped_bit_is_none(header, bit):
    raw = bytearray(encode_entry(header, SEED))
    raw[bit // 8] ^= 1 << bit % 8
    assert decode_entry(bytes(raw), SEED) is None


@given(headers)
def test_a_header_of_another_store_or_segment_is_none(header):
    raw = encode_entry(header, SEED)
    assert decode_entry(raw, entry_seed(b"i" * 16, 4)) is None
    assert decode_entry(raw, entry_seed(b"j" * 16, 3)) is None


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_header(raw):
    assert decode_entry(raw, SEED) is None
    assert decode_segment_header(raw) is None


def test_a_header_that_claims_too_much_is_none():
    too_long = encode_entry(EntryHeader(Kind.CHUNK, DIGEST, MAX_CHUNK_BYTES + 1), SEED)
    assert decode_entry(too_long, SEED) is None
    tombstone_with_payload = encode_entry(EntryHeader(Kind.TOMBSTONE, DIGEST, 1), SEED)
    assert decode_entry(tombstone_with_payload, SEED) is None


@pytest.mark.parametrize(("length", "frame"), [(0, 48), (1, 56), (8, 56), (9, 64)])
def test_frames_are_padded_to_eight_bytes(length, frame):
    assert frame_bytes(length) == frame


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.booleans())
def test_a_scan_of_arbitrary_bytes_finds_nothing_and_ends(raw, verify):
    scan = Scan(lambda at, length: raw[at : at + length], 0, len(raw), SEED, verify=verify)
    assert list(scan) == []
    assert scan.end == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(headers, max_size=8), st.binary(max_size=500), st.integers(0, 20))
def test_a_scan_steps_over_damage_to_the_next_entry(entries, rubbish, place):
    """Rubbish between two entries, padded to the alignment, hides none of the others."""
    rubbish += bytes(-len(rubbish) % 8)
    raw, expected = b"", []
    for number, header in enumerate(entries):
        if number == place % (len(entries) + 1):
            raw += rubbish
        tombstone = EntryHeader(Kind.TOMBSTONE, header.digest, 0)
        expected.append(Found(Kind.TOMBSTONE, header.digest, len(raw), 0))
        raw += encode_entry(tombstone, SEED)
    scan = Scan(lambda at, length: raw[at : at + length], 0, len(raw), SEED, verify=True)
    assert list(scan) == expected


def test_damage_longer_than_the_search_window_is_stepped_over():
    entry = encode_entry(EntryHeader(Kind.TOMBSTONE, DIGEST, 0), SEED)
    raw = entry + b"\xab\x4d\x4e\x65\x00\x00\x00\x00" * 200_000 + entry
    scan = Scan(lambda at, length: raw[at : at + length], 0, len(raw), SEED, verify=True)
    assert [found.offset for found in scan] == [0, 48 + 1_600_000]
    assert scan.damaged_bytes == 1_600_000


def test_only_a_seal_at_the_very_end_seals():
    seal = encode_seal(SEED)
    for raw, sealed in ((bytes(48) + seal, True), (bytes(48) + seal + bytes(8), False)):
        assert is_sealed(lambda at, n, raw=raw: raw[at : at + n], len(raw), SEED) is sealed
