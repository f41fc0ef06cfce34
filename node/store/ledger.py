"""What the store occupies, by segment: for quota, statistics, and finding dead segments.

Changed only by whoever commits (one at a time); others read single numbers.
"""

from __future__ import annotations


class Ledger:
    def __init__(
        self, sizes: dict[int, int], populations: dict[int, int], tombstones: dict[int, int]
    ) -> None:
        self._sizes = sizes
        self._populations = populations
        self._tombstones = tombstones
        self.occupied_bytes = sum(sizes.values())
        """Of all segment files: live entries, dead ones, headers."""
        self.chunks = sum(populations.values())

    def resize(self, segment: int, size: int) -> None:
        """The segment's file has this size now; 0: there is no file."""
        self.occupied_bytes += size - self._sizes.pop(segment, 0)
        if size:
            self._sizes[segment] = size

    def add(self, segment: int, chunks: int) -> None:
        """Chunks that came to live in `segment`, or went (negative)."""
        self._populations[segment] = self._populations.get(segment, 0) + chunks
        self.chunks += chunks

    def bury(self, segment: int, tombstones: int) -> None:
        """Tombstones written to `segment` that void entries of other segments."""
        self._tombstones[segment] = self._tombstones.get(segment, 0) + tombstones

    def dead_segments(self) -> list[int]:
        """Segments nobody needs, in the order in which they may go.

        A segment without live chunks is still needed while its tombstones keep entries of older
        segments dead, should the index ever be rebuilt; tombstones only void older entries, so
        the oldest segment's are never needed.
        """
        dead: list[int] = []
        oldest = True
        for segment in sorted(self._sizes):
            empty = not self._populations.get(segment, 0)
            if empty and (oldest or not self._tombstones.get(segment, 0)):
                dead.append(segment)
            else:
                oldest = False
        return dead

    def remove(self, segment: int) -> None:
        self.occupied_bytes -= self._sizes.pop(segment)
        self._populations.pop(segment, None)
        self._tombstones.pop(segment, None)
