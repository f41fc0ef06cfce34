"""Second requests and stolen ones: what is done about chunks whose owner is late.

- **Hedge.** Its peer is silent for twice the 95th percentile of its silences (or
  `response_timeout`), or takes three times as long as thought: the next best peer is asked as well,
  within the budget; whoever comes second is cancelled.
- **Steal.** The same, when the peer has not begun to send and the budget is used up; and whenever
  a peer is idle that would be finished in half the time. The request moves; nothing comes twice.
- **Endgame.** When nothing is left to begin, the last ones get a backup each, within the budget,
  where it should be finished in half the time the owner still needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from .assignment import untried
from .chunks import Phase
from .peers import Peer, Request
from .state import State
from .vocabulary import Why

_LATE_FACTOR = 3.0
_GAIN = 0.5
"""Of the time the owner still needs, what another peer may need at most to be worth it."""
_MARGIN_SECONDS = 0.02
_MOST_STEALS = 3
"""Per chunk and round: when everybody is late, moving it about helps nobody."""


def back_up(state: State) -> None:
    """Hedge and steal what is late, then what idle peers could finish sooner."""
    if state.is_serial:
        return
    alone = [r for r in state.requests.values() if len(r.chunk.requests) == 1]
    for request in sorted(alone, key=lambda r: r.chunk.index):
        if is_late(state, request):
            _second(state, request, Why.HEDGE)
    if state.policy.prefer_fast:
        _use_idle(state)


def is_late(state: State, request: Request) -> bool:
    return state.now >= late_at(state, request)


def late_at(state: State, request: Request) -> float:
    """When a request is late if nothing (more) comes from its peer until then."""
    peer, timeout = request.peer, state.policy.response_timeout
    slow_at = request.asked_at + _LATE_FACTOR * request.expected + peer.hedge_after(timeout)
    return min(peer.quiet_at(timeout), slow_at)


def _use_idle(state: State) -> None:
    """Let peers without work take over what they would finish in half the time."""
    if not any(peer.is_idle(state.now) for peer in state.peers.values()):
        return
    # What is begun is ended where it began, but for the last ones.
    ending = _is_ending(state)
    candidates = [
        request
        for request in state.requests.values()
        if len(request.chunk.requests) == 1
        and (ending if request.started else _may_move(state, request))
    ]
    for request in sorted(candidates, key=lambda r: -state.remaining_seconds(r)):
        _second(state, request, Why.ENDGAME if request.started else Why.STOLEN)


def _is_ending(state: State) -> bool:
    """Whether nothing is left to begin."""
    chunks = state.chunks
    return chunks.all_seen and len(chunks.known) == len(chunks.active)


def _second(state: State, request: Request, why: Why) -> None:
    """Ask somebody else for the chunk of `request`, beside its owner or instead of it."""
    chunk = request.chunk
    if chunk.phase is not Phase.ACTIVE or not state.chunks.is_wanted(chunk.index):
        return
    late = why is Why.HEDGE
    within = state.remaining_seconds(request) * (1.0 if late else _GAIN)
    peer = _other(state, request, within, idle=not late)
    if peer is None:
        return
    affordable = state.budget.allows(chunk.size) and state.bytes_fit(chunk.size)
    if why is not Why.STOLEN and affordable and chunk.backups < _MOST_STEALS:
        chunk.backups += 1
        state.hedges += 1
        state.ask(chunk, peer, why, charged=chunk.size)
    elif chunk.steals < _MOST_STEALS and _may_move(state, request):
        chunk.steals += 1
        state.steals += 1
        reason = "it was late" if late else "an idle peer will be faster"
        state.cancel(request, reason)
        state.ask(chunk, peer, Why.STOLEN)


def _may_move(state: State, request: Request) -> bool:
    """Whether its peer will hear of the cancellation before it begins to send."""
    peer = request.peer
    if request.started or state.is_quiet(peer):
        return not request.started
    ahead = (peer.bytes_before(request) - request.missing) / peer.rate
    return ahead > peer.latency + _MARGIN_SECONDS


def _other(state: State, request: Request, within: float, *, idle: bool) -> Peer | None:
    """The best peer beside the owner, if it should be finished `within` seconds; among those
    without work only, with `idle`."""
    size, timeout = request.chunk.size, state.policy.chunk_timeout
    candidates: Sequence[Peer] = [
        peer
        for peer in untried(state, request.chunk)
        if peer is not request.peer
        and peer.available(state.now)
        and not state.is_quiet(peer)
        and (not peer.requests if idle else peer.has_room(size, timeout))
    ]
    best = min(candidates, key=lambda peer: peer.finish_seconds(size), default=None)
    return best if best is not None and best.finish_seconds(size) < within else None
