"""Descriptions of peers: what is sent, what is believed, what is left out."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.identity.identify.pb.identify_pb2 import Identify
from meshnode.dht.peer_id import PeerId
from meshnode.errors import FormatError
from meshnode.node.transport.identify_wire import (
    MAX_IDENTIFY_BYTES,
    Description,
    decode_description,
    encode_description,
    pack_address,
    unpack_address,
)
from multiaddr import Multiaddr

PEER = PeerId.from_ed25519(bytes(range(32)))
OTHER = PeerId.from_ed25519(bytes(range(1, 33)))
ADDRESSES = [
    "/ip4/192.0.2.7/tcp/4710",
    "/ip6/2001:db8::7/tcp/4710",
    "/dns/example.org/tcp/443",
    "/dns4/example.org/tcp/1",
    "/dns6/a.b-c.example/tcp/65535",
]
WHOLE = Description(
    PEER,
    tuple(ADDRESSES),
    ("/ipfs/ping/1.0.0", "/a/1"),
    observed="/ip4/198.51.100.1/tcp/50000",
    agent="meshnode/1.2.3",
    protocol_version="ipfs/0.1.0",
)


def test_the_librarys_protobuf_reads_our_description() -> None:
    told = Identify.FromString(encode_description(WHOLE))
    assert told.public_key == bytes.fromhex("08011220") + PEER.ed25519_public_key
    assert [str(Multiaddr(data)) for data in told.listen_addrs] == ADDRESSES
    assert list(told.protocols) == ["/ipfs/ping/1.0.0", "/a/1"]
    assert str(Multiaddr(told.observed_addr)) == WHOLE.observed
    assert (told.agent_version, told.protocol_version) == ("meshnode/1.2.3", "ipfs/0.1.0")


def test_what_we_encode_we_decode() -> None:
    assert decode_description(encode_description(WHOLE)) == WHOLE


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_are_packed_as_the_multiaddr_library_packs_them(address: str) -> None:
    assert pack_address(address) == Multiaddr(address).to_bytes()
    assert unpack_address(pack_address(address)) == address


def test_a_peer_id_behind_an_address_is_left_out() -> None:
    assert unpack_address(Multiaddr(f"{ADDRESSES[0]}/p2p/{PEER}").to_bytes()) == ADDRESSES[0]


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/192.0.2.7/udp/4710/quic-v1",
        "/ip4/192.0.2.7/tcp/4710/ws",
        "/ip4/192.0.2.7",
        f"/ip4/192.0.2.7/tcp/4710/p2p/{PEER}/p2p-circuit",
        f"/ip4/192.0.2.7/tcp/4710/p2p/{PEER}/p2p-circuit/p2p/{OTHER}",
        "/unix/tmp/socket",
    ],
)
def test_addresses_we_cannot_dial_are_left_out(address: str) -> None:
    told = Identify(
        listen_addrs=[Multiaddr(address).to_bytes(), Multiaddr(ADDRESSES[0]).to_bytes()]
    )
    assert decode_description(told.SerializeToString()).listen == (ADDRESSES[0],)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x04",
        b"\x04\x7f\x00\x00",
        pack_address(ADDRESSES[0])[:-1],
        pack_address(ADDRESSES[0]) + b"\xa5\x03\x26x",
        b"\x35\xff" + bytes(200),
        b"\x35\x04a..b\x06\x00\x01",
        b"\x35\x04a\x00\nb\x06\x00\x01",
    ],
)
def test_bytes_that_are_no_address_are_left_out(data: bytes) -> None:
    assert unpack_address(data) is None


def test_keys_of_kinds_we_do_not_know_name_nobody() -> None:
    told = Identify(public_key=b"\x08\x00\x12\x04abcd", agent_version="rsa")
    assert decode_description(told.SerializeToString()) == Description(None, agent="rsa")


def test_texts_that_could_harm_a_terminal_or_are_too_long_are_left_out() -> None:
    told = Identify(
        agent_version="\x1b[31mred", protocols=["/a/1", "/b\n/1", "x" * 129, "/a/1", ""]
    )
    assert decode_description(told.SerializeToString()) == Description(None, protocols=("/a/1",))


def test_of_too_many_names_and_addresses_the_first_are_kept() -> None:
    names = [f"/{number}" for number in range(1000)]
    assert decode_description(Identify(protocols=names).SerializeToString()).protocols == tuple(
        names[:256]
    )
    packed = [pack_address(f"/ip4/192.0.2.7/tcp/{port}") for port in range(1, 100)]
    told = decode_description(Identify(listen_addrs=packed).SerializeToString())
    assert len(told.listen) == 32


def test_a_description_beyond_the_bound_is_refused() -> None:
    with pytest.raises(FormatError, match="8193 bytes"):
        decode_description(bytes(MAX_IDENTIFY_BYTES + 1))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400) | st.binary(max_size=60).map(lambda data: b"\x12\x3c" + data))
def test_any_bytes_are_a_description_or_a_format_error(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        told = decode_description(data)
        assert decode_description(encode_description(told)) == told
