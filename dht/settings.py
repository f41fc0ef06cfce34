"""What can be tuned, and the hard bounds of the wire."""

from __future__ import annotations

from dataclasses import dataclass

KAD_PROTOCOL = "/ipfs/kad/1.0.0"
RECORDS_PROTOCOL = "/meshnode/records/1"
HANDOVER_PROTOCOL = "/meshnode/handover/1"

MAX_VALUE_BYTES = 64 * 1024
"""Largest manifest the DHT keeps; larger ones belong in chunks."""

MAX_KAD_FRAME = 128 * 1024
MAX_RECORDS_FRAME = 1024 * 1024
MAX_HANDOVER_FRAME = 1024 * 1024
MAX_KEYS_PER_MESSAGE = 4096

RPC_DEADLINE_MIN = 0.25
RPC_DEADLINE_MAX = 2.0
"""Seconds one RPC may take in all: opening a stream, asking, being answered."""


@dataclass(frozen=True, slots=True)
class DhtSettings:
    """Times in seconds, sizes in bytes.

    `max_*_per_peer` bound what one publisher may store on this node, `max_records` and
    `max_value_bytes` and
    `max_notice_bytes` what all others together may; `max_notices_per_sender` bounds one sender's
    notices for one recipient; our own records are not counted.
    A read of what can change ends when `quorum` peers had a value; writes and reads of values walk
    over `disjoint_paths` that share no peer, wherever a node does not know all members.
    `written_per_second` bounds, per peer, keys it announces and withdraws, `asked_per_second` keys
    it asks about; up to the burst at once.
    """

    zone: str = ""
    k: int = 20
    alpha: int = 3
    max_alpha: int = 10
    enough_holders: int = 3
    quorum: int = 5
    disjoint_paths: int = 3
    record_ttl: float = 24 * 3600.0
    republish: float = 12 * 3600.0
    refresh: float = 3600.0
    liveness: float = 300.0
    sweep: float = 600.0
    flush: float = 1.0
    max_records_per_peer: int = 262_144
    max_record_bytes_per_peer: int = 32 * 1024 * 1024
    max_records: int = 1_000_000
    max_values_per_peer: int = 65_536
    max_value_bytes: int = 128 * 1024 * 1024
    max_notices_per_sender: int = 8
    max_notice_bytes_per_peer: int = 4 * 1024 * 1024
    max_notice_bytes: int = 64 * 1024 * 1024
    max_streams_per_peer: int = 16
    written_per_second: float = 4096.0
    written_burst: float = 131_072.0
    asked_per_second: float = 16_384.0
    asked_burst: float = 262_144.0
    map_members: int = 500
    """Up to how many members every node knows all others (the full map); 0: never."""
    map_round: float = 30.0
    map_refresh: float = 1200.0
    """How often our peer record is signed again; it is believed for three times as long."""
    map_fanout: int = 3

    @property
    def records_per_peer(self) -> int:
        """What one publisher may really store here: never more than a quarter of all records.

        Otherwise one member could fill the table, and have its keys push out everybody else's.
        """
        return min(self.max_records_per_peer, max(1, self.max_records // 4))
