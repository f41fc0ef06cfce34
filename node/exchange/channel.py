"""The streams to one peer, opened when needed and shared by all requests to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
import trio

from ...dht.host import Buffer, Host
from ...dht.peer_id import PeerId
from ...errors import DeadlineError, MembershipError, MeshError, PeerError
from .link import PeerActivity, StreamLink
from .messages import PROTOCOL
from .pending import Arrival, Asking, Pending
from .settings import ExchangeSettings
from .stats import PeerStats

_log = structlog.get_logger(__name__)

_CROWDED_BYTES = 256 * 1024
"""Load on the least loaded stream from which on another one is worth opening."""


@dataclass(slots=True, eq=False)
class _Opening:
    """A stream being opened; all who wait for it share the outcome."""

    done: trio.Event = field(default_factory=trio.Event)
    link: StreamLink | None = None
    error: MeshError | None = None


class PeerChannel:
    """See the module.

    The streams live in the nursery of the `Exchange`, so none dies with the task that was first to
    need it. Lanes (interactive before repair before background) would choose the stream in `_pick`.

    Args:
        on_unused: called when the last stream is gone and nobody waits.
    """

    def __init__(
        self,
        host: Host,
        peer: PeerId,
        nursery: trio.Nursery,
        settings: ExchangeSettings,
        stats: PeerStats,
        on_unused: Callable[[PeerChannel], None],
    ) -> None:
        self.peer = peer
        self._host = host
        self._nursery = nursery
        self._settings = settings
        self._stats = stats
        self._on_unused = on_unused
        self._activity = PeerActivity(heard_at=trio.current_time())
        self._links: list[StreamLink] = []
        self._opening: _Opening | None = None
        self._users = 0
        self._slots = trio.Semaphore(settings.requests_per_peer)

    async def ask(
        self,
        make: Callable[[int], Asking],
        *,
        data: Buffer = b"",
        on_sent: Callable[[], None] | None = None,
        arrival: Arrival | None = None,
        expected_bytes: int = 0,
        first_byte_timeout: float,
        progress_timeout: float,
    ) -> Pending:
        """Send one request, on whichever stream is best; returns it answered.

        Args:
            make: the request for a given id.
            data: the body of a Put.
            on_sent: called when all of it was handed to the transport.
            arrival: is kept up to date while the answer comes in.
            expected_bytes: of body, in either direction.

        Raises:
            PeerError, MembershipError: unreachable, or the stream broke before the answer.
            DeadlineError: the peer was silent for too long.
        """
        self._users += 1
        try:
            with trio.move_on_after(self._settings.answer_timeout):
                async with self._slots:
                    link = await self._pick()
                    return await link.ask(
                        make,
                        data,
                        on_sent,
                        arrival,
                        expected_bytes,
                        first_byte_timeout,
                        progress_timeout,
                    )
        finally:
            self._users -= 1
            self._check_unused()
        raise DeadlineError(
            f"Peer {self.peer.short} did not complete a request within "
            f"{self._settings.answer_timeout:g} s, though it answered others.",
        )

    async def _pick(self) -> StreamLink:
        """A stream to use at once: no checkpoint lies between the choice and the return."""
        if not any(link.usable for link in self._links):
            opening = self._opening or self._open()
            await opening.done.wait()
            if opening.link is None or not opening.link.usable:
                raise self._failure(opening)
        usable = [link for link in self._links if link.usable]
        best = min(usable, key=lambda link: link.load)
        room = len(usable) < self._settings.streams_per_peer
        if room and best.load >= _CROWDED_BYTES and self._opening is None:
            self._open()
        return best

    def _failure(self, opening: _Opening) -> PeerError | MembershipError:
        """The outcome of a failed opening, as an error of the asking task's own."""
        error = opening.link.failure if opening.link is not None else opening.error
        if isinstance(error, MembershipError):
            return MembershipError(error.message, hint=error.hint)
        if error is None:
            return PeerError(f"Peer {self.peer.short} closed a new stream.")
        return PeerError(error.message, hint=error.hint)

    def _open(self) -> _Opening:
        self._opening = opening = _Opening()
        self._nursery.start_soon(self._live, opening)
        return opening

    async def _live(self, opening: _Opening) -> None:
        """Open a stream and run it until it ends."""
        try:
            stream = await self._host.open_stream(self.peer, PROTOCOL)
            opening.link = StreamLink(stream, self._settings, self._stats, self._activity)
            self._links.append(opening.link)
        except (PeerError, MembershipError) as error:
            opening.error = error
        except Exception as error:  # noqa: BLE001 - task boundary: one peer fails, not the node
            _log.exception("open_stream_failed", peer=str(self.peer))
            opening.error = PeerError(f"No stream to peer {self.peer.short}: {error!r}")
        finally:
            self._opening = None
            opening.done.set()
        if opening.link is not None:
            try:
                await opening.link.run()
            finally:
                self._links.remove(opening.link)
        self._check_unused()

    def _check_unused(self) -> None:
        if not self._users and not self._links and self._opening is None:
            self._on_unused(self)
