"""Seeing for ourselves: a few copies read back before a put is said to be stored.

A holder that says it has not got the chunk, or sends other bytes, gave a false receipt. One that is
busy, slow or cut off for a moment has only not answered: its receipt stands, unconfirmed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from ...dht.peer_id import PeerId
from ...errors import (
    DeadlineError,
    IntegrityError,
    MembershipError,
    MeshError,
    PeerError,
    PeerRefusedError,
)
from ..exchange import Reason
from ..store.protocol import Buffer, Digest
from .context import TransferContext
from .failures import reason_of, task_group
from .patience import Patience
from .schedule import BACKOFF_CAP_SECONDS, backoff_seconds

MAX_SAMPLES = 8
_RANGE_BYTES = 16 << 10
_TRIES = 2
_LIES = frozenset({Reason.NOT_FOUND, Reason.CORRUPT})


@dataclass(frozen=True, slots=True)
class Sample:
    """A range of one chunk to be read from one holder."""

    peer: PeerId
    digest: Digest
    offset: int
    length: int


@dataclass(slots=True)
class ReadBack:
    """What came of a sample."""

    answered: int = 0
    """Copies that were there, or were found not to be."""
    confirmed: set[PeerId] = field(default_factory=set)
    lost: dict[PeerId, str] = field(default_factory=dict)
    """Holders whose copies do not count: they do not have what they gave a receipt for, or are no
    members any more. And what happened."""
    unconfirmed: dict[PeerId, str] = field(default_factory=dict)
    """Holders that could not be asked, and why; not shown to lack anything."""


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


async def read_back(
    ctx: TransferContext, samples: Sequence[Sample], patience: Patience
) -> ReadBack:
    """Read all samples at once and compare them with our own copy."""
    result = ReadBack()
    async with task_group() as tasks:
        for sample in samples:
            tasks.start_soon(_check, ctx, sample, result, patience)
    return result


async def _check(
    ctx: TransferContext, sample: Sample, result: ReadBack, patience: Patience
) -> None:
    peer = sample.peer
    reason = ""
    ours = await ctx.store.get_range(sample.digest, sample.offset, sample.length)
    for attempt in range(_TRIES):
        try:
            theirs = await _read(ctx, sample, patience.seconds(peer, sample.length))
            if theirs != ours:
                raise ctx.exchange.corrupt(peer, sample.digest)
        except (PeerError, MembershipError, DeadlineError, IntegrityError) as error:
            reason = f"read-back failed: {reason_of(error)}"
            if _is_lie(error):
                result.answered += 1
                result.lost[peer] = reason
                return
            if isinstance(error, DeadlineError):
                patience.unheard(peer)
                break  # it had all the time it gets
            if attempt + 1 < _TRIES:
                await trio.sleep(_pause(error, attempt, ctx.rng))
        else:
            result.answered += 1
            result.confirmed.add(peer)
            patience.heard(peer)
            return
    # Who has left the mesh meanwhile holds no copy that could be read now.
    stays = any(member.peer == peer for member in ctx.membership.members())
    (result.unconfirmed if stays else result.lost)[peer] = reason


async def _read(ctx: TransferContext, sample: Sample, seconds: float) -> Buffer:
    if not seconds:
        raise DeadlineError("it has been silent for a while")
    with trio.move_on_after(seconds):
        return await ctx.exchange.get_unverified(
            sample.peer,
            sample.digest,
            sample.offset,
            sample.length,
            first_byte_timeout=ctx.chunk_settings.peer_response_timeout_secs,
        )
    raise DeadlineError(f"it did not answer within {seconds:.2g} s")


def _is_lie(error: MeshError) -> bool:
    refused = isinstance(error, PeerRefusedError) and error.reason in _LIES
    return refused or isinstance(error, IntegrityError)


def _pause(error: MeshError, attempt: int, rng: random.Random) -> float:
    asked = error.retry_after if isinstance(error, PeerRefusedError) else None
    return min(max(asked or 0.0, backoff_seconds(attempt, rng)), BACKOFF_CAP_SECONDS)
