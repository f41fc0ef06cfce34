"""The scheduler: what happened goes in, what to do comes out. It has no clock, no tasks, no I/O.

Invariants, each of which has a property test:
- a chunk has one request under way, or two with a hedge, never more;
- chunks under way are at most `most_chunks`, bytes at most `most_bytes` (or one chunk);
- what is asked twice stays within the hedge budget;
- every wanted chunk ends verified, or the transfer ends with the answers of everybody asked;
- after the last decision (`Finished` or `GiveUp`) nothing is under way.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from ....dht.peer_id import PeerId
from .assignment import assign
from .backup import back_up, late_at
from .chunks import Phase
from .outcomes import failed, left, verified
from .peers import Peer
from .rounds import found, patience_ends, wake
from .state import State
from .story import Story, What
from .vocabulary import (
    Came,
    Decision,
    Event,
    Failed,
    Finished,
    Found,
    GiveUp,
    HereFailed,
    LookUp,
    Moved,
    PeerJoined,
    PeerLeft,
    Policy,
    Scores,
    Stopped,
    Tally,
    Verified,
)

_TICK_SECONDS = 0.25
"""While something is under way, its progress is looked at so often at least."""


class Scheduler:
    """One set of chunks to be fetched; see the module.

    Args:
        sizes: of the chunks as stored, in the order their bytes are needed.
        open_ended: does not finish by itself, because the reader may still move.
        peers: what is known of peers from earlier sets of the same transfer; grows.
        now: seconds on the clock of `step`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        policy: Policy,
        scores: Scores,
        *,
        rng: random.Random,
        now: float,
        open_ended: bool = False,
        peers: dict[PeerId, Peer] | None = None,
        story: Story | None = None,
    ) -> None:
        self._state = State(
            sizes,
            policy,
            scores,
            rng,
            Story(now) if story is None else story,
            now,
            {} if peers is None else peers,
        )
        self._open_ended = open_ended
        self._looked_for: set[int] = set()
        """The window of chunks whose lookup is under way."""
        self._width = policy.first_window
        self._joined = False
        self.over = False
        """Whether the last decision was made."""

    # --- one step ---

    def step(self, now: float, events: Iterable[Event] = ()) -> list[Decision]:
        """Take in what happened, in order, and decide.

        Events about requests and chunks that are over are no fault: they were under way when it
        was decided. After the last decision nothing more comes.
        """
        state = self._state
        state.begin_step(now)
        if not self.over:
            for event in events:
                self._take(event)
            self._decide()
        return state.decisions

    def _decide(self) -> None:
        state = self._state
        if self.over:  # stopped
            return
        if not state.lost:
            wake(state, all_of_them=self._joined)
            self._joined = False
            assign(state)
            back_up(state)
            self._look_ahead()
        self._end_perhaps()
        state.story.idle(state.now, not state.chunks.active)

    def wake_at(self) -> float | None:
        """When `step` should be called at the latest, without an event; None: with the next."""
        state = self._state
        if self.over:
            return None
        times = [state.chunks.known[index].wake_at for index in state.chunks.waiting]
        times += [late_at(state, request) for request in state.requests.values()]
        times += [peer.resting_until for peer in state.peers.values()]
        times += [patience_ends(state, state.chunks.known[index]) for index in state.chunks.patient]
        if state.requests or state.chunks.any_ready:
            times.append(state.now + _TICK_SECONDS)
        # What is past was seen to as far as it could be; the tick looks again.
        return min((at for at in times if at > state.now), default=None)

    @property
    def tally(self) -> Tally:
        state = self._state
        return Tally(
            requests=state.asked,
            hedges=state.hedges,
            steals=state.steals,
            retries=state.retries,
            hedged_bytes=state.budget.spent,
        )

    @property
    def story(self) -> Story:
        return self._state.story

    @property
    def most_chunks(self) -> int:
        """Chunks that may be in flight now."""
        return self._state.most_chunks

    # --- events ---

    def _take(self, event: Event) -> None:
        state = self._state
        match event:
            case Came(request=ident, received=received, at=at):
                if (request := state.requests.get(ident)) is not None:
                    request.peer.came(request, min(received, request.chunk.size), at)
            case Verified(chunk=index, request=ident):
                verified(state, index, ident)
            case Failed():
                failed(state, event)
            case Found():
                self._found(event)
            case HereFailed(chunk=index):
                self._look_elsewhere(index)
            case PeerJoined(peer=peer_id):
                self._peer_joined(peer_id)
            case PeerLeft(peer=peer_id):
                left(state, peer_id)
            case Moved():
                self._move(event)
            case Stopped():
                self._cancel_all("stopped")
                self.over = True

    def _found(self, event: Found) -> None:
        chunks = self._state.chunks
        for index in {*event.holders, *event.here}:
            self._looked_for.discard(index)
            chunk = chunks.known.get(index)
            if chunk is None or chunk.phase is not Phase.LOOKING:
                continue
            chunk.here = index in event.here
            chunk.holders = list(dict.fromkeys(event.holders.get(index, ())))
            if chunk.attempt:
                self._believe_in(chunk.holders)
            found(self._state, chunk)

    def _believe_in(self, holders: Iterable[PeerId]) -> None:
        """A fresh lookup names them: one that seemed to have left may be reached again."""
        for peer_id in holders:
            if (peer := self._state.peers.get(peer_id)) is not None:
                peer.left = False

    def _look_elsewhere(self, index: int) -> None:
        """It was said to be on this node; peers have it."""
        state = self._state
        chunk = state.chunks.known.get(index)
        if chunk is not None and chunk.here:
            chunk.here = False
            state.chunks.look(chunk)
            state.decisions.append(LookUp((index,), fresh=True))

    def _peer_joined(self, peer_id: PeerId) -> None:
        """It may hold what is waited for: the next step looks."""
        state = self._state
        if (peer := state.peers.get(peer_id)) is not None:
            peer.left = False
        self._joined = True
        state.story.add(state.now, What.JOINED, None, peer_id)

    def _move(self, event: Moved) -> None:
        state, chunks = self._state, self._state.chunks
        jumped = not chunks.first <= event.first <= chunks.stop
        chunks.move(event.first, event.stop, event.again)
        for request in list(state.requests.values()):
            if not chunks.is_wanted(request.chunk.index):
                state.cancel(request, "no longer wanted")
        for chunk in list(chunks.known.values()):
            if chunks.is_wanted(chunk.index):
                continue
            if chunk.phase is not Phase.READY or chunk.index < event.first or jumped:
                chunks.drop(chunk.index)
        if jumped:
            self._looked_for.clear()  # nobody waits for the lookup that is under way
            self._width = state.policy.first_window
            state.story.add(state.now, What.MOVED, event.first)

    # --- decisions ---

    def _look_ahead(self) -> None:
        """Look for holders some way ahead of the fetching, not for a whole huge file at once."""
        state, chunks = self._state, self._state.chunks
        if self._looked_for or len(chunks.known) - len(chunks.begun) >= state.policy.window:
            return
        indices = chunks.unseen(self._width)
        if indices:
            self._looked_for.update(indices)
            self._width = state.policy.window
            state.decisions.append(LookUp(tuple(indices), fresh=False))

    def _end_perhaps(self) -> None:
        state, chunks = self._state, self._state.chunks
        if state.lost:
            untried = chunks.missing - sum(map(chunks.is_wanted, chunks.begun))
            self._cancel_all("the transfer failed")
            state.decisions.append(GiveUp(tuple(state.lost), untried))
            self.over = True
        elif chunks.complete and not self._open_ended:
            self._cancel_all("no longer wanted")
            state.decisions.append(Finished())
            self.over = True

    def _cancel_all(self, reason: str) -> None:
        for request in list(self._state.requests.values()):
            self._state.cancel(request, reason)
