"""The bounds of one Yamux connection."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class YamuxLimits:
    """Bounds of one connection; sizes in bytes.

    What a peer can make us hold: `max_inbound` and our own streams at 256 KiB each, which the
    specification grants unasked, and `budget` on top; twice that, because a piece of a decrypted
    frame may keep all of it.
    """

    max_inbound: int = 256
    """Streams of the peer that live at once; further ones are reset."""
    accept_backlog: int = 256
    """Streams of the peer that nobody has accepted yet; further ones are reset."""
    max_refused: int = 1024
    """Streams refused, or reset before they were accepted, in a row, after which the peer is taken
    for hostile."""
    max_control: int = 4096
    """Control frames waiting to be sent, beyond which the peer is taken for hostile."""
    window: int = 8 << 20
    """Receive window announced at the start of a stream, as far as the budget goes."""
    max_window: int = 16 << 20
    stranger_unread: int = 1 << 20
    """Unread bytes of all streams together, beyond which a peer that is not trusted is taken for
    hostile; it gets no credit beyond the first 256 KiB of a stream either."""
    budget: int = 64 << 20
    """Credit beyond the first 256 KiB, over all streams of the connection."""
