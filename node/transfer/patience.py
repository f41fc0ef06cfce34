"""How long a holder is waited for when its copies are read back at the end of a put.

As long as a peer may owe copies and give no answer before it counts as silent. Who
has been found silent in this put gets the time after which a copy is late; who has not answered
such a question either is asked no more while it rests. So a holder that is frozen costs a put about
as much as it takes to notice, however many sources share it: its receipts count, unconfirmed.
"""

from __future__ import annotations

from ...dht.peer_id import PeerId
from .context import TransferContext
from .peer_health import PeerHealth
from .upload_flow import Lateness, PeerWindows


class Patience:
    """Of one put."""

    def __init__(
        self, ctx: TransferContext, health: PeerHealth, lateness: Lateness, windows: PeerWindows
    ) -> None:
        self._ctx = ctx
        self._health = health
        self._lateness = lateness
        self._windows = windows
        self._unheard: set[PeerId] = set()

    def seconds(self, peer: PeerId, size: int) -> float:
        """For how long to wait for `size` bytes asked of `peer` now; 0.0: not worth asking."""
        settings = self._ctx.chunk_settings
        silent = self._health.was_silent(peer)
        if silent and peer in self._unheard and self._health.rest(peer) > 0:
            return 0.0
        wait = self._lateness.late_after() if silent else self._lateness.silent_after()
        wait = min(wait, settings.peer_response_timeout_secs)
        # The question waits behind what other sources of the put send there.
        wait = max(wait, self._windows.seconds(peer))
        return min(wait, settings.chunk_timeout_secs) + self._ctx.exchange.hold_up(size)

    def heard(self, peer: PeerId) -> None:
        """It answered."""
        self._unheard.discard(peer)

    def unheard(self, peer: PeerId) -> None:
        """It did not answer in that time."""
        self._unheard.add(peer)
        self._health.unheard(peer)
