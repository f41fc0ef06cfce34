"""Which record goes first when there is no room: the one farthest from this node.

More other nodes lie nearer to a far key and keep it too, so its loss here costs the mesh least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush


class FarthestFirst:
    """The farthest key of a changing mapping, in O(log n).

    The heap is built when first asked for (most nodes never run out of room) and tolerates keys
    that have gone; `added` must be told of every new key.
    """

    def __init__(self, own: int, position: Callable[[bytes], int]) -> None:
        self._own = own
        self._position = position
        self._heap: list[tuple[int, bytes]] | None = None

    def distance(self, key: bytes) -> int:
        return self._position(key) ^ self._own

    def added(self, key: bytes) -> None:
        if self._heap is not None:
            heappush(self._heap, (-self.distance(key), key))

    def added_all(self, keys: Iterable[bytes]) -> None:
        """As `added`, for each of `keys`."""
        if self._heap is not None:
            for key in keys:
                self.added(key)

    def make_room(self, live: Mapping[bytes, object], newcomer: bytes) -> bytes | None:
        """The key of `live` to give up for `newcomer`, or None when the newcomer is farther."""
        if self._heap is None or len(self._heap) > 2 * len(live) + 64:
            self._heap = [(-self.distance(key), key) for key in live]
            heapify(self._heap)
        while self._heap and self._heap[0][1] not in live:
            heappop(self._heap)
        if not self._heap or -self._heap[0][0] <= self.distance(newcomer):
            return None
        return self._heap[0][1]
