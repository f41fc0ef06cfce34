"""Named counts of what the DHT did, for metrics and tests."""

from __future__ import annotations

from collections import Counter


class Counters:
    """Counts only grow; a name that was never counted reads 0."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str, amount: int = 1) -> None:
        self._counts[name] += amount

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def snapshot(self) -> dict[str, int]:
        return dict(self._counts)
