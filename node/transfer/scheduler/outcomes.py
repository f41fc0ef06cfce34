"""What becomes of a chunk and of its peer when a request ends."""

from __future__ import annotations

from ....dht.peer_id import PeerId
from ..schedule import BACKOFF_CAP_SECONDS, backoff_seconds
from .chunks import Chunk
from .peers import Peer, Request
from .rounds import patience_ends
from .state import State
from .story import What
from .vocabulary import Answer, Failed, Fault


def verified(state: State, index: int, ident: int | None) -> None:
    """A chunk is here: by request `ident`, or read from this node.

    The request may have been given up meanwhile, when its bytes were just being checked.
    """
    chunk = state.chunks.known.get(index)
    winner = None if ident is None else state.requests.get(ident)
    if winner is not None:
        _delivered(state, winner)
    for other in [] if chunk is None else list(chunk.requests):
        loser = state.requests[other]
        if loser is not winner:
            state.lose_hedge(loser, winner)
            state.cancel(loser, "another peer was first")
    if winner is not None:
        state.over(winner)
    if ident is None:
        state.story.add(state.now, What.READ_HERE, index)
    state.progress_at = state.now
    state.chunks.done(index)


def _delivered(state: State, winner: Request) -> None:
    size, peer = winner.chunk.size, winner.peer
    if winner.received < size:
        peer.came(winner, size, state.now)
    peer.served(winner, winner.heard_at)
    peer.delivered()
    state.budget.arrived(size)
    if state.depth is not None:
        state.depth.arrived(size, state.now)
    seconds = state.now - winner.asked_at
    state.story.add(state.now, What.CAME, winner.chunk.index, peer.id, "", seconds)


def failed(state: State, event: Failed) -> None:
    """A request ended without its chunk: what follows for the chunk, and for the peer."""
    request = state.requests.get(event.request)
    if request is None:
        return
    chunk, peer = request.chunk, request.peer
    seconds = state.now - request.asked_at
    told = f"{event.fault}: {event.reason}"
    state.story.add(state.now, What.FAILED, chunk.index, peer.id, told, seconds)
    if request.received or event.fault is Fault.TIMED_OUT:
        peer.served(request, state.now)
    _take_off(state, request)
    busy = event.fault is Fault.BUSY
    if busy and chunk.busy_since is None:
        chunk.busy_since = state.now
    waits = busy and state.now < patience_ends(state, chunk)
    answer = Answer(event.reason, absent=event.fault is Fault.ABSENT, busy=busy)
    state.answered(chunk, peer, answer, tried=not waits)
    _judge(state, peer, request, event)
    _go_on(state, chunk)


def _judge(state: State, peer: Peer, request: Request, event: Failed) -> None:
    match event.fault:
        case Fault.BUSY:
            _rest(state, peer, event.retry_after or 0.0)
        case Fault.REFUSED if event.retry_after:
            _rest(state, peer, event.retry_after)
        case Fault.CORRUPT:
            _shed(state, peer, event.reason)
        case Fault.FAILED:
            peer.on_probation = True
        case Fault.TIMED_OUT:
            peer.on_probation = True
            if state.depth is not None:
                state.depth.timed_out(request.asked_at, state.now)
        case _:
            pass


def _rest(state: State, peer: Peer, asked_for: float) -> None:
    """Leave it alone as long as it asked, and longer each time in a row."""
    if state.now >= peer.resting_until:
        peer.times_busy += 1
    extra = backoff_seconds(peer.times_busy - 1, state.rng)
    rest = min(asked_for + extra, BACKOFF_CAP_SECONDS)
    peer.said_busy(state.now + rest)
    state.story.add(state.now, What.RESTS, None, peer.id, "busy", rest)


def _shed(state: State, peer: Peer, reason: str) -> None:
    """It sent false bytes: nothing more is asked of it, and nothing under way is waited for."""
    peer.shed = reason
    state.story.add(state.now, What.SHED, None, peer.id, reason)
    _take_all_off(state, peer, Answer(reason), "its peer sent false bytes")


def left(state: State, peer_id: PeerId) -> None:
    """A peer is no member any more; what it was asked for is asked of others at once."""
    peer = state.peers.get(peer_id)
    if peer is None or peer.left:
        return
    peer.left = True
    state.story.add(state.now, What.LEFT, None, peer_id)
    _take_all_off(state, peer, Answer("left the mesh"), "its peer left")


def _take_all_off(state: State, peer: Peer, answer: Answer, reason: str) -> None:
    for request in list(peer.requests.values()):
        chunk = request.chunk
        state.lose_hedge(request, None)
        state.cancel(request, reason)
        state.answered(chunk, peer, answer)
        _go_on(state, chunk)


def _take_off(state: State, request: Request) -> None:
    """Like `State.cancel`, for a request that ended by itself."""
    state.lose_hedge(request, None)
    state.over(request)


def _go_on(state: State, chunk: Chunk) -> None:
    """Somebody else is asked, unless somebody was asked already."""
    if not chunk.requests and chunk.index in state.chunks.known:
        state.chunks.ready(chunk)
