"""Names and notices: one encoding each, fixed for ever; nothing forged or misplaced passes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from meshnode.dht.keyspace import manifest_key
from meshnode.dht.names import (
    MAX_NAME_BYTES,
    MAX_NAME_LIFETIME,
    MAX_NAME_VALUE_BYTES,
    NameRecord,
    decode_name,
    name_key,
    sign_name,
)
from meshnode.dht.notices import (
    MAX_NOTICE_LIFETIME,
    MAX_NOTICES_PER_KEY,
    MAX_SEALED_BYTES,
    Notice,
    decode_bundle,
    decode_notice,
    encode_bundle,
    notice_key,
    sign_notice,
)
from meshnode.dht.settings import MAX_VALUE_BYTES
from meshnode.dht.validators import Validators, namespace_of
from meshnode.errors import FormatError, IntegrityError, RefusedError, UsageError
from meshnode.node.identity import Identity

GOLDEN = Path(__file__).parent / "golden"
NOW = 1_800_000_000


ALICE, BOB = (Identity.from_seed(bytes([i]) * 32) for i in (1, 2))


def a_name(
    value: bytes = b"meshnode:abc", *, sequence: int = 7, name: str = "photos"
) -> NameRecord:
    return sign_name(ALICE, name, value, sequence=sequence, expires=NOW + 3600)


def a_notice(sealed: bytes = b"sealed", *, sender: Identity = ALICE, created: int = NOW) -> Notice:
    return sign_notice(sender, BOB.peer_id, sealed, created=created, expires=created + 3600)


def repacked(encoded: bytes, index: int, field: object) -> bytes:
    fields: list[Any] = msgpack.unpackb(encoded)
    fields[index] = field
    packed: bytes = msgpack.packb(fields)
    return packed


def test_the_formats_are_those_of_the_golden_files() -> None:
    name, notice = a_name(), a_notice()
    assert name.encoded == (GOLDEN / "name-1.bin").read_bytes()
    assert notice.encoded == (GOLDEN / "notice-1.bin").read_bytes()
    bundle = encode_bundle([notice.encoded])
    assert bundle == (GOLDEN / "notice-bundle-1.bin").read_bytes()
    keys = b"\n".join(key[-32:].hex().encode() for key in (name.key, notice.key))
    assert keys == (GOLDEN / "keys-1.txt").read_bytes()


def test_a_signed_name_reads_back_as_it_was_signed() -> None:
    record = decode_name(a_name().encoded)
    assert record == a_name()
    assert (record.publisher, record.name, record.sequence) == (ALICE.peer_id, "photos", 7)
    assert not record.withdrawn
    assert a_name(b"").withdrawn


@pytest.mark.parametrize("index", range(1, 7))
def test_every_changed_field_of_a_name_breaks_its_signature(index: int) -> None:
    others = [None, bytes(BOB.peer_id), "other", 8, NOW + 3601, b"meshnode:xyz", b"s" * 64]
    with pytest.raises(IntegrityError):
        decode_name(repacked(a_name().encoded, index, others[index]))


@pytest.mark.parametrize("index", range(1, 7))
def test_every_changed_field_of_a_notice_breaks_its_signature(index: int) -> None:
    others = [None, bytes(BOB.peer_id), bytes(ALICE.peer_id), NOW + 1, NOW + 9, b"x", b"s" * 64]
    with pytest.raises(IntegrityError):
        decode_notice(repacked(a_notice().encoded, index, others[index]))


def test_a_signature_for_one_purpose_does_not_serve_another() -> None:
    """Same fields in the same order, but signed under another domain."""
    fields = [bytes(ALICE.peer_id), "photos", 7, NOW, b"v"]
    packed: bytes = msgpack.packb(fields)
    for domain in (b"", b"meshnode/notice/1\x00", b"meshnode/chunk-receipt/1\x00"):
        encoded: bytes = msgpack.packb([1, *fields, ALICE.sign(domain + packed)])
        with pytest.raises(IntegrityError):
            decode_name(encoded)


@pytest.mark.parametrize("version", [1.0, True, 2])
def test_a_record_has_one_encoding(version: object) -> None:
    """Python takes 1, 1.0 and True for equal: each would be another name for the same record."""
    for encoded, decode in ((a_name().encoded, decode_name), (a_notice().encoded, decode_notice)):
        with pytest.raises(FormatError):
            decode(repacked(encoded, 0, version))
        with pytest.raises(FormatError):
            decode(encoded + b"\xc0")
    long_form = a_name().encoded.replace(b"\xa6photos", b"\xd9\x06photos")
    assert long_form != a_name().encoded
    with pytest.raises(FormatError):
        decode_name(long_form)
    bundle = repacked(encode_bundle([a_notice().encoded]), 0, version)
    with pytest.raises(FormatError):
        decode_bundle(notice_key(BOB.peer_id), bundle)


def test_what_no_node_would_keep_is_not_signed() -> None:
    for name in ("", "n" * (MAX_NAME_BYTES + 1), "line\nbreak", "\ud800"):
        with pytest.raises(UsageError):
            sign_name(ALICE, name, b"", sequence=0, expires=NOW)
    with pytest.raises(UsageError):
        a_name(b"v" * (MAX_NAME_VALUE_BYTES + 1))
    with pytest.raises(UsageError):
        a_name(sequence=2**53)
    for sealed in (b"", b"s" * (MAX_SEALED_BYTES + 1)):
        with pytest.raises(UsageError):
            a_notice(sealed)
    expires = NOW + MAX_NOTICE_LIFETIME + 1
    with pytest.raises(UsageError):
        sign_notice(ALICE, BOB.peer_id, b"s", created=NOW, expires=expires)


def test_a_value_is_good_under_its_own_key_only() -> None:
    record = a_name()
    checked = Validators().check(record.key, record.encoded, NOW)
    assert (checked.signer, checked.expires) == (ALICE.peer_id, NOW + 3600)
    for key in (name_key(BOB.peer_id, "photos"), name_key(ALICE.peer_id, "photo")):
        with pytest.raises(IntegrityError):
            Validators().check(key, record.encoded, NOW)
    with pytest.raises(IntegrityError):
        Validators().check(manifest_key(b"d" * 32), record.encoded, NOW)
    for key in (b"/meshnode/" + b"d" * 31, b"/pk/" + b"d" * 32, notice_key(BOB.peer_id)):
        with pytest.raises(FormatError):
            Validators().check(key, record.encoded, NOW)
    with pytest.raises(FormatError):
        namespace_of(b"/ipns/" + b"d" * 32)


def test_expired_and_immortal_names_are_refused_without_blame() -> None:
    record = a_name()
    with pytest.raises(RefusedError):
        Validators().check(record.key, record.encoded, NOW + 3600)
    long = sign_name(ALICE, "n", b"", sequence=1, expires=NOW + MAX_NAME_LIFETIME + 7200)
    with pytest.raises(RefusedError):
        Validators().check(long.key, long.encoded, NOW)


def test_the_newer_name_ranks_higher_and_of_equals_the_same_one_everywhere() -> None:
    old, new, twin = a_name(), a_name(sequence=8), a_name(b"meshnode:abd")
    ranks = [Validators().check(r.key, r.encoded, NOW).rank for r in (old, new, twin)]
    assert ranks[1] == max(ranks)
    assert ranks[0] != ranks[2]


def test_a_bundle_holds_checked_notices_of_one_recipient_only() -> None:
    key, notice = notice_key(BOB.peer_id), a_notice()
    assert decode_bundle(key, encode_bundle([notice.encoded])) == [notice]
    forged = repacked(notice.encoded, 5, b"other")
    with pytest.raises(IntegrityError):
        decode_bundle(key, encode_bundle([notice.encoded, forged]))
    with pytest.raises(FormatError):
        decode_bundle(notice_key(ALICE.peer_id), encode_bundle([notice.encoded]))
    with pytest.raises(FormatError):
        decode_bundle(key, encode_bundle([notice.encoded] * (MAX_NOTICES_PER_KEY + 1)))
    with pytest.raises(FormatError):
        decode_bundle(key, b"\xc0" * (MAX_VALUE_BYTES + 1))


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300))
@example(a_name().encoded[:-1])
@example(msgpack.packb([1, [b"x"]]))
@example(msgpack.packb([1, b"", "n", 0, 0, b"", b""]))
def test_hostile_bytes_raise_format_errors_only(data: bytes) -> None:
    for decode in (decode_name, decode_notice):
        with pytest.raises(FormatError):
            decode(data)
    with suppress(FormatError):
        assert decode_bundle(notice_key(BOB.peer_id), data) == []


@settings(max_examples=60, deadline=None)
@given(
    name=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=30),
    value=st.binary(max_size=MAX_NAME_VALUE_BYTES),
    sequence=st.integers(0, 2**53 - 1),
)
def test_any_sound_name_survives_its_encoding(name: str, value: bytes, sequence: int) -> None:
    record = sign_name(ALICE, name, value, sequence=sequence, expires=NOW)
    assert decode_name(record.encoded) == record
