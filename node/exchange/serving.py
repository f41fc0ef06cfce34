"""One request being served, and what a server counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import trio

from .lanes import Lane
from .messages import AskInfo, Get, Have, Put, Release, Reserved

Served = Get | Have | Put | AskInfo | Release | Reserved
"""Requests that are answered."""


@dataclass(slots=True, eq=False)
class Serving:
    """State shared by the reader, the task that serves the request, and the writer of answers."""

    request: Served
    reserved: int = 0
    """Bytes of memory for a body that came along."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    not_before: float = 0.0
    """Earliest turn, by the rate of the peer."""
    cost: int = 1
    has_turn: bool = False
    committed: bool = False
    """A CANCEL comes too late: bytes are being written, or a body has been taken in."""
    cancelled: bool = False
    body_due: float = math.inf
    """When a body that is owed must be in."""
    body_began: bool = False
    body: bytearray | None = None
    body_came: trio.Event = field(default_factory=trio.Event)

    @property
    def lane(self) -> Lane:
        return self.request.lane


@dataclass(slots=True)
class ServerCounts:
    """Since the start."""

    requests: int = 0
    cancelled: int = 0
    protocol_errors: int = 0
    """Streams ended because the peer broke the protocol."""
    faults: int = 0
    """Requests that failed by a fault of this node."""
    bytes_received: int = 0
    bytes_sent: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    """By reason."""
