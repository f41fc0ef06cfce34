"""From a link to its manifest: the local store, the DHT, then any peer that holds the root.

Every source is only believed when its bytes have the link's digest. Manifests larger than a root
are fetched level by level like any other chunks.
"""

from __future__ import annotations

import trio
from blake3 import blake3

from ...dht.peer_id import PeerId
from ...errors import (
    DeadlineError,
    IntegrityError,
    MembershipError,
    MeshError,
    NotFoundError,
    PeerError,
    StoreError,
    WrongKeyError,
)
from ..content import MAX_ROOT_BYTES, ChunkList, Link, Manifest, open_root
from ..store.protocol import Buffer
from .context import TransferContext
from .download import Fetcher
from .failures import reason_of
from .schedule import backoff_seconds

_SHOWN_PEERS = 8


class Resolver:
    """Resolves links for one get, through that get's fetcher."""

    def __init__(self, ctx: TransferContext, fetcher: Fetcher, threads: trio.CapacityLimiter):
        self._ctx = ctx
        self._fetcher = fetcher
        self._threads = threads

    async def resolve(self, link: Link) -> Manifest:
        """The manifest `link` names.

        Raises:
            NotFoundError: nobody who answered has it; says who was asked.
            WrongKeyError: found, and the link's key does not open it.
            LinkError: found, sealed, and the link has no key.
            FormatError: opened, and no manifest.
            TransferError: a part of a large manifest could not be fetched.
        """
        stored = await self._root(link)
        try:
            level = await self._in_thread(link, stored)
        except WrongKeyError as error:
            raise WrongKeyError(
                f"{link.cid} was found, but the link's key does not open it.",
                hint=error.hint
                or "The link was mistyped after '#', or comes from somebody else: copy it again.",
            ) from error
        while isinstance(level, ChunkList):
            level = await self._next_level(level)
        return level

    async def _in_thread(self, link: Link, stored: bytes) -> Manifest | ChunkList:
        return await trio.to_thread.run_sync(open_root, link, stored, limiter=self._threads)

    async def _next_level(self, level: ChunkList) -> Manifest | ChunkList:
        plains: dict[int, bytes] = {}

        def keep(index: int, plain: Buffer) -> None:
            plains[index] = bytes(plain)

        await self._fetcher.fetch(level.refs, keep)
        pieces = [plains[index] for index in range(len(level.refs))]
        return await trio.to_thread.run_sync(level.assemble, pieces, limiter=self._threads)

    async def _root(self, link: Link) -> bytes:
        answers: dict[PeerId, str] = {}
        if (stored := await self._from_store(link)) is not None:
            return stored
        finder = self._fetcher.finder
        retries = self._ctx.chunk_settings.retry_failed_chunks
        for attempt in range(1 + retries):
            if (stored := await self._from_dht(link)) is not None:
                return stored
            holders = (await finder.find_again([link.digest]))[link.digest]
            for peer in holders:
                if (stored := await self._from_peer(link, peer, answers)) is not None:
                    return stored
            if not holders and not finder.problems and not finder.dht_problem:
                break  # everybody answered, and nobody has it: asking again tells the same
            if attempt < retries:
                await trio.sleep(backoff_seconds(attempt, self._ctx.rng))
        raise self._not_found(link, answers)

    async def _from_store(self, link: Link) -> bytes | None:
        try:
            return await self._ctx.store.get(link.digest)
        except (NotFoundError, IntegrityError, StoreError):
            return None  # not here, or rotten here: others may have it

    async def _from_dht(self, link: Link) -> bytes | None:
        try:
            stored = await self._ctx.dht.get_manifest(link.digest)
        except MeshError as error:
            self._fetcher.finder.dht_problem = reason_of(error)
            return None
        return stored if stored is not None and _is(link, stored) else None

    async def _from_peer(
        self, link: Link, peer: PeerId, answers: dict[PeerId, str]
    ) -> bytes | None:
        settings = self._ctx.chunk_settings
        stored: Buffer = b""
        try:
            with trio.move_on_after(settings.chunk_timeout_secs):
                stored = await self._ctx.exchange.get_unverified(
                    peer, link.digest, first_byte_timeout=settings.peer_response_timeout_secs
                )
        except (PeerError, MembershipError, DeadlineError) as error:
            answers[peer] = reason_of(error)
            return None
        if _is(link, stored):
            return bytes(stored)
        if stored:
            answers[peer] = reason_of(self._ctx.exchange.corrupt(peer, link.digest))
        else:
            answers[peer] = f"did not answer within {settings.chunk_timeout_secs:g} s"
            self._ctx.exchange.stats.of(peer).failed(answers[peer])
        return None

    def _not_found(self, link: Link, answers: dict[PeerId, str]) -> NotFoundError:
        finder = self._fetcher.finder
        told = [
            f"{peer.short}: {reason}"
            for peer, reason in list({**finder.problems, **answers}.items())[:_SHOWN_PEERS]
        ]
        if finder.dht_problem:
            told.append(f"DHT: {finder.dht_problem}")
        why = f" ({'; '.join(told)})" if told else ""
        asked = len(finder.asked | answers.keys())
        if not asked:
            return NotFoundError(
                f"{link.cid} is not on this node, and no other member of the mesh is reachable"
                f"{why}.",
                hint="`meshnode peers` shows who is known; start one, or check the network.",
            )
        return NotFoundError(
            f"{link.cid} was not found: neither the DHT nor any of {asked} peers asked "
            f"has it{why}.",
            hint="Check that the link is of this mesh; if its holders are away, try again later.",
        )


def _is(link: Link, stored: Buffer) -> bool:
    return len(stored) <= MAX_ROOT_BYTES and blake3(stored).digest() == link.digest
