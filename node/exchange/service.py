"""What a node does for its peers, without the streams: the store's answers as protocol answers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ...dht.host import Buffer
from ...dht.peer_id import PeerId
from ...errors import IntegrityError, NotFoundError, QuotaError
from ..store.protocol import MAX_CHUNK_BYTES, ChunkStore, Digest
from .messages import (
    MAX_NAME_BYTES,
    MAX_VERSION_BYTES,
    Get,
    Have,
    Held,
    Info,
    PeerInfo,
    Put,
    Reason,
    Release,
    Released,
    Stored,
)
from .receipts import Signer, issue
from .settings import ServerLimits

_QUOTA_RETRY_SECS = 60.0


class Refusal(Exception):
    """The answer to a request is no; becomes a Refused message."""

    def __init__(self, reason: Reason, detail: str, retry_after: float | None = None) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Kept:
    """A chunk a peer put here: durable, and promised to `owner` until `until` (Unix seconds)."""

    digest: Digest
    size: int
    owner: PeerId
    until: int
    new: bool
    """False when the chunk was here already: only the promise is new."""


OnStored = Callable[[Kept], Awaitable[None]]
"""Awaited before the receipt is signed: what the receipt promises can be made durable here."""

OnRelease = Callable[[PeerId, Sequence[Digest]], Awaitable[int]]
"""(owner, digests) -> for how many something was kept for that owner and no longer is."""

InfoProvider = Callable[[], Awaitable[PeerInfo]]


def _cut(text: str, most: int) -> str:
    """`text`, cut to at most `most` bytes of UTF-8."""
    return text.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


@contextmanager
def _reading() -> Iterator[None]:
    """What the store says instead of a chunk, as the answer to a peer."""
    try:
        yield
    except NotFoundError:
        raise Refusal(Reason.NOT_FOUND, "") from None
    except IntegrityError:
        raise Refusal(Reason.CORRUPT, "quarantined just now") from None


async def _nothing(_: Kept) -> None:
    pass


class ChunkService:
    """See the module. All errors of its methods but `Refusal` are faults of this node."""

    def __init__(
        self,
        store: ChunkStore,
        identity: Signer,
        limits: ServerLimits,
        info_provider: InfoProvider,
        on_stored: OnStored | None = None,
        on_release: OnRelease | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._identity = identity
        self._limits = limits
        self._info_provider = info_provider
        self._on_stored = on_stored or _nothing
        self._on_release = on_release
        self._wall = wall

    async def have(self, request: Have) -> Held:
        return Held(request.id, tuple(await self._store.has(request.digests)))

    async def info(self, ident: int) -> Info:
        """What this node says of itself, cut to what a message can carry."""
        info = await self._info_provider()
        return Info(
            ident,
            PeerInfo(
                name=_cut(info.name, MAX_NAME_BYTES),
                zone=_cut(info.zone, MAX_NAME_BYTES),
                available_bytes=max(info.available_bytes, 0),
                version=_cut(info.version, MAX_VERSION_BYTES),
                chunks=info.chunks,
            ),
        )

    async def release(self, request: Release, owner: PeerId) -> Released:
        """Let go of what is kept for `owner`, and for nobody else: the stream proves who asks."""
        if self._on_release is None:
            raise Refusal(Reason.UNSUPPORTED, "nothing is kept for anyone here")
        return Released(request.id, await self._on_release(owner, request.digests))

    async def size_for(self, request: Get) -> int:
        """Stored size of the chunk asked for; refuses what is not held or not inside it."""
        size = (await self._store.sizes([request.digest]))[0]
        if size is None:
            raise Refusal(Reason.NOT_FOUND, "")
        if size > MAX_CHUNK_BYTES:
            raise Refusal(Reason.TOO_LARGE, f"{size} bytes do not fit the protocol")
        end = size if request.length is None else request.offset + request.length
        if not request.offset <= end <= size:
            raise Refusal(Reason.BAD_RANGE, f"the chunk has {size} bytes")
        return size

    async def read_whole(self, request: Get, size: int) -> bytes | None:
        """The chunk asked for, in one visit to the store; None when it has not `size` bytes."""
        with _reading():
            return await self._store.get_sized(request.digest, size)

    async def read(self, request: Get, size: int) -> bytes:
        """The bytes asked for, of a chunk that the store verified as a whole."""
        length = size - request.offset if request.length is None else request.length
        with _reading():
            if length == size:
                return await self._store.get(request.digest)
            return await self._store.get_range(request.digest, request.offset, length)

    async def consider(self, request: Put, owner: PeerId) -> Stored | None:
        """Before the body is taken: a receipt at once when the chunk is held; None = send it."""
        if request.length > self._limits.max_chunk_bytes:
            raise Refusal(Reason.TOO_LARGE, f"at most {self._limits.max_chunk_bytes} bytes")
        held = (await self._store.sizes([request.digest]))[0]
        if held is not None:
            if held != request.length:
                raise Refusal(Reason.BAD_DIGEST, "that chunk has another size")
            receipt = await self._receipt(request, owner, new=False)
            if receipt is not None:
                return receipt
        if (await self._store.stats()).available_bytes < request.length:
            raise Refusal(Reason.QUOTA, "no room", _QUOTA_RETRY_SECS)
        return None

    async def keep(self, request: Put, body: Buffer, owner: PeerId) -> Stored:
        """Verify, store, and sign a receipt: in this order, each durable before the next."""
        try:
            await self._store.put([(request.digest, body)], verify=True)
        except IntegrityError:
            raise Refusal(Reason.BAD_DIGEST, "the bytes do not match the digest") from None
        except QuotaError:
            raise Refusal(Reason.QUOTA, "no room", _QUOTA_RETRY_SECS) from None
        receipt = await self._receipt(request, owner, new=True)
        if receipt is None:
            raise Refusal(Reason.FAILED, "the chunk was removed while it was being stored")
        return receipt

    async def _receipt(self, request: Put, owner: PeerId, *, new: bool) -> Stored | None:
        """Promise, look whether the chunk is still there, sign; None when it is gone.

        Whoever removes chunks does so for want of a promise: after ours, it stays.
        """
        issued = int(self._wall())
        until = issued + min(request.lease_secs, self._limits.max_lease_secs)
        await self._on_stored(Kept(request.digest, request.length, owner, until, new))
        if not (await self._store.has([request.digest]))[0]:
            return None
        receipt = issue(self._identity, owner, request.digest, request.length, issued, until)
        return Stored(request.id, issued, until, receipt.signature)
