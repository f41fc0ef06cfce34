"""Frames for streams that are over here, and streams nobody could serve: how many are too many."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from .yamux_frames import YamuxError

_MAX_REMEMBERED: Final = 4096


class ResetStreams:
    """The credit a peer still had on streams we have reset: what is under way may use it up."""

    __slots__ = ("_credit",)

    def __init__(self) -> None:
        self._credit: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._credit)

    def remember(self, stream_id: int, credit: int) -> None:
        self._credit[stream_id] = credit
        if len(self._credit) > _MAX_REMEMBERED:
            self._credit.popitem(last=False)

    def take(self, stream_id: int, size: int) -> None:
        """Raises YamuxError unless `size` bytes may still come, to be dropped."""
        credit = self._credit.get(stream_id, 0)
        if size > credit:
            raise YamuxError("data_after_close", "It sent bytes on a stream that was over.")
        self._credit[stream_id] = credit - size

    def forget(self, stream_id: int) -> None:
        """The peer has ended its side too."""
        self._credit.pop(stream_id, None)


class Refusals:
    """Streams refused, or reset by the peer before they were accepted, without one served between.

    Each costs us work and the peer next to nothing, so a long row of them is an attack.
    """

    __slots__ = ("_before", "_most", "in_a_row", "total")

    def __init__(self, most: int) -> None:
        self.total = 0
        self.in_a_row = 0
        self._before = 0
        self._most = most

    def count(self) -> None:
        """Raises YamuxError when it is one too many."""
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row > self._most:
            raise YamuxError("stream_flood", "It keeps opening streams that are refused or reset.")

    def accepted(self) -> None:
        self._before, self.in_a_row = self.in_a_row, 0

    def undo(self) -> None:
        """The stream just accepted is refused after all."""
        self.in_a_row = self._before
        self.count()
