"""When all holders of a chunk were tried: a pause, a fresh lookup, another round; or the end."""

from __future__ import annotations

from ..schedule import BACKOFF_CAP_SECONDS, backoff_seconds
from .chunks import Chunk, Phase
from .state import State
from .story import What
from .vocabulary import LookUp, Lost


def round_is_over(state: State, chunk: Chunk, pause: float) -> None:
    """Nobody is left to ask. Wait at least `pause`, at most 10 s, or give the chunk up.

    Args:
        pause: until somebody who was left alone may be asked again.
    """
    attempt = chunk.attempt
    chunk.attempt += 1
    if chunk.attempt >= state.policy.rounds:
        state.lost.append(Lost(chunk.index, dict(chunk.answers)))
        state.story.add(state.now, What.LOST, chunk.index)
        return
    wait = min(max(backoff_seconds(attempt, state.rng), pause), BACKOFF_CAP_SECONDS)
    state.chunks.wait(chunk, state.now + wait)
    cause = "every holder failed" if chunk.tried or chunk.answers else "no holder is known"
    state.story.add(state.now, What.WAITS, chunk.index, None, cause, wait)


def wake(state: State, *, all_of_them: bool = False) -> None:
    """Look up anew who holds the chunks whose pause is over, in one go."""
    chunks = state.chunks
    due = [
        chunks.known[index]
        for index in sorted(chunks.waiting)
        if all_of_them or chunks.known[index].wake_at <= state.now
    ]
    for chunk in due:
        chunks.look(chunk)
    if due:
        state.decisions.append(LookUp(tuple(chunk.index for chunk in due), fresh=True))


def waits_for_busy(state: State, chunk: Chunk) -> bool:
    """Whether holders that only rest are waited for: not when nothing at all got on for long."""
    if state.now >= patience_ends(state, chunk):
        return False
    if chunk.index not in state.chunks.patient:
        state.chunks.patient.add(chunk.index)
        state.story.add(state.now, What.WAITS, chunk.index, None, "every holder is busy")
    return True


def patience_ends(state: State, chunk: Chunk) -> float:
    """The time one chunk may take, after the longest rest that a peer is granted; from when a
    holder first was busy, or anything came last."""
    since = state.now if chunk.busy_since is None else chunk.busy_since
    patience = state.policy.chunk_timeout + BACKOFF_CAP_SECONDS
    return max(since, state.progress_at) + patience


def found(state: State, chunk: Chunk) -> None:
    """A lookup came back for the chunk: a new round begins."""
    chunk.tried.clear()
    chunk.steals = 0
    if chunk.phase is Phase.LOOKING:
        state.chunks.ready(chunk)
