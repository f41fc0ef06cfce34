"""What a peer's bytes have brought, as `YamuxCore.receive` tells it."""

from __future__ import annotations

from dataclasses import dataclass

from .yamux_stream import YamuxStream


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream: it waits in the backlog."""

    stream: YamuxStream


@dataclass(frozen=True, slots=True)
class StreamChanged:
    """Bytes, credit, the end or a reset came: look at the stream again. Once a stream and call."""

    stream: YamuxStream


@dataclass(frozen=True, slots=True)
class Pong:
    """Our ping was answered."""


@dataclass(frozen=True, slots=True)
class PeerGoesAway:
    """The peer takes no new streams; `code` 0 is normal, 1 a protocol error, 2 an internal one."""

    code: int


Event = StreamOpened | StreamChanged | Pong | PeerGoesAway
Events = dict[Event | YamuxStream, Event]
"""In order of arrival. A stream stands for its one `StreamChanged`."""
