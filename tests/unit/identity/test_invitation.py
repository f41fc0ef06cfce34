import base64
import re
from collections.abc import Callable

import msgpack
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.errors import FormatError, LinkError, MembershipError
from meshnode.node.identity import Invitation, Mesh
from meshnode.node.identity.invitation import MAX_TOKEN_CHARS, PREFIX

PEER = "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB"
ADDRESS = f"/ip4/192.0.2.7/tcp/4710/p2p/{PEER}"
NOW = 1_700_000_000
MESH = Mesh("home", bytes(range(32)))
TOKEN = str(Invitation(MESH, [ADDRESS], NOW + 60))


def forged(*fields: object, raw: bytes | None = None) -> str:
    payload = msgpack.packb(list(fields)) if raw is None else raw
    body = payload + blake3(payload).digest(length=8)
    return PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("=")


@settings(deadline=None, max_examples=50)
@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=64).filter(
        lambda name: name.isprintable() and name == name.strip()
    ),
    st.binary(min_size=32, max_size=32),
    st.booleans(),
    st.lists(st.sampled_from([ADDRESS, f"/dns/a.b/tcp/1/p2p/{PEER}"]), max_size=2),
    st.integers(NOW + 1, NOW * 10),
)
def test_a_token_carries_the_whole_invitation(
    name: str, secret: bytes, is_open: bool, addresses: list[str], expires: int
) -> None:
    invitation = Invitation(Mesh(name, secret, is_open), addresses, expires)
    token = str(invitation)
    assert re.fullmatch(r"meshnode-invite:[A-Za-z0-9_-]+", token)
    assert Invitation.parse(token, now=NOW) == invitation
    assert invitation.addresses == tuple(dict.fromkeys(addresses))


def test_the_largest_invitation_fits() -> None:
    host = ".".join(["a" * 60] * 3)
    addresses = [f"/dns/{host}/tcp/{port}/p2p/{PEER}"[:256] for port in range(1, 30)]
    invitation = Invitation(Mesh("山" * 64, bytes(32)), addresses, NOW + 1)
    assert len(invitation.addresses) == 16
    assert len(str(invitation)) <= MAX_TOKEN_CHARS
    assert Invitation.parse(str(invitation), now=NOW) == invitation


def test_wrapped_and_indented_tokens_are_read() -> None:
    wrapped = "\n   ".join(TOKEN[start : start + 40] for start in range(0, len(TOKEN), 40))
    assert Invitation.parse(f"  {wrapped}\r\n", now=NOW).mesh.id == MESH.id


@pytest.mark.parametrize("cut", [len(PREFIX), len(PREFIX) + 3, 60, len(TOKEN) - 1])
def test_a_cut_token_is_recognised(cut: int) -> None:
    with pytest.raises(LinkError, match=r"incomplete or mistyped.*Copy the whole line"):
        Invitation.parse(TOKEN[:cut], now=NOW)


@given(st.integers(len(PREFIX), len(TOKEN) - 1), st.sampled_from("AZaz09-_"))
def test_a_mistyped_token_is_recognised(place: int, letter: str) -> None:
    mistyped = TOKEN[:place] + letter + TOKEN[place + 1 :]
    if mistyped == TOKEN:
        return
    with pytest.raises(LinkError, match="mistyped"):
        Invitation.parse(mistyped, now=NOW)


def test_a_token_made_longer_is_recognised() -> None:
    for extra in ("A", "AAAA", "=", "!"):
        with pytest.raises(LinkError, match="mistyped"):
            Invitation.parse(TOKEN + extra, now=NOW)


@pytest.mark.parametrize("text", ["", "hello", "meshnode:bafy#key", TOKEN[1:]])
def test_what_is_no_token_is_told_so(text: str) -> None:
    with pytest.raises(LinkError, match="starts with meshnode-invite:"):
        Invitation.parse(text)


def test_an_expired_token_tells_the_date_and_the_next_step() -> None:
    token = str(Invitation(MESH, [], 1_600_000_000))
    with pytest.raises(
        MembershipError, match=r"expired on 2020-09-13 at 12:26 UTC.*meshnode invite"
    ):
        Invitation.parse(token)
    assert Invitation.parse(token, now=1_599_999_999).mesh.id == MESH.id


def test_a_token_of_a_newer_version_says_so() -> None:
    with pytest.raises(LinkError, match=r"version 2.*Install"):
        Invitation.parse(forged(2, "anything", {"x": 1}))


GOOD = [1, MESH.id, "home", MESH.secret, False, [ADDRESS], NOW + 60]


def replaced(index: int, value: object) -> list[object]:
    return [*GOOD[:index], value, *GOOD[index + 1 :]]


def test_the_forgery_in_these_tests_is_itself_a_good_token() -> None:
    assert forged(*GOOD) == TOKEN


@pytest.mark.parametrize(
    "fields",
    [
        [],
        GOOD[:-1],
        [*GOOD, 0],
        replaced(0, True),
        replaced(0, 0),
        replaced(1, bytes(16)),
        replaced(1, bytes(15)),
        replaced(2, b"home"),
        replaced(2, "\x1b[2J"),
        replaced(3, bytes(31)),
        replaced(4, 1),
        replaced(4, True),
        replaced(5, "x"),
        replaced(5, [1]),
        replaced(5, ["/ip4/1.2.3.4/tcp/1"]),
        replaced(5, [f"/ip4/1.2.3.{n}/tcp/1/p2p/{PEER}" for n in range(17)]),
        replaced(6, -1),
        replaced(6, 2**63),
        replaced(6, 1.5),
        replaced(6, True),
    ],
)
def test_a_forged_token_with_a_right_checksum_is_refused(fields: list[object]) -> None:
    with pytest.raises(LinkError):
        Invitation.parse(forged(*fields), now=NOW)


def test_a_token_written_in_another_than_the_canonical_way_is_refused() -> None:
    loose = msgpack.packb(GOOD).replace(b"\xa4home", b"\xd9\x04home")
    with pytest.raises(LinkError, match="malformed"):
        Invitation.parse(forged(raw=loose), now=NOW)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200), st.sampled_from([lambda raw: forged(raw=raw), bytes.hex]))
def test_hostile_payloads_raise_nothing_but_link_error(
    raw: bytes, dress: Callable[[bytes], str]
) -> None:
    with pytest.raises(LinkError):
        Invitation.parse(dress(raw), now=NOW)


def test_a_huge_text_is_refused() -> None:
    with pytest.raises(LinkError, match="too long"):
        Invitation.parse(PREFIX + "A" * 10_000_000)


def test_an_invitation_through_an_undialable_address_cannot_be_made() -> None:
    with pytest.raises(FormatError, match=r"0\.0\.0\.0"):
        Invitation(MESH, [f"/ip4/0.0.0.0/tcp/1/p2p/{PEER}"], NOW)


def test_the_secret_is_not_in_the_repr() -> None:
    assert "secret" not in repr(Invitation(MESH, [], NOW))
