"""The story of a get that could not be completed: which chunks, which peers, what they answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...dht.peer_id import PeerId
from ...errors import NotFoundError, TransferError
from ..content import ChunkRef, encode_cid

_SHOWN_CHUNKS = 3
_SHOWN_PEERS = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """What a peer that was said to hold a chunk answered in the end."""

    reason: str
    absent: bool = False
    """It is well, and does not have the chunk."""
    busy: bool = False
    """It is well, and asks to come back later."""


@dataclass(frozen=True, slots=True)
class LostChunk:
    """A chunk nobody delivered, and the last answer of everybody who was asked for it."""

    ref: ChunkRef
    answers: Mapping[PeerId, Answer]

    @property
    def absent(self) -> bool:
        """Whether nobody even claims to have it (any more)."""
        return all(answer.absent for answer in self.answers.values())


def could_not_fetch(
    lost: Sequence[LostChunk], total: int, untried: int, peers_asked: int
) -> TransferError | NotFoundError:
    """The error that tells it: NotFoundError when everybody answered and nobody has the chunks.

    Args:
        total: chunks wanted.
        untried: of these, never begun because the get was lost already.
        peers_asked: how many were asked what they hold.
    """
    shown = "; ".join(_story(chunk, peers_asked) for chunk in lost[:_SHOWN_CHUNKS])
    more = f"; and {len(lost) - _SHOWN_CHUNKS} more" if len(lost) > _SHOWN_CHUNKS else ""
    left = f" {untried} further chunks were not tried." if untried else ""
    message = f"{len(lost)} of {total} chunks could not be fetched: {shown}{more}.{left}"
    if peers_asked and all(chunk.absent for chunk in lost):
        return NotFoundError(
            message,
            hint="No peer that answered has them any more; if some are away, try again later.",
        )
    return TransferError(
        message,
        hint="`meshnode peers` shows who is reachable; try again when the holders are back.",
    )


def _story(chunk: LostChunk, peers_asked: int) -> str:
    cid = encode_cid(chunk.ref.digest)
    if not chunk.answers:
        why = f"none of {peers_asked} peers asked has it" if peers_asked else "no peer is reachable"
        return f"{cid} ({why})"
    first = list(chunk.answers.items())[:_SHOWN_PEERS]
    return f"{cid} ({', '.join(f'{peer.short}: {answer.reason}' for peer, answer in first)})"
