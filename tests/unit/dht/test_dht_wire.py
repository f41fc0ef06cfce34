"""Both wire formats and the frames around them: round trips, bounds, hostile bytes."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from libp2p.kad_dht.pb import kademlia_pb2 as pb
from meshnode.dht.framing import decode_length, encode_frame, encode_length
from meshnode.dht.kad_wire import (
    MAX_PEERS_PER_MESSAGE,
    KadMessage,
    Kind,
    PeerAddresses,
    decode_message,
    encode_message,
)
from meshnode.dht.peer_id import PeerId
from meshnode.dht.plain_msgpack import unpack
from meshnode.dht.records_wire import (
    Announce,
    Find,
    Found,
    Holder,
    HolderPeer,
    Near,
    Neighbours,
    Refused,
    Verdict,
    Verdicts,
    Withdraw,
    Withdrawn,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from meshnode.dht.settings import MAX_KEYS_PER_MESSAGE, MAX_VALUE_BYTES
from meshnode.errors import FormatError

peer_ids = st.binary(min_size=32, max_size=32).map(PeerId.from_ed25519)
addresses = st.builds("/ip4/10.0.0.{}/tcp/{}".format, st.integers(0, 255), st.integers(1, 65535))
address_lists = st.lists(addresses, max_size=4).map(tuple)
peers = st.builds(PeerAddresses, peer_ids, address_lists)
digests = st.binary(min_size=32, max_size=32)
digest_lists = st.lists(digests, max_size=8).map(tuple)
u32 = st.integers(0, 2**32 - 1)
zones = st.text("abc-é1", max_size=64)


def unique(found: list[PeerAddresses]) -> tuple[PeerAddresses, ...]:
    return tuple({entry.peer: entry for entry in found}.values())


peer_lists = st.lists(peers, max_size=5).map(unique)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(Kind),
    st.binary(max_size=128),
    st.none() | st.binary(max_size=200),
    peer_lists,
    peer_lists,
)
def test_kad_messages_come_back_as_they_went(
    kind: Kind, key: bytes, value: bytes | None, closer: Any, providers: Any
) -> None:
    message = KadMessage(kind, key, value, closer, providers)
    assert decode_message(encode_message(message)) == message


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300))
def test_no_bytes_make_the_kad_decoder_raise_anything_but_a_format_error(data: bytes) -> None:
    try:
        decode_message(data)
    except FormatError:
        return


def test_kad_messages_out_of_bounds_are_refused_or_cut() -> None:
    def encoded(**fields: Any) -> bytes:
        return bytes(pb.Message(**fields).SerializeToString())

    for bad in (
        encoded(type=pb.Message.FIND_NODE, key=b"k" * 129),
        encoded(type=pb.Message.PUT_VALUE, key=b"k", record=pb.Record(key=b"other", value=b"v")),
        encoded(
            type=pb.Message.PUT_VALUE,
            key=b"k",
            record=pb.Record(key=b"k", value=bytes(MAX_VALUE_BYTES + 1)),
        ),
        b"\x08\x63",  # message type 99
        bytes(200_000),
    ):
        with pytest.raises(FormatError):
            decode_message(bad)
    flood = [
        pb.Message.Peer(id=bytes(PeerId.from_ed25519(i.to_bytes(32, "big"))), addrs=[b"junk"] * 20)
        for i in range(300)
    ]
    flood.insert(0, pb.Message.Peer(id=b"not a peer id"))
    parsed = decode_message(encoded(type=pb.Message.FIND_NODE, closerPeers=flood))
    assert len(parsed.closer) == MAX_PEERS_PER_MESSAGE - 1
    assert all(entry.addresses == () for entry in parsed.closer)


requests = (
    st.builds(
        lambda zone, ttl, chunks: Announce(
            zone, ttl, tuple(d for d, _ in chunks), tuple(s for _, s in chunks)
        ),
        zones,
        st.integers(1, 2**31 - 1),
        st.lists(st.tuples(digests, u32), max_size=8),
    )
    | st.builds(Find, digest_lists, st.integers(1, 20))
    | st.builds(Withdraw, digest_lists)
    | st.builds(Near, st.lists(st.integers(0, 2**256 - 1), max_size=8).map(tuple), address_lists)
)


@settings(deadline=None, max_examples=150)
@given(requests)
def test_requests_come_back_as_they_went(request: Any) -> None:
    assert decode_request(encode_request(request)) == request


holder_tables = st.lists(
    st.builds(HolderPeer, peer_ids, zones, address_lists), min_size=1, max_size=4
)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_answers_come_back_as_they_went(data: st.DataObject) -> None:
    table = tuple(data.draw(holder_tables))
    holder = st.builds(Holder, st.integers(0, len(table) - 1), u32, u32)
    rows = tuple(
        tuple(row) for row in data.draw(st.lists(st.lists(holder, max_size=4), max_size=5))
    )
    verdicts = tuple(data.draw(st.lists(st.sampled_from(Verdict), max_size=9)))
    near = Neighbours(data.draw(st.integers(0, 256)), data.draw(peer_lists))
    for answer, keys in (
        (Found(table, rows), len(rows)),
        (Verdicts(verdicts), len(verdicts)),
        (Withdrawn(2), 3),
        (near, 0),
    ):
        assert decode_answer(encode_answer(answer), type(answer), keys) == answer
        for refused in (Refused("no"), Refused("busy", 0.25)):
            assert decode_answer(encode_answer(refused), type(answer), keys) == refused


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**40)
    | st.binary(max_size=70)
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200) | st.lists(plain, max_size=6).map(msgpack.packb))
def test_no_bytes_make_the_records_decoders_raise_anything_but_a_format_error(data: bytes) -> None:
    for attempt in (
        lambda: decode_request(data),
        lambda: decode_answer(data, Found, 2),
        lambda: decode_answer(data, Verdicts, 2),
        lambda: decode_answer(data, Neighbours, 2),
        lambda: decode_answer(data, Withdrawn, 2),
    ):
        try:
            attempt()
        except FormatError:
            continue


def array(items: list[bytes]) -> bytes:
    return bytes([0x90 | len(items)]) + b"".join(items)


def mapping(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return bytes([0x80 | len(pairs)]) + b"".join(key + value for key, value in pairs)


def extension(code: int, data: bytes) -> bytes:
    return bytes([0xC7, len(data), code]) + data


anything = st.recursive(
    plain.map(msgpack.packb)
    | st.floats().map(msgpack.packb)
    | st.builds(extension, st.integers(0, 255), st.binary(max_size=13)),
    lambda inner: (
        st.lists(inner, max_size=5).map(array)
        | st.lists(st.tuples(inner, inner), max_size=3).map(mapping)
    ),
    max_leaves=12,
)
"""Any msgpack, of whatever types and keys, valid or nearly so."""

answer_heads = st.sampled_from([b"\x00", b"\x01", b"\x02", b"\x03", b"\x04"])


@settings(deadline=None, max_examples=200)
@given(
    anything
    | st.tuples(answer_heads, st.lists(anything, max_size=4)).map(
        lambda parts: array([parts[0], *parts[1]])
    )
)
@example(b"\x81\x90\x01")
@example(array([b"\x04", b"\x00", array([b"\x81\x90\x01"])]))
@example(array([b"\x02", b"\x81\x81\x01\x01\x01", b"\x90"]))
@example(b"\x80")
@example(b"\xdd\x00\x0f\xff\xff" * 500)
def test_no_msgpack_makes_the_records_decoders_raise_anything_but_a_format_error(
    data: bytes,
) -> None:
    for attempt in (
        lambda: decode_request(data),
        lambda: decode_answer(data, Found, 2),
        lambda: decode_answer(data, Neighbours, 2),
    ):
        try:
            attempt()
        except FormatError:
            continue


@pytest.mark.parametrize(
    "bad", [b"\x81\xa1a\x01", b"\xc7\x00\x05", b"\xc0\xc0", array([b"\x81\x01\x01"])]
)
def test_maps_extensions_and_second_values_are_not_msgpack_we_speak(bad: bytes) -> None:
    with pytest.raises(FormatError):
        unpack(bad)


wire_fields = st.lists(
    st.tuples(st.integers(1, 12), st.integers(0, 5), st.binary(max_size=40)), max_size=6
)


@settings(deadline=None, max_examples=300)
@given(wire_fields)
def test_no_protobuf_makes_the_kad_decoder_raise_anything_but_a_format_error(fields: Any) -> None:
    data = b""
    for number, kind, body in fields:
        data += bytes([number << 3 | kind & 7])
        data += bytes([len(body)]) + body if kind == 2 else body[:8]
    try:
        decode_message(data)
    except FormatError:
        return


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=60) | st.binary(max_size=20).map(lambda b: b"\xa5\x03" + b)))
def test_addresses_of_any_bytes_are_dropped_or_come_back_as_text(found: list[bytes]) -> None:
    peer = pb.Message.Peer(id=bytes(PeerId.from_ed25519(bytes(32))), addrs=found)
    data = pb.Message(type=pb.Message.FIND_NODE, closerPeers=[peer]).SerializeToString()
    (entry,) = decode_message(data).closer
    encode_message(KadMessage(Kind.FIND_NODE, closer=(entry,)))


@pytest.mark.parametrize(
    "bad",
    [
        [1, "", 60, b"d" * 32, b""],
        [1, "", 0, b"d" * 32, b"\0" * 4],
        [1, "z" * 65, 60, b"", b""],
        [1, "", 60, b"d" * 31, b"\0" * 4],
        [2, b"d" * 32 * (MAX_KEYS_PER_MESSAGE + 1), 1],
        [2, b"d" * 32, 21],
        [4, b"t" * 32 * 65, []],
        [4, b"", ["/ip4/" + "1" * 300]],
        [9],
        [],
    ],
)
def test_requests_out_of_bounds_are_refused(bad: list[object]) -> None:
    with pytest.raises(FormatError):
        decode_request(msgpack.packb(bad))


@pytest.mark.parametrize(
    "bad",
    [
        [2, [], b"\1", b"\0" * 10],  # a holder that is in no table
        [2, [], b"\1", b""],
        [2, [], b"\x15", b"\0" * 210],
        [2, [[b"bad id", "", []]], b"\0", b""],
        [1, b"\x09"],
        [3, 2],
        [1, b""],
        [0, "busy", -1],
        [0, "busy", 2**40],
        [0, "busy", float("nan")],
    ],
)
def test_answers_that_do_not_fit_the_question_are_refused(bad: list[object]) -> None:
    for expected in (Found, Verdicts, Withdrawn):
        with pytest.raises(FormatError):
            decode_answer(msgpack.packb(bad), expected, 1)


@settings(deadline=None)
@given(st.integers(0, 2**35 - 1), st.binary(max_size=9))
def test_frame_lengths_come_back_whatever_follows(length: int, rest: bytes) -> None:
    encoded = encode_length(length)
    assert decode_length(encoded + rest) == (length, len(encoded))
    assert decode_length(encoded[:-1]) is None


def test_a_frame_length_without_end_is_refused() -> None:
    with pytest.raises(FormatError):
        decode_length(b"\xff" * 5)
    assert encode_frame(b"abc") == b"\x03abc"
