"""Who is told when a peer becomes reachable, or is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from ...dht.host import ConnectionEvent

_BACKLOG = 256


class EventHub:
    """Hands connection events to any number of subscribers and never waits for one of them."""

    def __init__(self) -> None:
        self._subscribers: set[
            tuple[
                trio.MemorySendChannel[ConnectionEvent], trio.MemoryReceiveChannel[ConnectionEvent]
            ]
        ] = set()

    def publish(self, event: ConnectionEvent) -> None:
        """Tell all subscribers; one that lags behind loses its oldest event."""
        for sender, receiver in self._subscribers:
            try:
                sender.send_nowait(event)
            except trio.WouldBlock:
                receiver.receive_nowait()
                sender.send_nowait(event)
            except trio.BrokenResourceError:
                continue  # the subscriber closed its end early; its context will remove it

    def subscribe(
        self,
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[ConnectionEvent]]:
        return self._subscription()

    @asynccontextmanager
    async def _subscription(self) -> AsyncIterator[trio.MemoryReceiveChannel[ConnectionEvent]]:
        sender, receiver = trio.open_memory_channel[ConnectionEvent](_BACKLOG)
        self._subscribers.add((sender, receiver))
        try:
            yield receiver
        finally:
            self._subscribers.discard((sender, receiver))
            sender.close()
            receiver.close()
