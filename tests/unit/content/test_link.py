from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode.errors import LinkError
from meshnode.node.content import Link

DIGEST = bytes(range(32))
KEY = bytes(range(200, 232))
LINK = Link(DIGEST, KEY)
TEXT = str(LINK)
B32 = st.binary(min_size=32, max_size=32)


@given(B32, st.none() | B32)
def test_every_link_survives_the_round_trip(digest: bytes, key: bytes | None) -> None:
    link = Link(digest, key)
    assert Link.parse(str(link)) == link
    assert ("#" in str(link)) is (key is not None)


def test_white_space_around_a_link_is_forgiven() -> None:
    assert Link.parse(f" \t{TEXT}\r\n") == LINK


def test_only_str_shows_the_key() -> None:
    key_text = TEXT.partition("#")[2]
    assert len(key_text) == 43
    for shown in (repr(LINK), f"{[LINK]}", LINK.cid):
        assert key_text not in shown
        assert repr(KEY) not in shown
    assert LINK.cid in repr(LINK)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "does not begin with 'meshnode:'"),
        ("https://example.org/", "does not begin"),
        ("Meshnode:" + TEXT[9:], "does not begin"),
        ("mesh", "does not begin"),
        ("meshnode:", "does not begin with 'b'"),
        ("meshnode:#" + TEXT.partition("#")[2], "does not begin with 'b'"),
        (TEXT[:40], "cut short"),
        (TEXT[:-1], "key .* is cut short"),
        (TEXT.partition("#")[0] + "#", "key .* is cut short"),
        (TEXT + "A", "key .* is too long"),
        (TEXT + "=", "characters that no key has"),
        (TEXT[:-3] + "\n" + TEXT[-2:], "characters that no key has"),
        (TEXT[:-3] + "#" + TEXT[-2:], "characters that no key has"),
        (TEXT[:-3] + "+" + TEXT[-2:], "characters that no key has"),
        (TEXT[:-1] + "B", "last character is impossible"),
        (TEXT.replace("#", " #"), "not base32"),
    ],
)
def test_a_wrong_link_is_refused_and_the_error_says_which_part(text: str, why: str) -> None:
    with pytest.raises(LinkError, match=why):
        Link.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        TEXT[:-1],
        TEXT + "A",
        TEXT[:-2] + "==",
        TEXT[9:],
        TEXT[:-1] + "B",
        TEXT.replace("#", ""),
        TEXT[69:],
    ],
)
def test_an_error_about_a_link_never_repeats_its_key(text: str) -> None:
    with pytest.raises(LinkError) as caught:
        Link.parse(text)
    assert TEXT.partition("#")[2][:13] not in str(caught.value)


@given(st.text(max_size=200))
def test_no_text_raises_anything_but_a_link_error(text: str) -> None:
    for candidate in (text, "meshnode:" + text, TEXT[:68] + "#" + text):
        try:
            assert str(Link.parse(candidate)) == candidate.strip()
        except LinkError:
            continue


def test_a_link_cannot_be_made_with_a_short_digest_or_key() -> None:
    with pytest.raises(ValueError, match="digest"):
        Link(bytes(31))
    with pytest.raises(ValueError, match="key"):
        Link(DIGEST, b"short")
