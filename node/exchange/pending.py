"""One request of ours, from being queued to its final answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from ...dht.host import Buffer
from ...errors import FormatError, MeshError
from .lanes import Lane
from .messages import (
    Answer,
    AskInfo,
    Data,
    Get,
    Have,
    Held,
    Info,
    Proceed,
    Put,
    Refused,
    Release,
    Released,
    Stored,
)
from .traffic import Invitation

Asking = Have | Get | Put | AskInfo | Release
"""Requests that get an answer."""


@dataclass(slots=True, eq=False)
class Arrival:
    """How far the body of one answer has come, for whoever asked to watch it."""

    began: bool = False
    """The first byte of an answer came."""
    received: int = 0
    at: float = 0.0
    """When the last of it came (trio's time)."""

    def update(self, received: int) -> None:
        self.began = True
        if received > self.received or not self.at:
            self.at = trio.current_time()
        self.received = received


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Question:
    """One request as the exchange hands it to the streams of a peer. Seconds and bytes."""

    make: Callable[[int], Asking]
    """The request for a given id."""
    lane: Lane
    first_byte_timeout: float
    progress_timeout: float
    data: Buffer = b""
    """The body of a Put."""
    expected_bytes: int = 0
    """Of body, in either direction."""
    invite: Callable[[], Awaitable[Invitation]] | None = None
    """Waits until our own limits and lanes allow the body."""
    on_sent: Callable[[], None] | None = None
    """Called when all of the body was handed to the transport."""
    arrival: Arrival | None = None
    """Kept up to date while the answer comes in."""
    into: Callable[[], memoryview] | None = None
    """Asked as the body of the answer begins where to put it, `expected_bytes` long; None: memory
    of its own."""


@dataclass(slots=True, eq=False)
class Pending:
    """State shared by the task that asks and the reader and writer of its stream.

    Invariant: once `done` is set, exactly one of `answer` and `failure` is.
    """

    request: Asking
    expected_bytes: int
    queued_at: float
    sending: bool = False
    """The writer has begun with the request: from here on the peer owes an answer."""
    abandoned: bool = False
    """Nobody waits any more; what comes is read and dropped."""
    sent_at: float | None = None
    """When the last frame of ours was handed to the transport; None while one is queued."""
    asked_at: float = 0.0
    """When the writer began with the request; it may return later than the answer comes."""
    busy_when_asked: float = 0.0
    """The stream's seconds spent in bodies of other requests, at `asked_at`."""
    waited: float | None = None
    """Seconds to the first byte of the answer, without those in which earlier bodies came."""
    proceed: bool = False
    upload_began: bool = False
    on_sent: Callable[[], None] | None = None
    """Called when all of the body was handed to the transport."""
    uploaded: int = 0
    """Bytes of the body that were handed to the transport."""
    download_began: bool = False
    downloaded: int = 0
    """Bytes of the answer's body that came."""
    unacknowledged: int = 0
    """Bytes of the body, from when it is queued."""
    arrival: Arrival | None = None
    """Somebody watches how the answer comes in."""
    into: Callable[[], memoryview] | None = None
    invitation: Invitation | None = None
    limit: trio.CancelScope | None = None
    """Around all of the request; time in which we hold it up ourselves does not count."""
    held: bool = False
    """Our own limits held up its body: how long it took says nothing of the peer."""
    began: trio.Event = field(default_factory=trio.Event)
    """The first byte of an answer came (for a Put perhaps only Proceed), or `done`."""
    done: trio.Event = field(default_factory=trio.Event)
    answer: Answer | None = None
    body: bytearray | memoryview | None = None
    failure: MeshError | None = None

    def settle(self, answer: Answer) -> None:
        self.answer = answer
        self.began.set()
        self.done.set()

    def fail(self, error: MeshError) -> None:
        self.failure = error
        self.began.set()
        self.done.set()

    def over(self) -> None:
        """Nothing more will come or go for this request."""
        if self.invitation is not None:
            self.invitation.over(self.downloaded)

    def check(self, answer: Answer) -> None:
        """Raises FormatError when `answer` does not fit what was asked."""
        if not self._fits(answer):
            raise FormatError(
                f"The answer to a {type(self.request).__name__} request was "
                f"{type(answer).__name__}, or of a size that was not asked for."
            )

    def _fits(self, answer: Answer) -> bool:
        match self.request, answer:
            case _, Refused():
                return True
            case Have(digests=digests), Held(flags=flags):
                return len(digests) == len(flags)
            case Get(offset=offset, length=None), Data(size=size, length=length):
                return length == size - offset
            case Get(offset=offset, length=asked), Data(size=size, length=length):
                return length == asked and offset + length <= size
            case Put(inline=False), Proceed():
                return not self.proceed
            case Put(), Stored():
                return True
            case Release(digests=digests), Released(count=count):
                return count <= len(digests)
            case AskInfo(), Info():
                return True
            case _:
                return False


async def wait_with_progress(event: trio.Event, since: Callable[[], float], timeout: float) -> bool:
    """Wait for `event` as long as the silence since `since()` (trio's time) is below `timeout`.

    Returns:
        False when there was silence for `timeout` seconds.
    """
    while not event.is_set() and (limit := since() + timeout) > trio.current_time():
        with trio.move_on_at(limit):
            await event.wait()
    return event.is_set()
