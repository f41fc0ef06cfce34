"""The frames of `/yamux/1.0.0`: their header, and what is wrong with one.

Specification: https://github.com/hashicorp/yamux/blob/master/spec.md and the libp2p yamux page.
"""

from __future__ import annotations

import struct
from typing import Final

from ...errors import FormatError

HEADER: Final = struct.Struct("!BBHII")
"""Version, type, flags, stream id, length: 12 bytes, big-endian."""

DATA: Final = 0
WINDOW_UPDATE: Final = 1
PING: Final = 2
GO_AWAY: Final = 3

SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RST: Final = 8
_KNOWN_FLAGS: Final = SYN | ACK | FIN | RST

GO_AWAY_NORMAL: Final = 0
GO_AWAY_PROTOCOL_ERROR: Final = 1

INITIAL_WINDOW: Final = 256 * 1024
"""Credit every stream begins with, in both directions; the specification fixes it."""

MAX_WINDOW: Final = (1 << 32) - 1
"""The counter is 32 bits wide in every implementation."""

_NOISE_FRAME: Final = 65_519
"""What one Noise frame carries."""
TURN_PAYLOAD: Final = 64 * 1024
"""Of one data frame while several streams take turns."""
MAX_PAYLOAD: Final = 4 * _NOISE_FRAME
"""Of one data frame: below the credit that every stream begins with, and what others accept."""


class YamuxError(FormatError):
    """The peer broke the rules of Yamux: the connection cannot go on.

    `reason` is a stable word to count by.
    """

    code = "yamux"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def frame(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """A header; a whole frame unless `kind` is DATA with a length."""
    return HEADER.pack(0, kind, flags, stream_id, length)


def payload_size(waiting: int, most: int) -> int:
    """How many of `waiting` bytes to put into the next data frame, of about `most`.

    Cut evenly into Noise frames, so that no write ends in one of a few bytes: those cost as much
    work as full ones.
    """
    if waiting <= most:
        return waiting
    whole = most // _NOISE_FRAME * _NOISE_FRAME
    return -(-waiting // -(-waiting // whole))


def check_header(version: int, kind: int, flags: int, stream_id: int) -> None:
    """Raise YamuxError unless the fields can belong together."""
    if version != 0:
        raise YamuxError("bad_version", f"It sent a Yamux frame of version {version}.")
    if kind > GO_AWAY:
        raise YamuxError("bad_type", f"It sent a Yamux frame of unknown type {kind}.")
    if flags & ~_KNOWN_FLAGS or flags & (SYN | ACK) == SYN | ACK:
        raise YamuxError("bad_flags", f"It sent a Yamux frame with impossible flags {flags:#x}.")
    if (kind >= PING) != (stream_id == 0):
        raise YamuxError("bad_stream_id", f"It sent a Yamux frame of type {kind} on {stream_id}.")
