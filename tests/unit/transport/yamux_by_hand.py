"""Yamux frames made and read by hand, and cores to feed them to."""

from __future__ import annotations

import struct

from meshnode.node.transport.yamux import YamuxCore
from meshnode.node.transport.yamux_limits import YamuxLimits
from meshnode.node.transport.yamux_stream import YamuxStream

DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
INITIAL = 256 * 1024
SMALL = YamuxLimits(window=INITIAL, max_inbound=4, accept_backlog=3, max_refused=5, max_control=20)


def frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBHII", 0, kind, flags, stream_id, length) + body


def data(stream_id: int, body: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, stream_id, len(body), body)


def outgoing(core: YamuxCore) -> bytes:
    return b"".join(core.take_outgoing(1 << 30))


def parsed(wire: bytes) -> list[tuple[int, int, int, int]]:
    """Kind, flags, stream id and length of each frame."""
    frames, position = [], 0
    while position < len(wire):
        _, kind, flags, stream_id, length = struct.unpack_from(">BBHII", wire, position)
        frames.append((kind, flags, stream_id, length))
        position += 12 + (length if kind == DATA else 0)
    return frames


def server(limits: YamuxLimits = SMALL) -> YamuxCore:
    return YamuxCore(initiator=False, limits=limits)


def accepted(core: YamuxCore, stream_id: int = 1) -> YamuxStream:
    core.receive(frame(WINDOW, SYN, stream_id, 0))
    stream = core.accept()
    assert stream is not None
    outgoing(core)
    return stream
