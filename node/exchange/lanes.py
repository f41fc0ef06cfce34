"""How much a request may get in the way of others."""

from __future__ import annotations

from enum import IntEnum


class Lane(IntEnum):
    """Smaller goes first. Travels with every request; a higher one yields, and never starves."""

    INTERACTIVE = 0
    """Somebody waits for it."""
    REPAIR = 1
    """Copies are missing: soon, but nobody waits."""
    BACKGROUND = 2
    """Some day: audits, samples, balancing."""

    @property
    def yields(self) -> bool:
        """Whether there is a lane that goes first."""
        return self is not Lane.INTERACTIVE


LANES = tuple(Lane)
LEAST_SHARE = 1 / 16
"""What a lane that yields still gets: of the line, of memory turns, of everything in line."""
