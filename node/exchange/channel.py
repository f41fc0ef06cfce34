"""The streams to one peer, opened when needed and shared by all requests to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

import structlog
import trio

from ...dht.host import Host
from ...dht.peer_id import PeerId
from ...errors import DeadlineError, MembershipError, MeshError, PeerError
from .lanes import Lane
from .link import PeerActivity, StreamGivenUp, StreamLink
from .messages import PROTOCOL
from .pending import Pending, Question
from .settings import ExchangeSettings
from .stats import PeerStats
from .traffic import Invitation, Traffic

_log = structlog.get_logger(__name__)

_CROWDED_BYTES = 256 * 1024
"""Load on the least loaded stream from which on another one is worth opening."""
_PART_OF_REQUESTS = {Lane.INTERACTIVE: 1, Lane.REPAIR: 4, Lane.BACKGROUND: 8}
"""Which part of `requests_per_peer` a lane may have in flight."""


@dataclass(slots=True, eq=False)
class _Opening:
    """A stream being opened; all who wait for it share the outcome."""

    done: trio.Event = field(default_factory=trio.Event)
    link: StreamLink | None = None
    error: MeshError | None = None


class PeerChannel:
    """See the module.

    The streams live in the nursery of the `Exchange`, so none dies with the task that was first to
    need it. Each lane has its own, so that no answer waits behind one of a lower lane.

    Args:
        on_unused: called when the last stream is gone and nobody waits.
        on_unreachable: called when no stream could be opened, with the peer.
    """

    def __init__(
        self,
        host: Host,
        peer: PeerId,
        nursery: trio.Nursery,
        settings: ExchangeSettings,
        stats: PeerStats,
        traffic: Traffic,
        on_unused: Callable[[PeerChannel], None],
        on_unreachable: Callable[[PeerId], None],
    ) -> None:
        self.peer = peer
        self._host = host
        self._nursery = nursery
        self._settings = settings
        self._stats = stats
        self._traffic = traffic
        self._on_unused = on_unused
        self._on_unreachable = on_unreachable
        self._activity = PeerActivity(heard_at=trio.current_time())
        self._links: list[StreamLink] = []
        self._opening: dict[Lane, _Opening] = {}
        self._users = 0
        self._slots = {
            lane: trio.Semaphore(max(settings.requests_per_peer // part, 1))
            for lane, part in _PART_OF_REQUESTS.items()
        }

    async def ask(self, question: Question) -> Pending:
        """Send one request, on whichever stream of its lane is best; returns it answered.

        Raises:
            PeerError, MembershipError: unreachable, or the stream broke before the answer.
            DeadlineError: the peer was silent for too long.
        """
        self._users += 1
        try:
            async with self._slots[question.lane]:
                with trio.move_on_after(self._settings.answer_timeout) as limit:
                    while True:
                        with contextlib.suppress(StreamGivenUp):
                            return await self._ask(question, limit)
        finally:
            self._users -= 1
            self._check_unused()
        raise DeadlineError(
            f"Peer {self.peer.short} did not complete a request within "
            f"{self._settings.answer_timeout:g} s, though it answered others.",
        )

    async def _ask(self, question: Question, limit: trio.CancelScope) -> Pending:
        invitation: Invitation | None = None
        try:
            if question.invite is not None:
                # What holds us up here are our own limits: no fault of the peer's, however long.
                left, limit.deadline = limit.deadline - trio.current_time(), inf
                invitation = await question.invite()
                limit.deadline = trio.current_time() + left
            link = await self._pick(question.lane)
            told, invitation = invitation, None
            return await link.ask(question, told, limit)
        finally:
            if invitation is not None:
                invitation.over(0)

    def _usable(self, lane: Lane) -> list[StreamLink]:
        return [link for link in self._links if link.lane is lane and link.usable]

    async def _pick(self, lane: Lane) -> StreamLink:
        """A stream to use at once: no checkpoint lies between the choice and the return."""
        if not self._usable(lane):
            opening = self._opening.get(lane) or self._open(lane)
            await opening.done.wait()
            if opening.link is None or not opening.link.usable:
                raise self._failure(opening)
        usable = self._usable(lane)
        best = min(usable, key=lambda link: link.load)
        # Nobody waits for what lower lanes bring, so one stream does for each.
        room = len(usable) < (1 if lane.yields else self._settings.streams_per_peer)
        if room and best.load >= _CROWDED_BYTES and lane not in self._opening:
            self._open(lane)
        return best

    def _failure(self, opening: _Opening) -> PeerError | MembershipError:
        """The outcome of a failed opening, as an error of the asking task's own."""
        error = opening.link.failure if opening.link is not None else opening.error
        if isinstance(error, MembershipError):
            return MembershipError(error.message, hint=error.hint)
        if error is None:
            return PeerError(f"Peer {self.peer.short} closed a new stream.")
        return PeerError(error.message, hint=error.hint)

    def _open(self, lane: Lane) -> _Opening:
        self._opening[lane] = opening = _Opening()
        self._nursery.start_soon(self._live, opening, lane)
        return opening

    async def _live(self, opening: _Opening, lane: Lane) -> None:
        """Open a stream and run it until it ends."""
        try:
            stream = await self._host.open_stream(self.peer, PROTOCOL)
            opening.link = StreamLink(
                stream, self._settings, self._stats, self._activity, self._traffic, lane
            )
            self._links.append(opening.link)
        except (PeerError, MembershipError) as error:
            opening.error = error
            self._on_unreachable(self.peer)
        except Exception as error:  # noqa: BLE001 - task boundary: one peer fails, not the node
            _log.exception("open_stream_failed", peer=str(self.peer))
            opening.error = PeerError(f"No stream to peer {self.peer.short}: {error!r}")
        finally:
            del self._opening[lane]
            opening.done.set()
        if opening.link is not None:
            try:
                await opening.link.run()
            finally:
                self._links.remove(opening.link)
        self._check_unused()

    def _check_unused(self) -> None:
        if not self._users and not self._links and not self._opening:
            self._on_unused(self)
