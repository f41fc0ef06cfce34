"""The deadlines and bounds every `Host` implementation keeps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HostLimits:
    """Bounds of a host; times in seconds. The simulated host keeps the same ones."""

    dial_timeout: float = 5.0
    """One `connect` over all addresses of a peer, handshakes included."""
    dial_stagger: float = 0.1
    """Head start of each address over the next (RFC 8305 recommends 100 to 250 ms)."""
    negotiation_timeout: float = 5.0
    """From the request for a stream to the peer's yes or no."""
    stall_timeout: float = 5.0
    """A write of which the peer took nothing for so long has failed."""
    keepalive: float = 5.0
    """Interval between pings; a peer silent for two intervals is disconnected."""
    backoff_base: float = 0.5
    """Longest wait after the first failed dial; doubles with each further failure."""
    backoff_cap: float = 30.0
    max_pending_handshakes: int = 128
    """Inbound connections that have not proved who they are; beyond it the oldest one goes."""
    max_connections_per_peer: int = 3
    """Beyond it the oldest one is closed (both sides may dial at the same time)."""
    max_connections: int = 1000
    """Live inbound connections; beyond it an idle one makes room, or the newcomer is refused."""
    connections_low: int = 192
    """Up to so many connections stay open however idle they are: more than a node keeps members
    connected (128), so that in a mesh of that size nobody dials twice."""
    connections_high: int = 384
    """Above it `idle_grace` is enough to be closed; between the two, `idle_after`."""
    idle_after: float = 300.0
    """Without a stream for so long, a connection is one that nobody uses."""
    idle_grace: float = 20.0
    """A connection this young, or used this lately, is never idle (go-libp2p's grace period)."""
    max_streams_per_peer: int = 128
    """Open streams with one peer, counted for each direction on its own."""
    max_addresses_per_peer: int = 16

    def __post_init__(self) -> None:
        # The stock muxer stops answering silently at 256 outbound streams on a connection.
        if not 1 <= self.max_streams_per_peer <= 250:
            raise ValueError("max_streams_per_peer must be between 1 and 250")
        if min(self.dial_timeout, self.negotiation_timeout, self.stall_timeout) <= 0:
            raise ValueError("timeouts must be positive")
        if self.keepalive <= 0 or self.max_connections < 1 or self.max_addresses_per_peer < 1:
            raise ValueError("keepalive, max_connections, max_addresses_per_peer must be positive")
        if self.connections_low < 0 or min(self.idle_after, self.idle_grace) <= 0:
            raise ValueError("connections_low must not be negative, idle times must be positive")
