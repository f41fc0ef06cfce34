"""Every setting of a node: the one table that parsing, checking, showing and the manual read.

Each section is a frozen dataclass; each of its fields carries, beside its type and default, the
bounds, one sentence on what it is (`about`) and when to change it (`why`). Durations are in seconds
(`float`), sizes in bytes (`int`), lists are tuples.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from .kinds import (
    Addresses,
    Boolean,
    Choice,
    Integer,
    IntegerOrAuto,
    Kind,
    Label,
    Rate,
    Schedule,
    Seconds,
    Size,
)
from .paths import Paths

T = TypeVar("T")
KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4

Origin = Literal["default", "file", "env", "override"]
"""Where a value comes from; `override` is a command-line flag or a caller of the Python API."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One key as the whole program sees it."""

    key: str
    """Dotted: `performance.chunks.max_concurrent_uploads`."""
    kind: Kind[Any]
    about: str
    why: str
    default: object
    computed: str
    """What the default is computed from, for the manual; empty when it is a constant."""

    @property
    def section(self) -> str:
        return self.key.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        return self.key.rpartition(".")[2]

    @property
    def variable(self) -> str:
        """The environment variable that overrides it."""
        return "MESHNODE_" + self.key.upper().replace(".", "_")


@dataclass(frozen=True, slots=True)
class _Told:
    kind: Kind[Any]
    about: str
    why: str
    computed: str = ""


def _setting(kind: Kind[T], default: T, about: str, why: str) -> T:
    return field(default=default, metadata={"told": _Told(kind, about, why)})


def _computed(kind: Kind[T], default: Callable[[], T], note: str, about: str, why: str) -> T:
    return field(default_factory=default, metadata={"told": _Told(kind, about, why, note)})


def _host_name() -> str:
    name = socket.gethostname().partition(".")[0][:64]
    return name if name.isprintable() and name.strip() == name and name else "node"


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Who this node is to the other members."""

    name: str = _computed(
        Label(64),
        _host_name,
        "this machine's host name",
        "How other members see this node in lists, reports and logs.",
        "Host names say little or are all alike. Names need not be unique: the peer id is.",
    )
    zone: str = _setting(
        Label(64),
        "default",
        "What this node shares its luck with: a room, a house, a provider.",
        "Give machines that would fail together the same zone and others another; copies of a "
        "chunk are spread over zones first.",
    )


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """What this node keeps for itself and for others."""

    quota: int = _setting(
        Size(MIB, 1024 * TIB, zero="no quota"),
        0,
        "The most that stored chunks may take on this disk.",
        "The disk has other uses. A full quota refuses new chunks and deletes none.",
    )
    min_free_disk: int = _setting(
        Size(0, 1024 * TIB),
        GIB,
        "Disk space that is always left free; below it new chunks are refused.",
        "Raise it where something else on this disk must never run out; 0 fills the disk.",
    )
    replication: int = _setting(
        Integer(1, 16),
        3,
        "On how many nodes a put places each chunk, this one included.",
        "More copies survive more lost nodes, and cost as much more space and upload.",
    )


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """How this node is reached and finds others."""

    listen: tuple[str, ...] = _setting(
        Addresses("listen"),
        ("/ip4/0.0.0.0/tcp/4710",),
        "Addresses to accept connections on; an empty list only dials out.",
        "The port is taken, only one interface should be open, or IPv6 is wanted.",
    )
    announce: tuple[str, ...] = _setting(
        Addresses("announce"),
        (),
        "Addresses told to other members instead of those listened on; empty tells the latter.",
        "The node sits behind a forwarded port, or has a DNS name.",
    )
    bootstrap: tuple[str, ...] = _setting(
        Addresses("dial"),
        (),
        "Members to contact at start, beside those remembered and those of the invitation.",
        "The remembered members may all have moved; name one or two that never do.",
    )
    mdns: bool = _setting(
        Boolean(),
        True,
        "Find members on the local network, and be found, by multicast DNS.",
        "Turn it off where the local network must not see that a node runs here.",
    )
    dial_timeout_secs: float = _setting(
        Seconds(0.1, 60),
        3.0,
        "How long connecting to one peer may take, handshake included, over all its addresses.",
        "Raise it on links with round trips of a second (satellite, congested mobile).",
    )
    keepalive_secs: float = _setting(
        Seconds(0.5, 300),
        5.0,
        "How often an open connection is tried with a ping; a peer silent for two is dropped.",
        "Lower finds dead peers sooner; higher spares metered or battery-powered links.",
    )
    connections_low: int = _setting(
        Integer(0, 65536),
        192,
        "Up to so many connections stay open however idle they are; as many members, but at least "
        "20 and at most 128, are kept connected.",
        "Raise it to spare a large mesh handshakes; lower it where memory is scarce.",
    )
    connections_high: int = _setting(
        Integer(1, 65536),
        384,
        "Above it a connection ends after 20 idle seconds already, between the two after "
        "idle_after_secs; those in use stay. At least connections_low.",
        "Keep it well below the number of files this process may have open.",
    )
    idle_after_secs: float = _setting(
        Seconds(1, 86400),
        300.0,
        "How long nobody has used a connection that ends for that, while there are more than "
        "connections_low.",
        "Lower it on small machines; raise it where dialling is slow.",
    )
    full_map_members: int = _setting(
        Integer(0, 4000),
        500,
        "Up to so many members, every node knows all of them, and lookups ask nobody for the way; "
        "0 always looks up step by step.",
        "Raise it where memory and a trickle of traffic per member matter less than speed; the "
        "same on all members.",
    )


@dataclass(frozen=True, slots=True)
class ChunkSettings:
    """How chunks move between nodes. The section to tune for speed."""

    max_concurrent_retrievals: int | Literal["auto"] = _setting(
        IntegerOrAuto(Integer(1, 1024)),
        8,
        "Chunks in flight on a get; 1 is strictly sequential, "
        '"auto" begins with 8 and adapts to what peers deliver.',
        'Peers are far or many: "auto" is never slower and up to four times as fast over 200 ms. '
        "Fewer spares a line that others use, too; memory is bounded (64 MiB) anyway.",
    )
    max_concurrent_uploads: int | Literal["auto"] = _setting(
        IntegerOrAuto(Integer(1, 1024)),
        4,
        "Chunks being sent at once on a put; 1 is strictly sequential, up to the receipt; "
        '"auto" begins with 8 and adapts to what peers take.',
        'Peers are far away or many: "auto" fills the lines to them. '
        "Fewer leaves a slow uplink usable; memory is bounded (24 MiB) anyway.",
    )
    chunk_timeout_secs: float = _setting(
        Seconds(0.1, 3600),
        10.0,
        "How long all tries to move one chunk to or from one peer may take together.",
        "Raise it where a chunk of 4 MiB takes longer than this on the slowest link.",
    )
    retry_failed_chunks: int = _setting(
        Integer(0, 100),
        3,
        "Rounds of further tries for chunks that no peer delivered, with growing pauses between.",
        "More rounds wait out peers that come and go; 0 fails at once.",
    )
    prefer_fast_peers: bool = _setting(
        Boolean(),
        True,
        "Ask the peer first that is expected to finish first; off takes them in turn.",
        "Turn it off to spread the load evenly over all replicas.",
    )
    peer_response_timeout_secs: float = _setting(
        Seconds(0.05, 600),
        5.0,
        "How long a peer may take to its first byte before the chunk is asked of the next one.",
        "Lower it on a local network; raise it for peers whose disks sleep.",
    )


def _rate(about: str, why: str) -> int:
    return _setting(Rate(64 * KIB, 100 * GIB), 0, about, why)


@dataclass(frozen=True, slots=True)
class BandwidthSettings:
    """How much of the line chunks may take. What people wait for goes first within the limits."""

    upload: int = _rate(
        "The most that leaves this node for all peers together.",
        "The uplink is shared with people or other programs.",
    )
    download: int = _rate(
        "The most that this node takes in from all peers together.",
        "The downlink is shared with people or other programs.",
    )
    per_peer_upload: int = _rate(
        "The most that leaves this node for any one peer.",
        "One eager peer should not take all there is.",
    )
    per_peer_download: int = _rate(
        "The most that this node takes in from any one peer.",
        "Peers with little to give should be spared.",
    )
    schedule: tuple[str, ...] = _setting(
        Schedule(),
        (),
        "Other limits at certain times, in the local time of this machine; what an entry does not "
        "name stays as set above, and of several that hold the last one counts.",
        "The line is busy by day and free by night.",
    )


@dataclass(frozen=True, slots=True)
class PerformanceSettings:
    """Groups the sections on speed."""

    chunks: ChunkSettings = field(default_factory=ChunkSettings)
    bandwidth: BandwidthSettings = field(default_factory=BandwidthSettings)


@dataclass(frozen=True, slots=True)
class IngestSettings:
    """How files are cut and packed on a put. A change affects later puts only."""

    chunker: Literal["cdc", "fixed", "lines"] = _setting(
        Choice(("cdc", "fixed", "lines")),
        "cdc",
        "How files are cut: by content (cdc), at fixed offsets, or at line ends.",
        "fixed is a little faster and finds no shifted duplicates; lines suits growing logs.",
    )
    chunk_size: int = _setting(
        Size(64 * KIB, 4 * MIB),
        MIB,
        "The size chunks are cut to: their mean for cdc (which cuts between a quarter and four "
        "times it, never above what a stored chunk may be), the target for the others.",
        "Smaller finds more duplicates, larger costs less bookkeeping. Files cut with another size "
        "or chunker share no chunks.",
    )
    compression: Literal["auto", "zstd", "none"] = _setting(
        Choice(("auto", "zstd", "none")),
        "auto",
        "Compress chunks with Zstandard: where a sample shrinks (auto), always, or never.",
        "none for content known to be compressed already; zstd to squeeze out the last percent.",
    )
    compression_level: int = _setting(
        Integer(1, 19),
        3,
        "Zstandard level.",
        "Higher is smaller and much slower; above 9 puts are bound by the processor.",
    )
    pack_below: int = _setting(
        Size(0, MIB),
        64 * KIB,
        "Files smaller than this share chunks with others of the same put; 0 packs none. At most "
        "chunk_size.",
        "Raise it for many files just above it; 0 where each small file must dedupe by itself.",
    )


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What others may ask of this node, so that no peer can exhaust it."""

    max_connections: int = _setting(
        Integer(8, 65536),
        512,
        "Inbound connections at once; beyond it an idle one ends for a newcomer, and when there is "
        "none the newcomer is refused.",
        "Each costs a file descriptor and memory; raise it with the size of the mesh.",
    )
    max_streams_per_peer: int = _setting(
        Integer(8, 250),
        128,
        "Streams open at once with one peer, in each direction.",
        "Only a sign of a faulty peer is worth lowering it for.",
    )
    max_requests_per_peer: int = _setting(
        Integer(1, 4096),
        64,
        "Requests of one peer that are served at once; more wait their turn.",
        "Lower it where one busy member slows down the others.",
    )
    max_bytes_in_flight: int = _setting(
        Size(32 * MIB, 64 * GIB),
        64 * MIB,
        "Bytes of chunks that are being served to all peers at once; it bounds memory.",
        "Lower it on small machines; raise it where fast links leave the node waiting.",
    )
    requests_per_second: int = _setting(
        Integer(0, 1_000_000),
        0,
        "Chunk requests one peer may make per second, in bursts of a second's worth; 0 sets no "
        "limit.",
        "Set it where members are not trusted to be considerate.",
    )
    max_records_per_peer: int = _setting(
        Integer(1000, 250_000),
        250_000,
        "DHT records kept on behalf of one peer; beyond it further ones are refused.",
        "Lower it on small machines: each takes about 250 bytes of memory and 100 of disk. The "
        "bound is a quarter of all records a node keeps, so that no peer can fill it alone.",
    )


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What the node tells about its work, on standard error (or in node.log when detached)."""

    level: Literal["debug", "info", "warning", "error"] = _setting(
        Choice(("debug", "info", "warning", "error")),
        "info",
        "The least important events that are logged.",
        "debug to follow single requests while looking into a fault.",
    )
    format: Literal["auto", "console", "json"] = _setting(
        Choice(("auto", "console", "json")),
        "auto",
        "How events are written: for people (console), for programs (json), or by whether standard "
        "error is a terminal (auto).",
        "json where another program collects the logs.",
    )


SectionType = (
    type[NodeSettings]
    | type[StorageSettings]
    | type[NetworkSettings]
    | type[ChunkSettings]
    | type[BandwidthSettings]
    | type[IngestSettings]
    | type[LimitSettings]
    | type[LogSettings]
)

SECTIONS: Mapping[str, SectionType] = {
    "node": NodeSettings,
    "storage": StorageSettings,
    "network": NetworkSettings,
    "performance.chunks": ChunkSettings,
    "performance.bandwidth": BandwidthSettings,
    "ingest": IngestSettings,
    "limits": LimitSettings,
    "log": LogSettings,
}


@dataclass(frozen=True, slots=True)
class Config:
    """A whole, checked configuration. Make one with `load_config`."""

    paths: Paths
    node: NodeSettings = field(default_factory=NodeSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    performance: PerformanceSettings = field(default_factory=PerformanceSettings)
    ingest: IngestSettings = field(default_factory=IngestSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    log: LogSettings = field(default_factory=LogSettings)
    origins: Mapping[str, Origin] = field(default_factory=dict, compare=False)
    """Where each value that is no default comes from, by dotted key."""

    def with_overrides(self, overrides: Mapping[str, object]) -> Config:
        """This configuration with other values for some dotted keys, checked like a file's.

        Raises:
            ConfigError: unknown key, wrong type, out of range.
        """
        from .load import apply_overrides  # it builds on this class

        return apply_overrides(self, overrides)


def _settings_of(section: str, cls: SectionType) -> list[Setting]:
    defaults = cls()
    found = []
    for item in fields(cls):
        told = item.metadata["told"]
        default = getattr(defaults, item.name)
        key = f"{section}.{item.name}"
        found.append(Setting(key, told.kind, told.about, told.why, default, told.computed))
    return found


SETTINGS: Mapping[str, Setting] = {
    setting.key: setting
    for section, cls in SECTIONS.items()
    for setting in _settings_of(section, cls)
}
"""All keys, in the order of the manual."""
