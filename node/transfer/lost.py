"""The story of a get that could not be completed: which chunks, which peers, what they answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...dht.peer_id import PeerId
from ...errors import NotFoundError, TransferError
from ..content import ChunkRef, encode_cid
from .scheduler import Answer

_SHOWN_CHUNKS = 2
_SHOWN_PEERS = 8


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
    named = ", ".join(encode_cid(chunk.ref.digest) for chunk in lost[:_SHOWN_CHUNKS])
    more = f" and {len(lost) - _SHOWN_CHUNKS} more" if len(lost) > _SHOWN_CHUNKS else ""
    left = f" {untried} further chunks were not tried." if untried else ""
    message = (
        f"{len(lost)} of {total} chunks could not be fetched ({named}{more})."
        f" {_answers(lost, peers_asked)}{left}"
    )
    if peers_asked and all(chunk.absent for chunk in lost):
        return NotFoundError(
            message,
            hint="No peer that answered has them any more; if some are away, try again later.",
        )
    return TransferError(
        message,
        hint="`meshnode peers` shows who is reachable; try again when the holders are back.",
    )


def _answers(lost: Sequence[LostChunk], peers_asked: int) -> str:
    """What each peer answered in the end, the same answers of a peer counted together."""
    counts = Counter(
        (peer, answer.reason.rstrip("."))
        for chunk in lost
        for peer, answer in chunk.answers.items()
    )
    if not counts:
        return (
            f"None of {peers_asked} peers asked has them." if peers_asked else "No peer is there."
        )
    told = [
        f"{peer.short}: {reason}" + (f" ({count} chunks)" if count > 1 else "")
        for (peer, reason), count in counts.most_common(_SHOWN_PEERS)
    ]
    return "; ".join(told) + "."
