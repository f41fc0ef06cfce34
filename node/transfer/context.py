"""What a transfer needs from the rest of the node, as narrow as it is used."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ...config import ChunkSettings, Config
from ...dht.peer_id import PeerId
from ...errors import IntegrityError
from ..exchange import Lane, PeerStatsTable, Receipt
from ..exchange.pending import Arrival
from ..store.protocol import Buffer, ChunkStore, Digest
from .placement import Member
from .trace import NO_TRACES, TraceKeeper


class ChunkExchange(Protocol):
    """The client side of the chunk protocol: `exchange.Exchange`."""

    @property
    def stats(self) -> PeerStatsTable: ...

    async def have(
        self, peer: PeerId, digests: Sequence[Digest], *, first_byte_timeout: float | None = None
    ) -> list[bool]: ...

    async def get_unverified(
        self,
        peer: PeerId,
        digest: Digest,
        offset: int = 0,
        length: int | None = None,
        *,
        first_byte_timeout: float | None = None,
        arrival: Arrival | None = None,
        into: Callable[[], memoryview] | None = None,
    ) -> Buffer:
        """Bytes of a chunk as the peer sent them, not checked; None: to its end. `arrival` is kept
        up to date while they come. They may come in the memory that `into` gives when they
        begin to, which is the callee's for ever unless this returns."""
        ...

    def hold_up(self, size: int, *, upload: bool = False) -> float:
        """Seconds for which this node's own bandwidth limits may hold up `size` bytes: a deadline
        around a call should be later by this. 0.0 without limits."""
        ...

    def corrupt(self, peer: PeerId, digest: Digest) -> IntegrityError:
        """Note that `peer` sent false bytes; returns the error that says so."""
        ...

    async def put(
        self,
        peer: PeerId,
        digest: Digest,
        data: Buffer,
        *,
        first_byte_timeout: float | None = None,
        on_sent: Callable[[], None] | None = None,
        lane: Lane = Lane.INTERACTIVE,
    ) -> Receipt:
        """Returns a checked receipt. `on_sent` is called when all bytes are on their way; not at
        all when the peer wants none, because it holds the chunk."""
        ...


class FoundHolder(Protocol):
    """Somebody who said that it holds a chunk: `dht.ChunkRecord`."""

    @property
    def peer(self) -> PeerId: ...


class StoredOn(Protocol):
    """Which other nodes keep a manifest now: `dht.StoreReport`."""

    @property
    def stored_on(self) -> Sequence[PeerId]: ...


class ContentRouting(Protocol):
    """Who has what, and the roots of manifests: `dht.Dht`."""

    async def announce(self, chunks: Sequence[tuple[Digest, int]]) -> object: ...

    async def find_chunks(
        self, digests: Sequence[Digest]
    ) -> Mapping[Digest, Sequence[FoundHolder]]: ...

    async def put_manifest(self, digest: Digest, value: bytes) -> StoredOn: ...

    async def get_manifest(self, digest: Digest) -> bytes | None: ...


class Membership(Protocol):
    """Who of the mesh is here now."""

    def members(self) -> Sequence[Member]:
        """Live members, without this node."""
        ...


class PeerSearch(Protocol):
    """Peers that could not be reached, and may be found elsewhere: `node.Seeker`."""

    def seeks(self, peer: PeerId) -> bool:
        """Whether `peer` is being sought, and may be connected soon."""
        ...

    async def sought(self, peers: Collection[PeerId]) -> None:
        """Wait, for a bounded time, until those being sought were found or not."""
        ...


class _NoSearch:
    def seeks(self, peer: PeerId) -> bool:
        return False

    async def sought(self, peers: Collection[PeerId]) -> None:
        pass


NO_SEARCH: PeerSearch = _NoSearch()
"""Of a node that only knows the addresses that come with records."""


class PutJournal(Protocol):
    """What puts have got done, across restarts: `keeper.PutJournal`."""

    def stored(self, digests: Sequence[Digest]) -> None:
        """A put needs these chunks, which are durable here."""
        ...

    def copied(self, receipt: Receipt) -> None:
        """A peer has signed for a copy."""
        ...

    async def receipts(self, digests: Sequence[Digest]) -> Mapping[Digest, Sequence[Receipt]]:
        """What peers have signed for in earlier puts and should have still."""
        ...

    async def lost(self, peer: PeerId, digests: Sequence[Digest]) -> None:
        """`peer` has not got these, whatever it signed."""
        ...

    async def flush(self) -> None:
        """Write down what was noted. Raises StoreError, QuotaError."""
        ...


class _NoJournal:
    def stored(self, digests: Sequence[Digest]) -> None:
        pass

    def copied(self, receipt: Receipt) -> None:
        pass

    async def receipts(self, digests: Sequence[Digest]) -> Mapping[Digest, Sequence[Receipt]]:
        return {}

    async def lost(self, peer: PeerId, digests: Sequence[Digest]) -> None:
        pass

    async def flush(self) -> None:
        pass


NO_JOURNAL: PutJournal = _NoJournal()
"""Of a node that remembers nothing: every put begins anew."""


@dataclass(frozen=True, slots=True)
class TransferContext:
    """The rooms around `transfer`, and its settings."""

    store: ChunkStore
    exchange: ChunkExchange
    dht: ContentRouting
    membership: Membership
    self_id: PeerId
    config: Config
    convergence_secret: bytes = field(repr=False)
    zone: str = ""
    rng: random.Random = field(default_factory=random.Random, repr=False)
    traces: TraceKeeper = NO_TRACES
    """Where the trace of every transfer goes when it ends."""
    journal: PutJournal = NO_JOURNAL
    search: PeerSearch = NO_SEARCH

    @property
    def chunk_settings(self) -> ChunkSettings:
        return self.config.performance.chunks
