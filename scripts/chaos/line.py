"""How a line behaves, and when bytes that enter it come out. Pure: no clock, no socket."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

_LARGEST_PIECE = 65536
_SMALLEST_PIECE = 2048
_PIECE_SECS = 0.02
"""What is read at once from a slow line: little enough for the rate to look even."""


@dataclass(frozen=True, slots=True)
class Line:
    """What lies between a node and everybody who dials it. Times in seconds."""

    rtt: float = 0.0
    """Round trip that the line adds, one half in each direction."""
    jitter: float = 0.0
    """Each piece is late by up to so much more; the order of bytes is kept, as TCP does."""
    rate: float = math.inf
    """Bytes per second in each direction, shared by all connections to this node."""
    cuts: float = 0.0
    """Share of the connections that are cut each second, each with this chance."""

    @property
    def piece(self) -> int:
        """The most bytes to take in at once."""
        return int(max(_SMALLEST_PIECE, min(_LARGEST_PIECE, self.rate * _PIECE_SECS)))


class Direction:
    """One direction of a line: bytes pass one after another, then travel."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._free = -math.inf

    def enter(self, line: Line, now: float, nbytes: int) -> tuple[float, float]:
        """When `nbytes` that come at `now` have entered, and when they arrive at the other end.

        What enters before others does so at their cost: the rate is that of the line, not of one
        connection.
        """
        self._free = max(self._free, now) + nbytes / line.rate
        late = self._rng.random() * line.jitter if line.jitter else 0.0
        return self._free, self._free + line.rtt / 2 + late
