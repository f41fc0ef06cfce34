"""What can be tuned on either side of the chunk protocol."""

from __future__ import annotations

from dataclasses import dataclass

from ..store.protocol import MAX_CHUNK_BYTES

MIB = 1024 * 1024
PIECE_BYTES = 4 * 65_519
"""Bodies are written in pieces of this size, four full frames of the transport: the streams of a
connection share it, and every piece is a sign of progress."""
DEFAULT_LEASE_SECS = 30 * 86_400


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """The client side. Seconds and bytes."""

    first_byte_timeout: float = 5.0
    """Silence before the first byte of an answer (`peer_response_timeout_secs`)."""
    progress_timeout: float = 10.0
    """Silence inside a body."""
    answer_timeout: float = 300.0
    """Everything about one request: the last line, for a peer that answers all others but this."""
    streams_per_peer: int = 2
    """So that a small request need not wait behind the body of a large one."""
    requests_per_peer: int = 64
    """In flight at once; further ones wait here, not at the peer."""
    max_abandoned: int = 64
    """Answers on one stream that are still to come but wanted by nobody; beyond: reset it."""
    idle_secs: float = 60.0
    """How long a stream without requests is kept."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The server side: what peers may cost us. Seconds and bytes."""

    max_chunk_bytes: int = MAX_CHUNK_BYTES
    requests_per_peer: int = 128
    """Served at once for one peer, over all its streams; more wait their turn."""
    waiting_per_peer: int = 512
    """Requests of one peer that wait; beyond it, the peer is not read. Counted as tokens are."""
    streams_per_peer: int = 8
    requests_per_second: float = 2000.0
    """Per peer, sustained. A request costs one token, and one more for every 64 digests in it,
    but never more than `request_burst`. A request above the rate waits."""
    request_burst: float = 4000.0
    request_wait_secs: float = 2.5
    """A request that the rate would hold up for longer is refused as busy: a client takes a long
    silence for a dead peer."""
    memory_bytes: int = 256 * MIB
    """Bodies in memory at once, for all peers together."""
    memory_per_peer: int = 0
    """Of these for one peer. 0, or more than that: a quarter of `memory_bytes`, but at least the
    largest chunk; so no peer, however slow, can hold up all others."""
    memory_wait_secs: float = 2.0
    """A request that gets no share of `memory_bytes`, of our limits, or of its peer's line for so
    long is refused as busy."""
    body_stall_secs: float = 20.0
    """A peer that owes us bytes and sends none for so long loses its stream."""
    idle_secs: float = 300.0
    """A stream on which nothing is asked for so long is closed."""
    least_rate: int = 64 * 1024
    """Bytes per second below which a peer that reads an answer or sends a body is cut off."""
    rate_grace_secs: float = 30.0
    """What a body may take longer than its length at `least_rate`."""
    max_lease_secs: int = 90 * 86_400
    """Longer leases are shortened to this."""
    shutdown_grace_secs: float = 2.0
    """For requests under way when the node stops."""

    def __post_init__(self) -> None:
        if not 0 < self.max_chunk_bytes <= MAX_CHUNK_BYTES:
            raise ValueError(f"max_chunk_bytes must be between 1 and {MAX_CHUNK_BYTES}")
        if self.memory_bytes < MAX_CHUNK_BYTES:
            raise ValueError(f"memory_bytes must hold a chunk of {MAX_CHUNK_BYTES} bytes")
        if self.memory_per_peer and self.memory_per_peer < MAX_CHUNK_BYTES:
            raise ValueError(f"memory_per_peer must hold a chunk of {MAX_CHUNK_BYTES} bytes")
        if self.requests_per_peer < 1 or self.waiting_per_peer < 1:
            raise ValueError("requests_per_peer and waiting_per_peer must be at least 1")
        share = max(self.memory_bytes // 4, MAX_CHUNK_BYTES)
        object.__setattr__(self, "memory_per_peer", min(self.memory_per_peer or share, share))
