"""Which connections nobody needs any more: the rule alone, without clock, sockets or hosts.

The marks are those of libp2p's connection manager (go-libp2p `p2p/net/connmgr`): nothing is closed
up to the low one, and above the high one there is less patience. Unlike there, a connection with
streams is never closed, and between the marks one goes only when it has been idle for long: whoever
talks now and then does not have to dial each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Marks:
    """Numbers of connections, and times in seconds."""

    low: int
    """Up to so many stay, however idle."""
    high: int
    """Above it `grace` is enough."""
    idle_after: float
    grace: float
    """Nobody is idle who came, or was used, so lately. At most `idle_after`."""


@dataclass(frozen=True, slots=True)
class Standing(Generic[C]):
    """What the choice knows of a connection."""

    connection: C
    idle: float | None
    """Seconds since it was opened or last had a stream; None while it has one."""
    inbound: bool = True
    spared: bool = False
    """Never to be closed for being idle."""
    stranger: bool = False
    """Its peer has not proved that it belongs here."""
    way_back: bool = True
    """Whether we could dial the peer again."""


def dispensable(standings: Sequence[Standing[C]], marks: Marks) -> list[C]:
    """Which connections to close now, those we lose least with first."""
    ranked = _idle_for(marks.grace, standings)
    tired = [s for s in ranked if s.idle is not None and s.idle >= marks.idle_after]
    closed = tired[: max(0, len(standings) - marks.low)]
    too_many = len(standings) - len(closed) - marks.high
    if too_many > 0:
        chosen = {id(s) for s in closed}
        closed += [s for s in ranked if id(s) not in chosen][:too_many]
    return [s.connection for s in closed]


def giving_way(standings: Sequence[Standing[C]], grace: float) -> C | None:
    """Which inbound connection makes room for a newcomer; None when all are needed."""
    ranked = _idle_for(grace, [s for s in standings if s.inbound])
    return ranked[0].connection if ranked else None


def _idle_for(seconds: float, standings: Sequence[Standing[C]]) -> list[Standing[C]]:
    """Those nobody has used for so long, the least valuable first.

    A stranger may be anybody; a member we could not dial again is lost until it wants something.
    """
    idle = [(s.idle, s) for s in standings if s.idle is not None and not s.spared]
    ranked = sorted(
        ((since, s) for since, s in idle if since >= seconds),
        key=lambda entry: (not entry[1].stranger, not entry[1].way_back, -entry[0]),
    )
    return [s for _, s in ranked]
