"""What a transfer leaves behind about itself: where the time went, and what every peer did.

A trace is a value of bounded size, written down when the transfer ends (`trace_format`), whatever
its end. `tracing.Tracer` makes one while a put or a get runs; `explain` puts it into words. It
holds no key: whoever reads it learns names, sizes and peers, and cannot read content.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from ...dht.peer_id import PeerId
from ..content import encode_cid

TransferKind = Literal["put", "get", "stream"]

MAX_PHASES = 32
MAX_PEERS = 48
MAX_NOTES = 48
MAX_COUNTS = 32
MAX_ROOTS = 128
MAX_WORD_CHARS = 32
MAX_TEXT_CHARS = 200
"""Of a note or a reason; a name may have 255."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One kind of work or waiting. Phases overlap: a put reads while peers take chunks."""

    name: str
    """A word of `tracing`, such as "reading" or "peers"."""
    busy: float
    """Seconds during which it went on at all."""
    share: float
    """Its part of the wall time: seconds in which several went on are divided among them, so that
    the shares of all phases add up to no more than the whole."""
    times: int
    """How often it was begun."""


@dataclass(frozen=True, slots=True)
class PeerPart:
    """What one peer did in one transfer."""

    peer: PeerId
    requests: int = 0
    nbytes: int = 0
    """Stored bytes that count: acknowledged by it (put), or verified (get)."""
    busy: float = 0.0
    """Seconds during which at least one request was under way there."""
    slowest: float = 0.0
    """Seconds of its longest request that succeeded."""
    failures: int = 0
    """Requests that failed; being told to come back is none."""
    refusals: int = 0
    """Times it said "busy"."""
    hedged: int = 0
    """Requests for which another peer was asked as well, because this one was slow."""
    wasted: int = 0
    """Bytes that moved for nothing: another copy was first, or they were false."""
    corrupt: int = 0
    resting: float = 0.0
    """Seconds for which it was left alone after failures and refusals, as they were decided on."""
    last_error: str = ""
    gave_up: str = ""
    """Why nothing more was asked of it in this transfer; empty when it was not given up."""

    def to_json(self) -> dict[str, object]:
        return {
            "peer": str(self.peer),
            "requests": self.requests,
            "bytes": self.nbytes,
            "busy": round(self.busy, 3),
            "slowest": round(self.slowest, 3),
            "failures": self.failures,
            "refusals": self.refusals,
            "hedged": self.hedged,
            "wasted": self.wasted,
            "corrupt": self.corrupt,
            "resting": round(self.resting, 3),
            "last_error": self.last_error,
            "gave_up": self.gave_up,
        }


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened once and explains something."""

    at: float
    """Seconds after the beginning."""
    text: str
    peer: PeerId | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """One finished transfer. Sizes in bytes, durations in seconds."""

    kind: TransferKind
    name: str
    root: bytes
    """Digest that names the link; empty when there is none (a put that failed early)."""
    began: float
    """Unix seconds."""
    seconds: float
    outcome: str
    """That of the report ("stored", "weak", "partial", "failed"), "done" for a get, or
    "interrupted"."""
    size: int = 0
    """Of the content, as far as it was known."""
    phases: tuple[Phase, ...] = ()
    """In the order in which they were begun first."""
    peers: tuple[PeerPart, ...] = ()
    """At most `MAX_PEERS`; those with the most bytes and failures."""
    notes: tuple[Note, ...] = ()
    """The first and the last ones; see `lost_notes`."""
    lost_notes: int = 0
    """Notes between the first half and the second half that were not kept."""
    counts: dict[str, int] = field(default_factory=dict)
    """Totals by name: "chunks", "retries", "hedges", "bytes_from_store", ..."""
    error: str = ""
    hint: str = ""
    more_roots: tuple[bytes, ...] = ()
    """Links of the same put besides `root`, at most `MAX_ROOTS`."""

    def phase(self, name: str) -> Phase:
        """The phase of that name; an empty one when it never began."""
        for phase in self.phases:
            if phase.name == name:
                return phase
        return Phase(name, 0.0, 0.0, 0)

    def is_of(self, root: bytes) -> bool:
        """Whether the link named by the digest `root` came of this transfer, or was its subject."""
        return root == self.root or root in self.more_roots

    def to_json(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "name": self.name,
            "cid": encode_cid(self.root) if self.root else None,
            "began": round(self.began, 3),
            "seconds": round(self.seconds, 3),
            "outcome": self.outcome,
            "size": self.size,
            "phases": [
                {
                    "name": phase.name,
                    "busy": round(phase.busy, 3),
                    "share": round(phase.share, 3),
                    "times": phase.times,
                }
                for phase in self.phases
            ],
            "peers": [part.to_json() for part in self.peers],
            "notes": [
                {
                    "at": round(note.at, 3),
                    "text": note.text,
                    "peer": None if note.peer is None else str(note.peer),
                }
                for note in self.notes
            ],
            "lost_notes": self.lost_notes,
            "counts": dict(self.counts),
            "error": self.error,
            "hint": self.hint,
        }


class TraceKeeper(Protocol):
    """Where finished traces go: `trace_log.TraceLog`."""

    async def keep(self, trace: Trace) -> None:
        """Write it down. Never fails a transfer: what goes wrong is logged."""
        ...


class _Nowhere:
    async def keep(self, trace: Trace) -> None:
        pass


NO_TRACES: TraceKeeper = _Nowhere()
"""For those who do not want to know afterwards."""
