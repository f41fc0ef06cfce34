"""What a node says of itself and of its peers: data for `status`, `peers` and programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ..dht.peer_id import PeerId
from .store.protocol import StoreStats


@dataclass(frozen=True, slots=True)
class FlowStatus:
    """Bodies of chunks in one direction. Bytes and bytes per second; a limit of 0 is none."""

    limit: int
    per_peer_limit: int
    rate: float
    """Just now."""
    total: int
    """Since the start."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A snapshot. Sizes in bytes, times in seconds."""

    name: str
    zone: str
    peer_id: PeerId
    mesh: str
    mesh_id: bytes
    open_mesh: bool
    addresses: tuple[str, ...]
    version: str
    pid: int
    uptime: float
    ready: bool
    connected_peers: int
    known_peers: int
    announce_lag: int
    """Chunks here that have not been announced yet."""
    keys_pending: int
    """Announced chunks that too few peers know of; they are told again soon."""
    announce_lag_seconds: float
    """For how long the oldest of these has been waiting."""
    store: StoreStats
    store_rebuilt: bool
    """The store's index was damaged and has been made anew since this node was started."""
    counters: Mapping[str, int]
    upload: FlowStatus
    download: FlowStatus

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "zone": self.zone,
            "peer_id": str(self.peer_id),
            "mesh": {"name": self.mesh, "id": self.mesh_id.hex(), "open": self.open_mesh},
            "addresses": list(self.addresses),
            "version": self.version,
            "pid": self.pid,
            "uptime": round(self.uptime, 1),
            "ready": self.ready,
            "connected_peers": self.connected_peers,
            "known_peers": self.known_peers,
            "announce_lag": self.announce_lag,
            "keys_pending": self.keys_pending,
            "announce_lag_seconds": round(self.announce_lag_seconds, 1),
            "store": asdict(self.store),
            "store_rebuilt": self.store_rebuilt,
            "counters": dict(self.counters),
            "bandwidth": {
                name: {**asdict(flow), "rate": round(flow.rate)}
                for name, flow in (("upload", self.upload), ("download", self.download))
            },
        }


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One peer as this node sees it. `throughput` in bytes per second, times in seconds."""

    peer: PeerId
    name: str
    zone: str
    version: str
    connected: bool
    addresses: tuple[str, ...]
    rtt: float | None
    available_bytes: int | None
    throughput: float | None
    success_rate: float | None
    breaker: str
    last_error: str

    def to_json(self) -> dict[str, object]:
        return {
            "peer_id": str(self.peer),
            "name": self.name,
            "zone": self.zone,
            "version": self.version,
            "connected": self.connected,
            "addresses": list(self.addresses),
            "rtt": self.rtt,
            "available_bytes": self.available_bytes,
            "throughput": self.throughput,
            "success_rate": self.success_rate,
            "breaker": self.breaker,
            "last_error": self.last_error,
        }


@dataclass(frozen=True, slots=True)
class RemoveReport:
    """What `rm` did: our holds are gone; so are the chunks nobody else holds."""

    chunks: int
    """Chunks the link was made of, its manifest included."""
    removed_here: int
    """Of these, gone from this node; the rest belongs to other content, or to peers."""
    removed_bytes: int
    released: Mapping[PeerId, int]
    """Peers that let go of copies they held for us, and of how many."""
    unreachable: tuple[PeerId, ...]
    """Known peers that could not be asked; they are told when they are connected again."""
    deferred: bool = False
    """A put is running: everything goes when it has ended."""

    def to_json(self) -> dict[str, object]:
        return {
            "chunks": self.chunks,
            "removed_here": self.removed_here,
            "removed_bytes": self.removed_bytes,
            "released": {str(peer): count for peer, count in self.released.items()},
            "unreachable": [str(peer) for peer in self.unreachable],
            "deferred": self.deferred,
        }
