"""What a transfer needs from the rest of the node, as narrow as it is used."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ...config import ChunkSettings, Config
from ...dht.peer_id import PeerId
from ...errors import IntegrityError
from ..exchange import PeerStatsTable
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
    ) -> bytes | bytearray:
        """Bytes of a chunk as the peer sent them, not checked; None: to its end."""
        ...

    def corrupt(self, peer: PeerId, digest: Digest) -> IntegrityError:
        """Note that `peer` sent false bytes; returns the error that says so."""
        ...

    async def put(
        self, peer: PeerId, digest: Digest, data: Buffer, *, first_byte_timeout: float | None = None
    ) -> object:
        """Returns a checked receipt; a peer that holds the chunk wants no bytes for it."""
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

    @property
    def chunk_settings(self) -> ChunkSettings:
        return self.config.performance.chunks
