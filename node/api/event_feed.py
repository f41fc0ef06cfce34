"""Events on their way to a client that may be slower than the work it watches.

The work must never wait for its audience, and memory must not grow with a client that does not
read. So: only the newest progress event is kept, other events are kept up to a bound, oldest lost
first (and counted). What ends the answer is not an event and is never lost.
"""

from __future__ import annotations

from collections import deque

import trio

MAX_WAITING_EVENTS = 256

Event = dict[str, object]


class EventFeed:
    """One producer's events for one consumer; `emit` never blocks and needs trio's own thread."""

    def __init__(self, limit: int = MAX_WAITING_EVENTS) -> None:
        self._limit = limit
        self._events: deque[Event] = deque()
        self._progress: Event | None = None
        self._lost = 0
        self._closed = False
        self._something = trio.Event()

    def emit(self, event: Event) -> None:
        """Add an event: a dict with a "type"; those of type "progress" replace each other."""
        if event.get("type") == "progress":
            self._progress = event
        else:
            if len(self._events) >= self._limit:
                self._events.popleft()
                self._lost += 1
            self._events.append(event)
        self._something.set()

    def close(self) -> None:
        """No more events will come; `take` gives what is left, then None."""
        self._closed = True
        self._something.set()

    async def take(self) -> list[Event] | None:
        """Wait for events and take all that wait; None after the last ones of a closed feed."""
        await self._something.wait()
        taken: list[Event] = []
        if self._lost:
            taken.append({"type": "lost", "events": self._lost})
            self._lost = 0
        taken.extend(self._events)
        self._events.clear()
        if self._progress is not None:
            taken.append(self._progress)
            self._progress = None
        if self._closed:
            return taken or None
        self._something = trio.Event()
        return taken
