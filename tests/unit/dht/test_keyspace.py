from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.dht.keyspace import (
    PeerIndex,
    chunk_key,
    common_bits,
    digest_of_chunk_key,
    digest_of_manifest_key,
    manifest_key,
    peer_position,
    position,
)
from meshnode.dht.peer_id import PeerId
from meshnode.errors import FormatError

peers = st.lists(st.binary(min_size=32, max_size=32).map(PeerId.from_ed25519), max_size=60)
positions = st.integers(min_value=0, max_value=2**256 - 1)


@settings(deadline=None, max_examples=150)
@given(peers, positions, st.integers(min_value=1, max_value=25))
def test_the_index_names_the_same_nearest_peers_as_sorting_all_of_them(
    known: list[PeerId], target: int, count: int
) -> None:
    naive = sorted(set(known), key=lambda peer: peer_position(peer) ^ target)[:count]
    index = PeerIndex(known)
    assert index.closest(target, count) == naive
    for peer in known:
        assert index.is_among_closest(peer, target, count) == (peer in naive)


@settings(deadline=None, max_examples=100)
@given(peers, st.integers(min_value=0, max_value=256), st.integers(min_value=0, max_value=59))
def test_the_index_lists_exactly_the_peers_that_share_a_prefix(
    known: list[PeerId], bits: int, which: int
) -> None:
    target = peer_position(known[which % len(known)]) if known else 0
    sharing = {peer for peer in known if common_bits(peer_position(peer), target) >= bits}
    assert set(PeerIndex(known).under(target, bits)) == sharing


def test_positions_are_sha256_as_the_kad_specification_says() -> None:
    assert position(b"key") == int.from_bytes(hashlib.sha256(b"key").digest(), "big")
    assert common_bits(0, 0) == 256
    assert common_bits(0, 1 << 255) == 0
    assert common_bits(0b11, 0b10) == 255


def test_chunks_are_keyed_by_their_multihash_and_manifests_by_namespace() -> None:
    digest = bytes(range(32))
    assert chunk_key(digest) == b"\x1e\x20" + digest
    assert digest_of_chunk_key(chunk_key(digest)) == digest
    assert digest_of_manifest_key(manifest_key(digest)) == digest
    for bad in (
        b"",
        digest,
        chunk_key(digest)[:-1],
        chunk_key(digest) + b"x",
        b"\x12\x20" + digest,
    ):
        with pytest.raises(FormatError):
            digest_of_chunk_key(bad)
        with pytest.raises(FormatError):
            digest_of_manifest_key(bad)
