"""The story of a get that could not be completed: which chunks, which peers, what they answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...dht.peer_id import PeerId
from ...errors import TransferError
from ..content import ChunkRef, encode_cid

_SHOWN_CHUNKS = 3
_SHOWN_PEERS = 8


@dataclass(frozen=True, slots=True)
class LostChunk:
    """A chunk nobody delivered, and the last answer of everybody who was asked."""

    ref: ChunkRef
    answers: Mapping[PeerId, str]


def could_not_fetch(
    lost: Sequence[LostChunk], total: int, untried: int, peers_asked: int
) -> TransferError:
    """The error that tells it.

    Args:
        total: chunks wanted.
        untried: of these, never begun because the get was lost already.
        peers_asked: how many were asked what they hold.
    """
    shown = "; ".join(_story(chunk, peers_asked) for chunk in lost[:_SHOWN_CHUNKS])
    more = f"; and {len(lost) - _SHOWN_CHUNKS} more" if len(lost) > _SHOWN_CHUNKS else ""
    left = f" {untried} further chunks were not tried." if untried else ""
    return TransferError(
        f"{len(lost)} of {total} chunks could not be fetched: {shown}{more}.{left}",
        hint="`meshnode peers` shows who is reachable; try again when the holders are back.",
    )


def _story(chunk: LostChunk, peers_asked: int) -> str:
    cid = encode_cid(chunk.ref.digest)
    if not chunk.answers:
        why = f"none of {peers_asked} peers asked has it" if peers_asked else "no peer is reachable"
        return f"{cid} ({why})"
    first = list(chunk.answers.items())[:_SHOWN_PEERS]
    return f"{cid} ({', '.join(f'{peer.short}: {reason}' for peer, reason in first)})"
