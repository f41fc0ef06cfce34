"""What second requests may cost: a bound on bytes that could come twice.

The bucket starts with room for two of the largest chunks and fills with 5 % of what arrives; over
the whole transfer no more than 5 % of its bytes (or those two chunks, if that is more) is spent.
What did not come twice after all is given back.
"""

from __future__ import annotations

SHARE = 0.05
_FREE_CHUNKS = 2


class HedgeBudget:
    """See the module."""

    def __init__(self, total: int, largest: int) -> None:
        self._free = _FREE_CHUNKS * largest
        self._most = max(SHARE * total, float(self._free))
        self._arrived = 0
        self.spent = 0
        """Bytes under way twice now, and those that may have come twice."""

    def arrived(self, nbytes: int) -> None:
        self._arrived += nbytes

    def allows(self, nbytes: int) -> bool:
        return self.spent + nbytes <= min(self._free + SHARE * self._arrived, self._most)

    def spend(self, nbytes: int) -> None:
        self.spent += nbytes

    def give_back(self, nbytes: int) -> None:
        self.spent -= nbytes
