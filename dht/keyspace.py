"""Where keys and peers lie: SHA-256 positions, XOR distance (libp2p kad-dht specification).

A position is an integer of 256 bits. Chunk records live at the position of the chunk's multihash,
so that a standard client asking GET_PROVIDERS finds them; manifests live under a namespaced key.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache

from ..errors import FormatError, UsageError
from .peer_id import PeerId

BITS = 256
DIGEST_BYTES = 32
_BLAKE3_MULTIHASH = b"\x1e\x20"
_CROWD = 8
_CROWDED = 4
MANIFEST_NAMESPACE = b"/meshnode/"


def check_digest(digest: bytes) -> None:
    """Check what a caller of ours passes as a digest.

    Raises:
        UsageError: not 32 bytes.
    """
    if len(digest) != DIGEST_BYTES:
        raise UsageError(f"{bytes(digest[:40]).hex() or 'nothing'} is not a digest of 32 bytes.")


def chunk_key(digest: bytes) -> bytes:
    """The key of a chunk's records on the standard wire: its BLAKE3-256 multihash."""
    return _BLAKE3_MULTIHASH + digest


def manifest_key(digest: bytes) -> bytes:
    """The key of a manifest on the standard wire."""
    return MANIFEST_NAMESPACE + digest


def digest_of_chunk_key(key: bytes) -> bytes:
    """The digest inside a `chunk_key`.

    Raises:
        FormatError: not a BLAKE3-256 multihash.
    """
    return _strip(key, _BLAKE3_MULTIHASH, "a BLAKE3-256 multihash")


def digest_of_manifest_key(key: bytes) -> bytes:
    """The digest inside a `manifest_key`.

    Raises:
        FormatError: of another namespace or length.
    """
    return _strip(key, MANIFEST_NAMESPACE, "a manifest key")


def _strip(key: bytes, prefix: bytes, what: str) -> bytes:
    if len(key) != len(prefix) + DIGEST_BYTES or not key.startswith(prefix):
        raise FormatError(f"The key {key[:40].hex()} is not {what}.")
    return key[len(prefix) :]


def position(key: bytes) -> int:
    """Where `key` lies."""
    return int.from_bytes(hashlib.sha256(key).digest(), "big")


@lru_cache(maxsize=16384)
def peer_position(peer: PeerId) -> int:
    """Where `peer` lies."""
    return int.from_bytes(peer.kad_id, "big")


def chunk_position(digest: bytes) -> int:
    return position(_BLAKE3_MULTIHASH + digest)


def manifest_position(digest: bytes) -> int:
    return position(MANIFEST_NAMESPACE + digest)


def common_bits(a: int, b: int) -> int:
    """Length of the common prefix of two positions: 256 for equal ones."""
    return BITS - (a ^ b).bit_length()


class PeerIndex:
    """An immutable set of peers sorted by position: many nearest-peer questions, fast.

    The nearest peers of a target share the longest prefixes with it, so they are found inside one
    contiguous range of the sorted positions. Targets that share their first bits share that range,
    so it is kept: a thousand targets among five hundred peers fall into a few dozen ranges.
    """

    __slots__ = ("_peer_at", "_pools", "_positions")

    def __init__(self, peers: Iterable[PeerId]) -> None:
        self._peer_at = {peer_position(peer): peer for peer in peers}
        self._positions = sorted(self._peer_at)
        self._pools: dict[tuple[int, int], list[int]] = {}

    def __len__(self) -> int:
        return len(self._positions)

    def __contains__(self, peer: PeerId) -> bool:
        return peer_position(peer) in self._peer_at

    def closest(self, target: int, count: int) -> list[PeerId]:
        """The `count` peers nearest to `target`, nearest first; fewer when there are fewer."""
        near = sorted(self._pool(target, count), key=target.__xor__)
        return [self._peer_at[at] for at in near[:count]]

    def _pool(self, target: int, count: int) -> list[int]:
        """Positions among which the `count` nearest to `target` are."""
        bits = (len(self._positions) // max(1, count)).bit_length()
        key = count, target >> (BITS - bits)
        pool = self._pools.get(key)
        if pool is None:
            low, high = self._smallest_range_with(target, count, bits)
            pool = self._pools[key] = self._positions[low:high]
        if len(pool) > _CROWD * count:
            # Peers are spread evenly, unless somebody made them crowd together.
            low, high = self._smallest_range_with(target, count, BITS)
            return self._positions[low:high]
        return pool

    def responsible(self, target: int, count: int, mesh_size: float) -> list[PeerId]:
        """The peers for a key at `target` in a mesh of `mesh_size`: mostly the `count` nearest.

        When these lie much nearer than chance puts them, somebody may have placed peers around the
        key to have it to themselves (Sridhar et al., "Content censorship in IPFS", 2024). Then as
        many more are taken, one out of each cell of the distance within which `count` peers are
        to be expected: whoever crowds the first cell, is alone in that one only.
        """
        near = self.closest(target, count)
        if len(near) < count or len(self) <= 2 * count:
            return near
        expected = int(count / max(mesh_size, 1.0) * 2.0**BITS)
        if _CROWDED * (peer_position(near[-1]) ^ target) >= expected:
            return near
        return list(dict.fromkeys([*near, *self._one_per_cell(target, count, expected)]))

    def _one_per_cell(self, target: int, cells: int, reach: int) -> list[PeerId]:
        low, high = self._range(target, max(0, BITS - reach.bit_length()))
        nearest: dict[int, int] = {}
        for at in self._positions[low:high]:
            distance = at ^ target
            cell = distance * cells // reach
            if cell < cells:
                nearest[cell] = min(distance, nearest.get(cell, distance))
        return [self._peer_at[distance ^ target] for _, distance in sorted(nearest.items())]

    def is_among_closest(self, peer: PeerId, target: int, count: int) -> bool:
        """Whether `peer` is one of the `count` peers nearest to `target`."""
        shared = common_bits(peer_position(peer), target)
        # All that share more bits with the target are nearer to it: mostly that settles it.
        low, high = self._range(target, min(shared + 1, BITS))
        return high - low < count and peer in self.closest(target, count)

    def under(self, target: int, bits: int) -> list[PeerId]:
        """All peers that share at least `bits` leading bits with `target`."""
        low, high = self._range(target, bits)
        return [self._peer_at[at] for at in self._positions[low:high]]

    def _smallest_range_with(self, target: int, count: int, deepest: int) -> tuple[int, int]:
        """The range of the longest prefix of `target` that at least `count` peers share.

        Prefixes longer than `deepest` bits are not tried: a wider range is right too.
        """
        shallow, deep = 0, deepest
        best = (0, len(self._positions))
        while shallow < deep:
            middle = (shallow + deep + 1) // 2
            low, high = self._range(target, middle)
            if high - low >= count:
                shallow, best = middle, (low, high)
            else:
                deep = middle - 1
        return best

    def _range(self, target: int, bits: int) -> tuple[int, int]:
        span = 1 << (BITS - bits)
        start = target & ~(span - 1)
        low = bisect_left(self._positions, start)
        return low, bisect_left(self._positions, start + span, low)
