"""Which of several connections to one peer is used, and which has to go.

Two nodes that dial each other at the same moment end up with two connections. Each is good; if one
side opened its streams on the first and the other on the second, both would have to be kept. So
both sides prefer the same one, by a rule that needs no message: of connections made at about the
same time, the one dialled by the peer with the smaller id. Otherwise the newest counts: a peer that
dials again has lost the old one, whatever it looks like from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from ...dht.peer_id import PeerId


class Candidate(Protocol):
    """What the choice depends on."""

    @property
    def peer(self) -> PeerId: ...
    @property
    def inbound(self) -> bool: ...
    @property
    def usable(self) -> bool: ...
    @property
    def opened_at(self) -> float: ...
    @property
    def streams(self) -> int: ...


C = TypeVar("C", bound=Candidate)


def preferred(connections: Sequence[C], own: PeerId, window: float) -> C | None:
    """The connection on which new streams are opened; None when no connection takes any.

    Args:
        connections: to one peer, oldest first.
        window: seconds between the ends of two dials that may have begun before either had ended;
            the longest a dial may take.
    """
    usable = [connection for connection in connections if connection.usable]
    if not usable:
        return None
    newest = usable[-1]
    at_once = [c for c in usable if newest.opened_at - c.opened_at <= window]
    of_smaller_id = [c for c in at_once if (own < c.peer) is not c.inbound]
    return (of_smaller_id or at_once)[-1]


def superfluous(connections: Sequence[C], kept: C, most: int) -> list[C]:
    """Which connections to close so that no more than `most` that take streams remain, and no more
    than `most` that the peer is leaving.

    Of those the peer is leaving the oldest go: their streams have had most time. Of the others
    those with the fewest streams go, oldest first; never `kept`, and never the newest: it may be
    the only one that still leads anywhere.
    """
    usable = [connection for connection in connections if connection.usable]
    leaving = [connection for connection in connections if not connection.usable]
    spared = {id(kept), id(usable[-1])} if usable else set()
    expendable = sorted((c for c in usable if id(c) not in spared), key=lambda c: c.streams)
    return leaving[: max(0, len(leaving) - most)] + expendable[: max(0, len(usable) - most)]
