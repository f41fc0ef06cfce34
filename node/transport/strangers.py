"""How the gate of the mesh tells a real host what to show to whom, and whom to keep memory for."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ...dht.peer_id import PeerId


class Gate(Protocol):
    """Decides about peers; a host without a gate shows everything to everybody."""

    def trusts(self, peer: PeerId) -> bool:
        """Whether a connection of `peer` may make us hold much memory."""
        ...

    def shows(self, peer: PeerId, protocol: str) -> bool:
        """Whether `peer` may know, as things are now, that we speak `protocol`."""
        ...

    async def admits(self, peer: PeerId, protocol: str) -> bool:
        """As `shows`, but when the proof of `peer` is under way, after that; bounded in time."""
        ...


@runtime_checkable
class GatedHost(Protocol):
    """A host that can ask a gate before it answers a peer.

    The simulated host cannot: what is behind the gate must refuse strangers once more.
    """

    def set_gate(self, gate: Gate) -> None:
        """Ask `gate` from now on, and bound connections to peers that it does not trust."""
        ...

    def trust(self, peer: PeerId) -> None:
        """Lift the bounds of the peer's present connections."""
        ...

    def stats(self) -> dict[str, int]:
        """Its counters."""
        ...
