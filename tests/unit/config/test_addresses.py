import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode.config.addresses import Address, parse_address

PEER = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


def test_an_address_is_taken_apart() -> None:
    assert parse_address(f"/dns4/a.example/tcp/1/p2p/{PEER}") == Address(
        "dns4", "a.example", 1, PEER
    )
    assert parse_address("/ip6/::1/tcp/65535") == Address("ip6", "::1", 65535, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "ip4/1.2.3.4/tcp/1",
        "/ip4/1.2.3/tcp/1",
        "/ip4/1.2.3.4/udp/1",
        "/ip4/1.2.3.4/tcp/65536",
        "/ip4/1.2.3.4/tcp/-1",
        "/ip4/1.2.3.4/tcp/²",
        "/ip4/1.2.3.4/tcp/1/",
        "/ip4/1.2.3.4/tcp/1/p2p/",
        f"/ip4/1.2.3.4/tcp/1/p2p/{PEER[:-1]}",
        f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p-circuit",
        f"/ip4/1.2.3.4/tcp/1/ipfs/{PEER}",
        "/ip6/fe80::1%eth0/tcp/1",
        "/dns/-bad-/tcp/1",
        "/dns/a..b/tcp/1",
        "/unix/a/tcp/1",
        "/dns/" + "a." * 200 + "b/tcp/1",
    ],
)
def test_an_address_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_address(text)


@given(st.text(max_size=300) | st.from_regex(r"/ip[46]/[^/]*/tcp/[^/]*(/p2p/[^/]*)?"))
def test_hostile_text_raises_nothing_but_value_error(text: str) -> None:
    try:
        parse_address(text)
    except ValueError:
        pass
    else:
        assert text.isprintable()


@pytest.mark.parametrize(
    ("text", "dialable"),
    [
        ("/ip4/0.0.0.0/tcp/1", False),
        ("/ip6/::/tcp/1", False),
        ("/ip4/1.2.3.4/tcp/0", False),
        ("/ip4/1.2.3.4/tcp/1", True),
        ("/dns/a/tcp/1", True),
    ],
)
def test_addresses_that_lead_nowhere_are_told(text: str, dialable: bool) -> None:
    assert parse_address(text).is_dialable is dialable
