"""Which chunk is asked of whom: in order, of the holder that should be finished first."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from ..schedule import EXPLORATION_SHARE
from .chunks import Chunk
from .peers import Peer
from .rounds import round_is_over, waits_for_busy
from .state import State
from .vocabulary import Answer, ReadHere, Why

STRANGERS_SHARE = 1 / 4
"""Of choices that go to somebody of whom nothing is known yet, as long as there is one."""
_LOOK_AHEAD = 16
"""Ready chunks nobody can take now that are passed over for later ones."""


def assign(state: State) -> None:
    """Begin what may begin: chunks in order, within the limits."""
    if len(state.chunks.active) >= state.most_chunks:
        return
    with closing(state.chunks.take_ready()) as ready:
        passed_over = 0
        for chunk in ready:
            if not _may_begin(state, chunk) or not state.bytes_fit(chunk.size):
                return
            passed_over += not _begin(state, chunk)
            if (
                state.lost
                or len(state.chunks.active) >= state.most_chunks
                or passed_over >= (1 if state.is_serial else _LOOK_AHEAD)
            ):
                return


def _begin(state: State, chunk: Chunk) -> bool:
    """Begin a chunk, if somebody can take it now."""
    if chunk.here:
        state.chunks.activate(chunk)
        state.decisions.append(ReadHere(chunk.index))
        return True
    peer = _choose(state, chunk)
    if peer is None:
        return False
    state.chunks.activate(chunk)
    state.ask(chunk, peer, Why.RETRY if chunk.answers else Why.FIRST)
    return True


def _may_begin(state: State, chunk: Chunk) -> bool:
    """Chunks that wait for another try hold back new ones, or all of a file would be begun while
    nobody delivers; in the serial case one is begun at a time."""
    begun, most = state.chunks.begun, state.most_chunks
    return chunk.index in begun or len(begun) < (1 if state.is_serial else most + max(most // 2, 1))


def _choose(state: State, chunk: Chunk) -> Peer | None:
    """The peer to ask now. None: the best is worth waiting for, or all were tried (the chunk waits
    for another round then)."""
    holders = untried(state, chunk)
    open_to = [peer for peer in holders if peer.available(state.now)]
    if open_to:
        state.chunks.patient.discard(chunk.index)
        return _best(state, open_to, chunk)
    resting = [peer for peer in holders if peer.is_resting(state.now)]
    if resting and waits_for_busy(state, chunk):
        return None
    for peer in holders:
        if peer not in resting:
            gone = "left the mesh" if peer.left else "left alone after failures"
            why = f" ({peer.last_error})" if peer.last_error else ""
            chunk.answers.setdefault(peer.id, Answer(gone + why))
    pauses = [max(peer.resting_until - state.now, peer.retry_in) for peer in holders]
    round_is_over(state, chunk, min(pauses, default=0.0))
    return None


def untried(state: State, chunk: Chunk) -> list[Peer]:
    """Holders that did not fail to deliver the chunk in this round, and may be asked at all."""
    peers = [state.peer(peer) for peer in chunk.holders if peer not in chunk.tried]
    return [peer for peer in peers if not peer.shed]


def _best(state: State, peers: Sequence[Peer], chunk: Chunk) -> Peer | None:
    timeout = state.policy.chunk_timeout
    with_room = [peer for peer in peers if peer.has_room(chunk.size, timeout)]
    if not with_room:
        return None
    if not state.policy.prefer_fast:
        return min(with_room, key=lambda peer: peer.times_asked)
    if len(with_room) > 1 and _may_explore(state):
        strangers = [peer for peer in with_room if not peer.is_known and not peer.requests]
        share = STRANGERS_SHARE if strangers else EXPLORATION_SHARE
        if state.rng.random() < share:
            return min(
                strangers or with_room, key=lambda peer: (len(peer.requests), peer.times_asked)
            )
    # Also the full ones: a fast peer's next turn may come before a slow idle one is finished.
    lively = [peer for peer in peers if not state.is_quiet(peer)] or with_room
    best = min(lively, key=lambda peer: (peer.finish_seconds(chunk.size), peer.times_asked))
    return best if best in with_room else None


def _may_explore(state: State) -> bool:
    """Not with the last chunks, which a slow peer would hold up."""
    chunks = state.chunks
    return not chunks.all_seen or len(chunks.known) > 4 * state.most_chunks
