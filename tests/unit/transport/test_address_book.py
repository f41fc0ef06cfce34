"""Addresses come from strangers: only sound ones are kept, and not too many."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.dht.peer_id import PeerId
from meshnode.node.transport.address_book import AddressBook

ME = PeerId.from_ed25519(bytes(32))
PEER = PeerId.from_ed25519(bytes([1]) * 32)


def address(number: int) -> str:
    return f"/ip4/192.0.2.{number}/tcp/4001"


def test_the_newest_addresses_come_first_and_the_count_is_bounded() -> None:
    book = AddressBook(ME, per_peer=3)
    book.add(PEER, [address(1), address(2)])
    book.add(PEER, [address(3), address(4)])
    assert book.get(PEER) == [address(3), address(4), address(1)]


def test_false_addresses_never_displace_the_one_that_answered() -> None:
    book = AddressBook(ME, per_peer=3)
    book.add(PEER, [address(1)])
    book.prefer(PEER, address(1))
    book.add(PEER, [address(number) for number in range(100, 120)])
    assert book.get(PEER) == [address(1), address(100), address(101)]


def test_an_address_that_answered_later_takes_the_place_of_the_earlier_one() -> None:
    book = AddressBook(ME, per_peer=2)
    book.add(PEER, [address(1), address(2)])
    book.prefer(PEER, address(1))
    book.prefer(PEER, address(2))
    book.add(PEER, [address(3), address(4)])
    assert book.get(PEER) == [address(2), address(3)]


def test_only_a_new_address_counts_as_news() -> None:
    book = AddressBook(ME)
    assert book.add(PEER, [address(1)])
    assert not book.add(PEER, [address(1)])
    assert book.add(PEER, [address(1), address(2)])


def test_an_address_that_answered_is_preferred() -> None:
    book = AddressBook(ME)
    book.add(PEER, [address(1), address(2)])
    book.prefer(PEER, address(2))
    book.prefer(PEER, address(9))
    assert book.get(PEER) == [address(2), address(1)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "/ip4/0.0.0.0/tcp/4001",
        "/ip6/::/tcp/4001",
        "/ip4/192.0.2.1/tcp/0",
        "/ip4/224.0.0.1/tcp/4001",
        "/ip4/192.0.2.1/udp/4001",
        "/ip4/192.0.2.256/tcp/4001",
        f"/ip4/192.0.2.1/tcp/4001/p2p/{ME}",
        "/unix/tmp/socket",
    ],
)
def test_what_cannot_be_dialled_is_ignored(text: str) -> None:
    book = AddressBook(ME)
    assert not book.add(PEER, [text])
    assert book.get(PEER) == []


def test_our_own_addresses_are_not_a_peer() -> None:
    book = AddressBook(ME)
    assert not book.add(ME, [address(1)])


def test_addresses_are_kept_in_one_spelling() -> None:
    book = AddressBook(ME)
    book.add(PEER, [f"/ip6/2001:DB8:0::1/tcp/04001/p2p/{PEER}", "/ip6/2001:db8::1/tcp/4001"])
    assert book.get(PEER) == ["/ip6/2001:db8::1/tcp/4001"]


def test_the_peers_heard_of_longest_ago_are_forgotten_first() -> None:
    book = AddressBook(ME, peers=2)
    peers = [PeerId.from_ed25519(bytes([n]) * 32) for n in (1, 2, 3)]
    for peer in peers:
        book.add(peer, [address(1)])
    assert [bool(book.get(peer)) for peer in peers] == [False, True, True]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=60) | st.just("/ip4/1.2.3.4/tcp/5"), max_size=5))
def test_no_text_breaks_the_book(texts: list[str]) -> None:
    book = AddressBook(ME)
    book.add(PEER, texts)
    assert book.get(PEER) in ([], ["/ip4/1.2.3.4/tcp/5"])


def test_peers_only_talked_about_never_displace_one_that_answered() -> None:
    book = AddressBook(ME, peers=10)
    where = "/ip4/192.0.2.1/tcp/4710"
    friend = PeerId.from_ed25519(bytes([200]) * 32)
    book.add(friend, [where])
    book.prefer(friend, where)
    for number in range(1, 100):
        book.add(PeerId.from_ed25519(bytes([number]) * 32), [where])
    assert book.get(friend) == [where]
    assert len(book._known) == len(book._hearsay) + len(book._met) == 10
