"""Whether the mesh is small enough for a full map, and whether ours is complete: pure decisions.

A node *builds* its map until two members in a row had nobody to name that it did not know; then the
map is *complete*. When it counts more members than the limit, the mesh is *large*, and lookups are
iterative; it goes on comparing maps for some rounds, so that all others count as many, and then
gives up the map. A large mesh is small again when the density of our own neighbourhood says that
it has shrunk well below the limit; members that find out late follow the others.
"""

from __future__ import annotations

from enum import Enum

from .peer_id import PeerId

_QUIET = 2
_LARGE_VOTES = 3
_LOW = 0.8
_ROUNDS_ALONE = 20
_ROUNDS_LARGE = 10


class Mode(Enum):
    """How this node finds who is responsible for a key."""

    BUILDING = "building"
    """Iteratively, as the map is not complete yet."""
    MAP = "map"
    LARGE = "iterative"


class Census:
    """The mode of one node. Times are of one monotonic clock, in seconds."""

    def __init__(self, limit: int, round_seconds: float) -> None:
        self._limit = limit
        self._round = round_seconds
        self.mode = Mode.BUILDING
        self.asked: set[PeerId] = set()
        """Whom we compared maps with since building began, well or not."""
        self._quiet: set[PeerId] = set()
        self._votes: set[PeerId] = set()
        self._agreed = 0.0
        self._large_since = 0.0

    def is_dormant(self, now: float) -> bool:
        """Whether there is no map to compare: the mesh is large, and everybody had time to know."""
        return self.mode is Mode.LARGE and now >= self._large_since + _ROUNDS_LARGE * self._round

    def agreed(self, peer: PeerId, *, quiet: bool, now: float) -> None:
        """Our map and that of `peer` were made equal; `quiet`: it knew nobody we did not."""
        self._votes.clear()
        self._agreed = now
        self.asked.add(peer)
        if self.mode is not Mode.BUILDING:
            return
        if quiet:
            self._quiet.add(peer)
        else:
            # Who was quiet before may have known no more than we did.
            self._quiet = {peer}
        if len(self._quiet) >= _QUIET:
            self.mode = Mode.MAP

    def nobody_left(self) -> None:
        """All we know of were asked: one that answered will do, as in a mesh of two."""
        if self.mode is Mode.BUILDING and self._quiet:
            self.mode = Mode.MAP
        elif self.mode is Mode.BUILDING:
            self.asked.clear()

    def called_large(self, peer: PeerId, now: float) -> bool:
        """`peer` has no map as it finds the mesh too large; returns whether we follow."""
        self._votes.add(peer)
        self.asked.add(peer)
        needed = 1 if self.mode is Mode.BUILDING and not self._quiet else _LARGE_VOTES
        return len(self._votes) >= needed and self._enlarge(now)

    def counted(self, members: int, now: float) -> bool:
        """We count `members`, ourselves included; returns whether that is too many from now on."""
        return members > self._limit and self._enlarge(now)

    def estimated(self, members: float, now: float, *, asked: bool) -> bool:
        """What our neighbourhood says of the size of the mesh, when we have no map.

        `asked`: a member wants to compare maps, so it believes the mesh to be small again. Returns
        whether we build a map from now on.
        """
        if not self.is_dormant(now):
            return False
        if members >= (self._limit if asked else _LOW * self._limit):
            return False
        self._rebuild()
        return True

    def looked_around(self, now: float) -> None:
        """Time has passed: a map that nobody confirmed for long is not believed complete."""
        if self.mode is Mode.MAP and now > self._agreed + _ROUNDS_ALONE * self._round:
            self._rebuild()

    def _enlarge(self, now: float) -> bool:
        if self.mode is Mode.LARGE:
            return False
        self._rebuild()
        self.mode = Mode.LARGE
        self._large_since = now
        return True

    def _rebuild(self) -> None:
        self.mode = Mode.BUILDING
        self.asked.clear()
        self._quiet.clear()
        self._votes.clear()
