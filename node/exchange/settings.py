"""What can be tuned on either side of the chunk protocol."""

from __future__ import annotations

from dataclasses import dataclass

from ..store.protocol import MAX_CHUNK_BYTES

MIB = 1024 * 1024
PIECE_BYTES = 128 * 1024
"""Bodies are written in pieces of this size: the streams of a connection share it, and every piece
is a sign of progress."""
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
    """Under way at once for one peer, over all its streams."""
    streams_per_peer: int = 8
    requests_per_second: float = 2000.0
    """Per peer, sustained. A request costs one token, and one more for every 64 digests in it."""
    request_burst: float = 4000.0
    memory_bytes: int = 256 * MIB
    """Bodies in memory at once, for all peers together."""
    memory_per_peer: int = 64 * MIB
    memory_wait_secs: float = 2.0
    """A request that gets no share of `memory_bytes` for so long is refused as busy."""
    body_stall_secs: float = 20.0
    """A peer that owes us bytes and sends none for so long loses its stream."""
    idle_secs: float = 300.0
    """A stream on which nothing is asked for so long is closed."""
    least_rate: int = 64 * 1024
    """Bytes per second below which a peer that reads an answer is cut off."""
    max_lease_secs: int = 90 * 86_400
    """Longer leases are shortened to this."""
    shutdown_grace_secs: float = 2.0
    """For requests under way when the node stops."""

    def __post_init__(self) -> None:
        if not 0 < self.max_chunk_bytes <= MAX_CHUNK_BYTES:
            raise ValueError(f"max_chunk_bytes must be between 1 and {MAX_CHUNK_BYTES}")
        if not MAX_CHUNK_BYTES <= self.memory_per_peer <= self.memory_bytes:
            raise ValueError("memory_per_peer must hold one chunk and be within memory_bytes")
