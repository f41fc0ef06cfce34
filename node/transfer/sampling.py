"""Seeing for ourselves: a few copies read back before a put is said to be stored."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import trio

from ...dht.peer_id import PeerId
from ...errors import DeadlineError, IntegrityError, MembershipError, MeshError, PeerError
from ..store.protocol import Digest
from .context import TransferContext
from .failures import reason_of, task_group

MAX_SAMPLES = 8
_RANGE_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Sample:
    """A range of one chunk to be read from one holder."""

    peer: PeerId
    digest: Digest
    offset: int
    length: int


def choose_samples(
    holders: Mapping[Digest, Sequence[PeerId]], sizes: Mapping[Digest, int], rng: random.Random
) -> list[Sample]:
    """A few random copies: of every holder one while they last, then any."""
    copies = [(peer, digest) for digest, peers in holders.items() for peer in peers]
    rng.shuffle(copies)
    seen: set[PeerId] = set()
    first: list[tuple[PeerId, Digest]] = []
    others: list[tuple[PeerId, Digest]] = []
    for peer, digest in copies:
        (others if peer in seen else first).append((peer, digest))
        seen.add(peer)
    samples = []
    for peer, digest in (first + others)[:MAX_SAMPLES]:
        length = min(_RANGE_BYTES, sizes[digest])
        offset = rng.randrange(sizes[digest] - length + 1)
        samples.append(Sample(peer, digest, offset, length))
    return samples


async def read_back(ctx: TransferContext, samples: Sequence[Sample]) -> dict[PeerId, str]:
    """Read all samples and compare them with our own copy.

    Returns the holders that did not have what they gave a receipt for, and what happened.
    """
    liars: dict[PeerId, str] = {}
    async with task_group() as tasks:
        for sample in samples:
            tasks.start_soon(_check, ctx, sample, liars)
    return liars


async def _check(ctx: TransferContext, sample: Sample, liars: dict[PeerId, str]) -> None:
    settings = ctx.chunk_settings
    ours = await ctx.store.get_range(sample.digest, sample.offset, sample.length)
    error: MeshError = DeadlineError(
        f"did not read back a chunk within {settings.chunk_timeout_secs:g} s."
    )
    try:
        with trio.move_on_after(settings.chunk_timeout_secs):
            theirs = await ctx.exchange.get_unverified(
                sample.peer,
                sample.digest,
                sample.offset,
                sample.length,
                first_byte_timeout=settings.peer_response_timeout_secs,
            )
            if theirs == ours:
                return
            error = ctx.exchange.corrupt(sample.peer, sample.digest)
    except (PeerError, MembershipError, DeadlineError, IntegrityError) as failure:
        error = failure
    liars[sample.peer] = f"read-back failed: {reason_of(error)}"
