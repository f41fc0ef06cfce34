from __future__ import annotations

import base64

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from meshnode.errors import LinkError
from meshnode.node.content import decode_cid, encode_cid

DIGESTS = st.binary(min_size=32, max_size=32)
HELLO = "bafkr4ihkr4ld3m4gqkjf4reryxsy2s5tkbxprqkow6fin2iiyvreuzzab4"


def test_a_known_digest_has_the_cid_other_implementations_give_it() -> None:
    digest = blake3(b"hello").digest()
    assert digest.hex() == "ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f"
    assert encode_cid(digest) == HELLO
    assert base64.b32decode(HELLO[1:].upper() + "======").hex() == "01551e20" + digest.hex()


@given(DIGESTS)
def test_every_digest_survives_the_round_trip(digest: bytes) -> None:
    text = encode_cid(digest)
    assert len(text) == 59
    assert decode_cid(text) == digest


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "does not begin"),
        (HELLO[:-1], "cut short"),
        (HELLO + "a", "too long"),
        (HELLO.upper(), "upper case"),
        ("b" + HELLO[1:].upper(), "not base32"),
        (HELLO[:-1] + "1", "not base32"),
        (HELLO + "=", "not base32"),
        (HELLO[:-1] + "é", "not base32"),
        ("z" + HELLO[1:], "does not begin"),
        (HELLO[:-1] + "5", "impossible"),
        ("bafybei" + HELLO[7:], "another kind"),
        ("b" * 100_000, "too long"),
    ],
)
def test_a_wrong_cid_is_refused_and_the_error_says_why(text: str, why: str) -> None:
    with pytest.raises(LinkError, match=why) as caught:
        decode_cid(text)
    assert len(str(caught.value)) < 400


@given(DIGESTS, st.integers(0, 58), st.characters(codec="utf-8"))
def test_no_two_spellings_give_one_digest(digest: bytes, place: int, char: str) -> None:
    text = encode_cid(digest)
    other = text[:place] + char + text[place + 1 :]
    if other == text:
        return
    try:
        found = decode_cid(other)
    except LinkError:
        return
    assert found != digest


def test_a_digest_of_another_length_has_no_cid() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        encode_cid(bytes(31))
