"""What a put or a get came to: true counts, for people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...dht.peer_id import PeerId
from ...errors import EXIT_FAILED, EXIT_OK, EXIT_PARTIAL
from ..content import Link
from ..store.protocol import Digest
from .source import Failure

Outcome = Literal["stored", "weak", "partial", "failed"]
"""stored: everything has all copies wanted. weak: everything is durable here, with fewer copies
elsewhere than wanted. partial: some entries of a folder are left out. failed: there is no link."""

Kind = Literal["file", "folder", "stream"]


@dataclass(frozen=True, slots=True)
class SourceReport:
    """One source of a put, one link. Sizes in bytes."""

    name: str
    kind: Kind
    outcome: Outcome
    link: Link | None
    """None only when failed."""
    digest: bytes = b""
    """Of the whole file's plaintext; empty for a folder."""
    size: int = 0
    files: int = 0
    chunks: int = 0
    """Different chunks, those of the manifest included."""
    new_chunks: int = 0
    """Of these, not on this node before."""
    wanted_copies: int = 0
    copies: int = 0
    """Of the chunk with the fewest, this node included; each on a node of its own."""
    peers: tuple[PeerId, ...] = ()
    """Nodes with copies, without this one."""
    zones: tuple[str, ...] = ()
    """Different zones with copies, this node's included."""
    survives_nodes: int = 0
    """So many nodes may fail now, whichever they are, and everything can still be read."""
    survives_zones: int = 0
    """The same for whole zones."""
    receipts: int = 0
    sampled: int = 0
    """Copies read back to see that they are really there."""
    retries: int = 0
    bytes_sent: int = 0
    """Sent to peers and acknowledged, over all copies."""
    found_copies: int = 0
    """Copies that peers had from an earlier put: asked after, and not sent again."""
    seconds: float = 0.0
    failures: tuple[Failure, ...] = ()
    """Entries of a folder that could not be put."""
    warnings: tuple[str, ...] = ()
    placements: Mapping[Digest, tuple[PeerId, ...]] = field(default_factory=dict, repr=False)
    """Every chunk of the link and the nodes that gave a receipt for it; not in `to_json`."""
    error: str = ""
    """Why it failed; empty otherwise."""
    hint: str = ""
    error_code: str = ""
    error_exit_code: int = EXIT_FAILED

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "kind": self.kind,
            "outcome": self.outcome,
            "link": None if self.link is None else str(self.link),
            "digest": self.digest.hex(),
            "size": self.size,
            "files": self.files,
            "chunks": self.chunks,
            "new_chunks": self.new_chunks,
            "wanted_copies": self.wanted_copies,
            "copies": self.copies,
            "peers": [str(peer) for peer in self.peers],
            "zones": list(self.zones),
            "survives_nodes": self.survives_nodes,
            "survives_zones": self.survives_zones,
            "receipts": self.receipts,
            "sampled": self.sampled,
            "retries": self.retries,
            "bytes_sent": self.bytes_sent,
            "found_copies": self.found_copies,
            "seconds": round(self.seconds, 3),
            "failures": [{"path": f.shown, "reason": f.reason} for f in self.failures],
            "warnings": list(self.warnings),
            "error": self.error,
            "hint": self.hint,
            "error_code": self.error_code,
        }


@dataclass(frozen=True, slots=True)
class PutReport:
    """All sources of one put, in the order given."""

    sources: tuple[SourceReport, ...]
    warnings: tuple[str, ...] = ()
    """What did not work and harms nothing now."""
    seconds: float = 0.0
    """From the first source to the last."""

    @property
    def total(self) -> int:
        return len(self.sources)

    @property
    def failed(self) -> int:
        """Sources without a link."""
        return self._count("failed")

    @property
    def successful(self) -> int:
        """Sources with a link, weak and partial ones included."""
        return self.total - self.failed

    @property
    def average_seconds(self) -> float:
        """Of one source. Several are put at once, so this times `total` may exceed `seconds`."""
        return sum(source.seconds for source in self.sources) / max(self.total, 1)

    @property
    def retries(self) -> int:
        """Tries beyond the first, over all copies of all chunks."""
        return sum(source.retries for source in self.sources)

    def _count(self, outcome: Outcome) -> int:
        return sum(source.outcome == outcome for source in self.sources)

    def summary(self) -> dict[str, object]:
        return {
            "total": self.total,
            "successful": self.successful,
            "failed": self.failed,
            "stored": self._count("stored"),
            "weak": self._count("weak"),
            "partial": self._count("partial"),
            "seconds": round(self.seconds, 3),
            "average_seconds": round(self.average_seconds, 3),
            "retries": self.retries,
            "bytes_sent": sum(source.bytes_sent for source in self.sources),
        }

    @property
    def outcome(self) -> Outcome:
        """stored or failed when all are; else the worst that is not hopeless."""
        outcomes = {source.outcome for source in self.sources}
        if len(outcomes) == 1:
            return outcomes.pop()
        return "weak" if outcomes <= {"stored", "weak"} else "partial"

    @property
    def exit_code(self) -> int:
        if self.outcome == "stored":
            return EXIT_OK
        if self.outcome == "failed":
            codes = {source.error_exit_code for source in self.sources}
            return codes.pop() if len(codes) == 1 else EXIT_FAILED
        return EXIT_PARTIAL

    def to_json(self) -> dict[str, object]:
        return {
            "outcome": self.outcome,
            "exit_code": self.exit_code,
            "summary": self.summary(),
            "sources": [source.to_json() for source in self.sources],
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True)
class GetReport:
    """A finished get: everything is there and verified. Sizes in bytes."""

    link: Link
    path: Path
    kind: Literal["file", "folder", "symlink"]
    size: int
    files: int
    chunks: int
    bytes_from_store: int
    bytes_from_peers: Mapping[PeerId, int] = field(default_factory=dict)
    bytes_kept: int = 0
    """Of the content, in place already from a get that was broken off."""
    retries: int = 0
    hedges: int = 0
    """Requests beside another one for the same chunk, because that one was late."""
    moved: int = 0
    """Requests taken from a slow peer and given to another."""
    corrupt: int = 0
    """Chunks a peer sent that were not what they should be."""
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        return {
            "link": str(self.link),
            "path": str(self.path),
            "kind": self.kind,
            "size": self.size,
            "files": self.files,
            "chunks": self.chunks,
            "bytes_from_store": self.bytes_from_store,
            "bytes_kept": self.bytes_kept,
            "bytes_from_peers": {str(p): n for p, n in self.bytes_from_peers.items()},
            "retries": self.retries,
            "hedges": self.hedges,
            "moved": self.moved,
            "corrupt": self.corrupt,
            "seconds": round(self.seconds, 3),
        }
