"""How the gate of the mesh tells a real host whom to keep little memory for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from ...dht.peer_id import PeerId


@runtime_checkable
class StrangerBounds(Protocol):
    """A host that can hold back memory from peers until they are trusted.

    Without a call every peer is trusted. The simulated host has no windows to narrow.
    """

    def bound_strangers(self, trusted: Callable[[PeerId], bool]) -> None:
        """Bound all connections, present and future, to peers that are not `trusted`."""
        ...

    def trust(self, peer: PeerId) -> None:
        """Lift the bounds of the peer's present connections."""
        ...
