"""What all peers together may make one host hold in memory."""

from __future__ import annotations

from typing import Final

_PORTION: Final = 16
"""Nobody takes more than this part of what is left, so that those who come late get some too."""
_LEAST: Final = 4096
"""Less is not worth a window update."""


class ReceiveBudget:
    """Shared by the connections of a host: credit beyond the first windows, and unread bytes.

    Credit is a promise: a peer that uses all of it makes us hold that much until it is read. What
    is given beyond the 256 KiB a stream begins with is taken from here. When nothing is left,
    streams keep the window they have: slower on long lines, and no other harm.

    The first 256 KiB cannot be refused, and with thousands of streams are more than any machine
    has. So unread bytes are counted as well. Beyond `most_unread`, a connection that holds more
    than its equal share is `crowding`: whoever holds least is never the one to go.

    Args:
        credit: bytes beyond the first windows, over all connections.
        most_unread: bytes that may be unread before somebody has to go.
    """

    __slots__ = ("holders", "left", "most_unread", "unread")

    def __init__(self, credit: int = 256 << 20, most_unread: int = 512 << 20) -> None:
        self.left = credit
        """Credit that can still be given."""
        self.most_unread = most_unread
        self.unread = 0
        """Bytes received and not read, over all connections."""
        self.holders = 0
        """Connections that have unread bytes."""

    def take(self, most: int) -> int:
        """Credit for one stream: up to `most` bytes, maybe 0."""
        taken = min(most, self.left // _PORTION)
        if taken < _LEAST:
            return 0
        self.left -= taken
        return taken

    def give_back(self, credit: int) -> None:
        self.left += credit

    def hold(self, before: int, size: int) -> None:
        """A connection with `before` unread bytes received `size` more."""
        self.unread += size
        if not before:
            self.holders += 1

    def let_go(self, before: int, size: int) -> None:
        """A connection with `before` unread bytes needs `size` of them no longer."""
        self.unread -= size
        if before == size:
            self.holders -= 1

    def crowding(self, unread: int) -> bool:
        """Whether a connection that holds `unread` bytes must go, for others to stay."""
        return self.unread > self.most_unread and unread * self.holders > self.most_unread
