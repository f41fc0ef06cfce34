"""The client side of the chunk protocol: ask any peer, keep the score."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import trio
from blake3 import blake3

from ...dht.host import Buffer, Host
from ...dht.peer_id import PeerId
from ...errors import (
    DeadlineError,
    IntegrityError,
    MembershipError,
    PeerError,
    PeerRefusedError,
    UsageError,
)
from ..identity import verify
from ..store.protocol import MAX_CHUNK_BYTES, Digest
from ..transport.owned_nursery import open_owned_nursery
from .channel import PeerChannel
from .lanes import Lane
from .messages import (
    INLINE_PUT_BYTES,
    MAX_HAVE,
    MAX_LEASE_SECS,
    AskInfo,
    Get,
    Have,
    Held,
    Info,
    PeerInfo,
    Put,
    Reason,
    Refused,
    Release,
    Released,
    Stored,
)
from .pending import Arrival, Asking, Pending, Question
from .receipts import Receipt, Signer, Verify, check
from .settings import DEFAULT_LEASE_SECS, ExchangeSettings
from .stats import PeerStats, PeerStatsTable
from .traffic import Invitation, Traffic, open_traffic

_PRESUMED_BYTES = 1024 * 1024
"""Of a chunk whose size the caller did not say; only for the queue estimates."""
_HASH_INLINE_BYTES = 64 * 1024
"""Below this, a worker thread costs more than the hash."""


class Exchange:
    """Chunks, questions and receipts to and from peers; `stats` is the score of each.

    Every call may raise, besides what it names:
        PeerError: unreachable, its stream broke, or it spoke nonsense.
        PeerRefusedError: it said no; `.reason` is a `Reason` or a newer peer's word.
        DeadlineError: it was silent for too long.
        MembershipError: it is not in our mesh.
    Cancelling a call leaves the stream and the other calls on it whole. Breakers are kept in
    `stats` but not enforced: whom to ask is the scheduler's choice.
    """

    def __init__(
        self,
        host: Host,
        nursery: trio.Nursery,
        *,
        identity: Signer,
        verify: Verify,
        settings: ExchangeSettings,
        stats: PeerStatsTable,
        traffic: Traffic,
        on_unreachable: Callable[[PeerId], None],
    ) -> None:
        self.stats = stats
        self.traffic = traffic
        self.settings = settings
        self._host = host
        self._nursery = nursery
        self._identity = identity
        self._verify = verify
        self._on_unreachable = on_unreachable
        self._channels: dict[PeerId, PeerChannel] = {}

    async def have(
        self,
        peer: PeerId,
        digests: Sequence[Digest],
        *,
        first_byte_timeout: float | None = None,
        lane: Lane = Lane.INTERACTIVE,
    ) -> list[bool]:
        """For each digest, whether `peer` says that it holds the chunk; any number of digests."""
        flags: list[bool] = []
        for start in range(0, len(digests), MAX_HAVE):
            batch = tuple(digests[start : start + MAX_HAVE])
            flags.extend(await self._have_batch(peer, batch, first_byte_timeout, lane))
        return flags

    async def _have_batch(
        self, peer: PeerId, digests: tuple[Digest, ...], timeout: float | None, lane: Lane
    ) -> tuple[bool, ...]:
        question = self._question(lambda i: Have(i, digests, lane), lane, timeout)
        pending = await self._ask(peer, question)
        assert isinstance(pending.answer, Held)
        self.stats.of(peer).succeeded()
        return pending.answer.flags

    async def release(
        self,
        peer: PeerId,
        digests: Sequence[Digest],
        *,
        first_byte_timeout: float | None = None,
        lane: Lane = Lane.INTERACTIVE,
    ) -> int:
        """Tell `peer` that we need these chunks no longer; any number of digests.

        Returns:
            For how many of them it had kept something for us.
        """
        count = 0
        for start in range(0, len(digests), MAX_HAVE):
            batch = tuple(digests[start : start + MAX_HAVE])
            count += await self._release_batch(peer, batch, first_byte_timeout, lane)
        return count

    async def _release_batch(
        self, peer: PeerId, digests: tuple[Digest, ...], timeout: float | None, lane: Lane
    ) -> int:
        question = self._question(lambda i: Release(i, digests, lane), lane, timeout)
        pending = await self._ask(peer, question)
        assert isinstance(pending.answer, Released)
        self.stats.of(peer).succeeded()
        return pending.answer.count

    async def info(
        self,
        peer: PeerId,
        *,
        first_byte_timeout: float | None = None,
        lane: Lane = Lane.INTERACTIVE,
    ) -> PeerInfo:
        """What `peer` says of itself."""
        question = self._question(lambda i: AskInfo(i, lane), lane, first_byte_timeout)
        pending = await self._ask(peer, question)
        assert isinstance(pending.answer, Info)
        self.stats.of(peer).succeeded()
        return pending.answer.info

    async def get(
        self,
        peer: PeerId,
        digest: Digest,
        offset: int = 0,
        length: int | None = None,
        *,
        first_byte_timeout: float | None = None,
        progress_timeout: float | None = None,
        lane: Lane = Lane.INTERACTIVE,
    ) -> Buffer:
        """`length` bytes from `offset` of a chunk (None: to its end), verified.

        A range can be checked only as part of the whole, so it costs the whole chunk.

        Raises:
            IntegrityError: `peer` sent other bytes; its breaker is open now.
            PeerRefusedError: reason `bad_range` when the range is not inside the chunk.
        """
        timeouts = (first_byte_timeout, progress_timeout)
        body = await self._body(peer, digest, 0, None, lane, timeouts, None)
        if await _digest(body) != digest:
            raise self.corrupt(peer, digest)
        self.stats.of(peer).succeeded()
        end = len(body) if length is None else offset + length
        if not 0 <= offset <= end <= len(body):
            raise UsageError(f"Bytes {offset} to {end} are not inside a chunk of {len(body)}.")
        return body if (offset, end) == (0, len(body)) else body[offset:end]

    async def get_unverified(
        self,
        peer: PeerId,
        digest: Digest,
        offset: int = 0,
        length: int | None = None,
        *,
        first_byte_timeout: float | None = None,
        progress_timeout: float | None = None,
        arrival: Arrival | None = None,
        into: Callable[[], memoryview] | None = None,
        lane: Lane = Lane.INTERACTIVE,
    ) -> bytearray | memoryview:
        """Bytes that `peer` claims are those of the chunk; only their number was checked.

        For callers that verify themselves in the same worker thread in which they unseal, and say
        `corrupt(peer, digest)` when it fails.

        Args:
            length: when given, exactly so many bytes come, or an error. Under a download limit they
                are asked for in pieces, for which a chunk of unknown length is too uncertain.
            arrival: is kept up to date while they come.
            into: asked for `length` bytes of memory when they begin to come; the last that it gave
                is returned. Unless this returns, it must not be used any more: what is under way
                may go on to come there.
        """
        timeouts = (first_byte_timeout, progress_timeout)
        most = self.traffic.piece()
        body: bytearray | memoryview
        if length is None or not most or length <= most:
            body = await self._body(peer, digest, offset, length, lane, timeouts, arrival, into)
        else:
            body = memoryview(bytearray(length)) if into is None else into()
            for start in range(0, length, most):
                size = min(most, length - start)
                part, at = body[start : start + size], offset + start

                def there(part: memoryview = part) -> memoryview:
                    return part

                await self._body(peer, digest, at, size, lane, timeouts, None, there)
                if arrival is not None:
                    arrival.update(start + size)
        self.stats.of(peer).succeeded()
        return body

    async def _body(
        self,
        peer: PeerId,
        digest: Digest,
        offset: int,
        length: int | None,
        lane: Lane,
        timeouts: tuple[float | None, float | None],
        arrival: Arrival | None,
        into: Callable[[], memoryview] | None = None,
    ) -> bytearray | memoryview:
        size = _PRESUMED_BYTES if length is None else length
        question = self._question(
            lambda ident: Get(ident, digest, offset, length, lane),
            lane,
            *timeouts,
            size=size,
            invite=lambda: self.traffic.down.invite(peer, lane, size),
            arrival=arrival,
            into=into,
        )
        pending = await self._ask(peer, question)
        assert pending.body is not None
        return pending.body

    def corrupt(self, peer: PeerId, digest: Digest) -> IntegrityError:
        """Note that `peer` sent false bytes for `digest`; returns the error to raise."""
        error = f"Peer {peer.short} sent bytes that are not chunk {digest.hex()[:16]}."
        self.stats.of(peer).corrupted(error)
        return IntegrityError(error, hint="Another holder may have it whole.")

    async def put(
        self,
        peer: PeerId,
        digest: Digest,
        data: Buffer,
        *,
        lease_secs: int = DEFAULT_LEASE_SECS,
        first_byte_timeout: float | None = None,
        on_sent: Callable[[], None] | None = None,
        lane: Lane = Lane.INTERACTIVE,
    ) -> Receipt:
        """Have `peer` keep a chunk for us; returns its signed word that it is durable there.

        A small body goes along at once; a larger one only after the peer has made room for it, so
        that a refusal costs no more than `INLINE_PUT_BYTES`. A peer that has the chunk already
        answers without wanting its bytes. `data` must not change before this returns; not even
        after a cancellation, as long as the exchange is open (a peer would then refuse it).

        Args:
            lease_secs: for how long; the peer may grant less, see `Receipt.until`.
            first_byte_timeout: silence before the go-ahead, and after the last byte was sent.
            on_sent: called when the last byte was handed to the transport; not at all when the
                peer wants none.

        Raises:
            PeerError: also for a receipt that is not what was asked, or is forged.
        """
        view = memoryview(data).cast("B")
        size = len(view)
        if size > MAX_CHUNK_BYTES or not 0 < lease_secs <= MAX_LEASE_SECS:
            raise UsageError(
                f"A chunk of {size} bytes for {lease_secs} s cannot be put: at most "
                f"{MAX_CHUNK_BYTES} bytes and {MAX_LEASE_SECS} s."
            )
        inline = size <= INLINE_PUT_BYTES
        question = self._question(
            lambda ident: Put(ident, digest, size, lease_secs, inline, lane),
            lane,
            first_byte_timeout,
            size=size,
            invite=lambda: self.traffic.offers.invite(peer, lane, size),
            data=view,
            on_sent=on_sent,
        )
        pending = await self._ask(peer, question)
        assert isinstance(pending.answer, Stored)
        answer = pending.answer
        receipt = Receipt(
            holder=peer,
            owner=self._identity.peer_id,
            digest=digest,
            size=size,
            issued=answer.issued,
            until=answer.until,
            signature=answer.signature,
        )
        try:
            check(receipt, lease_secs, self._verify)
        except PeerError as error:
            self.stats.of(peer).corrupted(error.message)
            raise
        self.stats.of(peer).succeeded()
        return receipt

    def hold_up(self, size: int, *, upload: bool = False) -> float:
        """Seconds for which our own bandwidth limits may hold up a body of `size` bytes.

        For callers with a deadline of their own around a call: it should be longer by this. 0.0
        without limits.
        """
        if upload:
            return self.traffic.up.seconds(size + self.traffic.offers.in_flight)
        return self.traffic.down.seconds(size + self.traffic.down.in_flight)

    # --- inside ---

    def _question(
        self,
        make: Callable[[int], Asking],
        lane: Lane,
        first_byte_timeout: float | None,
        progress_timeout: float | None = None,
        *,
        size: int = 0,
        invite: Callable[[], Awaitable[Invitation]] | None = None,
        data: Buffer = b"",
        on_sent: Callable[[], None] | None = None,
        arrival: Arrival | None = None,
        into: Callable[[], memoryview] | None = None,
    ) -> Question:
        return Question(
            make=make,
            lane=lane,
            first_byte_timeout=first_byte_timeout or self.settings.first_byte_timeout,
            progress_timeout=progress_timeout or self.settings.progress_timeout,
            data=data,
            expected_bytes=size,
            invite=invite,
            on_sent=on_sent,
            arrival=arrival,
            into=into,
        )

    async def _ask(self, peer: PeerId, question: Question) -> Pending:
        stats = self.stats.of(peer)
        stats.began(question.expected_bytes)
        try:
            pending = await self._channel(peer, stats).ask(question)
        except (PeerError, MembershipError, DeadlineError) as error:
            stats.failed(error.message)
            raise
        finally:
            stats.ended(question.expected_bytes)
        if isinstance(pending.answer, Refused):
            raise _refusal(peer, stats, pending.answer)
        return pending

    def _channel(self, peer: PeerId, stats: PeerStats) -> PeerChannel:
        channel = self._channels.get(peer)
        if channel is None:
            channel = self._channels[peer] = PeerChannel(
                self._host,
                peer,
                self._nursery,
                self.settings,
                stats,
                self.traffic,
                self._forget,
                self._on_unreachable,
            )
        return channel

    def _forget(self, channel: PeerChannel) -> None:
        if self._channels.get(channel.peer) is channel:
            del self._channels[channel.peer]


def _refusal(peer: PeerId, stats: PeerStats, refused: Refused) -> PeerRefusedError:
    if refused.reason == Reason.FAILED:
        stats.failed(f"failed: {refused.detail}")
    else:
        stats.refused()
    detail = f" ({refused.detail})" if refused.detail else ""
    retry_after = None if refused.retry_after_ms is None else refused.retry_after_ms / 1000
    return PeerRefusedError(
        f"Peer {peer.short} refused: {refused.reason}{detail}.",
        reason=refused.reason,
        retry_after=retry_after,
        hint="" if retry_after is None else f"It asks to be left alone for {retry_after:g} s.",
    )


async def _digest(data: Buffer) -> Digest:
    if len(data) <= _HASH_INLINE_BYTES:
        return blake3(data).digest()
    return await trio.to_thread.run_sync(lambda: blake3(data).digest())


@asynccontextmanager
async def open_exchange(
    host: Host,
    *,
    identity: Signer,
    verify: Verify = verify,
    settings: ExchangeSettings | None = None,
    stats: PeerStatsTable | None = None,
    traffic: Traffic | None = None,
    on_unreachable: Callable[[PeerId], None] = lambda _: None,
) -> AsyncIterator[Exchange]:
    """The client side over `host`; its streams are let go at the end of the block.

    Args:
        identity: ours; receipts must be made out to it.
        verify: checks a peer's signature.
        stats: what was known about peers before; loading and saving it is the caller's.
        traffic: shared with the server side, so that both keep the same limits and lanes.
        on_unreachable: told of a peer to which no stream could be opened; must return at once.
    """
    async with AsyncExitStack() as stack:
        if traffic is None:
            traffic = await stack.enter_async_context(open_traffic())
        nursery = await stack.enter_async_context(open_owned_nursery())
        yield Exchange(
            host,
            nursery,
            identity=identity,
            verify=verify,
            settings=settings or ExchangeSettings(),
            # Not `stats or ...`: the table of a fresh node is empty, and so false.
            stats=PeerStatsTable(clock=trio.current_time) if stats is None else stats,
            traffic=traffic,
            on_unreachable=on_unreachable,
        )
