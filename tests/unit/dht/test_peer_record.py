"""Peer records: signed, canonical, bounded, and the same for ever."""

from __future__ import annotations

from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.dht.peer_record import (
    MAX_RECORD_BYTES,
    MAX_SEQ,
    PeerRecord,
    decode_record,
    sign_record,
)
from meshnode.errors import FormatError, IntegrityError
from meshnode.node.identity import Identity

GOLDEN = Path(__file__).parent / "golden"
REALM = bytes(range(32))
ADDRESSES = ("/ip4/192.0.2.7/tcp/4710", "/dns4/attic.example.org/tcp/4710")


ANNA = Identity.from_seed((1).to_bytes(32, "big"))


def record(**changes: object) -> PeerRecord:
    fields: dict[str, object] = {
        "seq": 1_800_000_000_000,
        "lifetime": 3600,
        "addresses": ADDRESSES,
        "zone": "attic",
        "realm": REALM,
    }
    return sign_record(ANNA, **{**fields, **changes})  # type: ignore[arg-type]


def test_the_first_records_are_what_they_always_were() -> None:
    staying = bytes.fromhex((GOLDEN / "peer-record-v1.hex").read_text())
    assert record().encoded == staying
    found = decode_record(staying, REALM)
    assert found == PeerRecord(
        ANNA.peer_id, 1_800_000_000_000, 3600, False, ADDRESSES, "attic", staying
    )
    leaving = bytes.fromhex((GOLDEN / "peer-record-leaving-v1.hex").read_text())
    assert record(addresses=(), leaving=True).encoded == leaving
    assert decode_record(leaving, REALM).leaving


def test_what_is_signed_is_void_in_another_mesh() -> None:
    encoded = record().encoded
    for realm in (b"", REALM[:-1], REALM + b"x"):
        with pytest.raises(IntegrityError):
            decode_record(encoded, realm)


def altered(position: int, value: object) -> bytes:
    fields = msgpack.unpackb(record().encoded)
    fields[position] = value
    packed: bytes = msgpack.packb(fields)
    return packed


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, 2),
        (1, bytes(Identity.from_seed((2).to_bytes(32, "big")).peer_id)),
        (2, 1_800_000_000_001),
        (3, 3601),
        (4, 1),
        (5, [ADDRESSES[0]]),
        (6, "cellar"),
        (7, bytes(64)),
    ],
)
def test_no_field_can_be_changed(position: int, value: object) -> None:
    with pytest.raises(FormatError):
        decode_record(altered(position, value), REALM)


def signed(fields: list[object]) -> bytes:
    """A record of any shape with a true signature over it."""
    body: bytes = msgpack.packb(fields)
    domain = b"meshnode/peer-record/1\x00" + bytes([len(REALM)]) + REALM
    packed: bytes = msgpack.packb([*fields, ANNA.sign(domain + body)])
    return packed


SOUND: list[object] = [1, bytes(ANNA.peer_id), 7, 3600, 0, list(ADDRESSES), ""]


def with_field(position: int, value: object) -> list[object]:
    return [*SOUND[:position], value, *SOUND[position + 1 :]]


def test_a_record_made_by_hand_is_read() -> None:
    assert decode_record(signed(SOUND), REALM).seq == 7


@pytest.mark.parametrize(
    "fields",
    [
        with_field(0, 0),
        with_field(0, 2),
        with_field(1, b"\x12\x20" + bytes(32)),
        with_field(2, 0),
        with_field(2, -1),
        with_field(2, True),
        with_field(2, 1.5),
        with_field(2, MAX_SEQ + 1),
        with_field(3, 9),
        with_field(3, 24 * 3600 + 1),
        with_field(4, 2),
        with_field(4, True),
        with_field(5, []),
        with_field(5, ["/ip4/192.0.2.7/tcp/1"] * 9),
        with_field(5, ["192.0.2.7"]),
        with_field(5, ["/ip4/192.0.2.7/tcp/1 "]),
        with_field(5, ["/dns4/ä/tcp/1"]),
        with_field(5, ["/" + "x" * 200]),
        with_field(5, [b"/ip4/192.0.2.7/tcp/1"]),
        with_field(6, "z" * 65),
        with_field(6, "a\nb"),
        SOUND[:-1],
        [*SOUND, "more"],
    ],
)
def test_what_is_out_of_bounds_is_refused_although_it_is_signed(fields: list[object]) -> None:
    with pytest.raises(FormatError):
        decode_record(signed(fields), REALM)


def test_of_several_encodings_only_one_is_taken() -> None:
    plain = signed(SOUND)
    assert plain[2:4] == b"\xc4\x26"
    longer = plain[:2] + b"\xc5\x00\x26" + plain[4:]
    assert msgpack.unpackb(longer) == msgpack.unpackb(plain)
    with pytest.raises(FormatError):
        decode_record(longer, REALM)
    with pytest.raises(FormatError):
        decode_record(plain + b"\x00", REALM)


def test_addresses_that_do_not_fit_are_left_out() -> None:
    long = [f"/dns4/{letter * 180}/tcp/4710" for letter in "abcdefgh"]
    made = record(addresses=["nonsense", *long])
    assert made.addresses == tuple(long[: len(made.addresses)])
    assert 3 <= len(made.addresses) < 8
    assert len(made.encoded) <= MAX_RECORD_BYTES
    assert len(record(addresses=[f"/ip4/192.0.2.{i}/tcp/1" for i in range(12)]).addresses) == 8


def test_what_cannot_be_said_is_not_signed() -> None:
    for changes in (
        {"addresses": ()},
        {"addresses": ["nonsense"]},
        {"seq": 0},
        {"lifetime": 1},
        {"zone": "z" * 2000},
    ):
        with pytest.raises(ValueError, match="cannot be said"):
            record(**changes)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=300))
def test_bytes_from_anywhere_are_refused_or_read_and_nothing_else(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_record(data, REALM)


@settings(deadline=None, max_examples=150)
@given(st.integers(min_value=0), st.binary(min_size=1, max_size=3))
def test_a_damaged_record_is_refused(where: int, junk: bytes) -> None:
    good = record().encoded
    at = where % len(good)
    damaged = good[:at] + junk + good[at + len(junk) :]
    if damaged != good:
        with pytest.raises(FormatError):
            decode_record(damaged, REALM)
