"""Which stream ids the peer has used, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from .yamux_frames import YamuxError

_MAX_SKIPPED: Final = 64


class PeerIds:
    """Ids of one parity, each to be used once.

    They may come a little out of order: implementations number a stream and announce it in two
    steps. So the few ids skipped lately are remembered, and everything older counts as used; a peer
    that jumps further than that starts afresh. What an id costs is bounded either way.

    Args:
        first: the lowest id, 1 or 2.
    """

    __slots__ = ("_highest", "_parity", "_skipped")

    def __init__(self, first: int) -> None:
        self._parity = first % 2
        self._highest = first - 2
        self._skipped: OrderedDict[int, None] = OrderedDict()

    def used(self, stream_id: int) -> bool:
        return stream_id <= self._highest and stream_id not in self._skipped

    def use(self, stream_id: int) -> None:
        """Raise YamuxError unless the id is the peer's to use and new."""
        if stream_id % 2 != self._parity:
            raise YamuxError("bad_parity", f"It opened stream {stream_id}, which is ours to open.")
        if self.used(stream_id):
            raise YamuxError("id_reused", f"It opened stream {stream_id} twice.")
        if stream_id < self._highest:
            del self._skipped[stream_id]
            return
        if stream_id - self._highest > 2 * (_MAX_SKIPPED + 1):
            self._skipped.clear()
        else:
            self._skipped.update(dict.fromkeys(range(self._highest + 2, stream_id, 2)))
            while len(self._skipped) > _MAX_SKIPPED:
                self._skipped.popitem(last=False)
        self._highest = stream_id
