"""Subscribers to connection events, quick and slow."""

from __future__ import annotations

import pytest
import trio
from meshnode.dht.host import ConnectionEvent
from meshnode.dht.peer_id import PeerId
from meshnode.node.transport.connection_events import EventHub


def event(number: int) -> ConnectionEvent:
    return ConnectionEvent(PeerId.from_ed25519(number.to_bytes(32, "big")), connected=True)


async def test_every_subscriber_gets_every_event() -> None:
    hub = EventHub()
    async with hub.subscribe() as one, hub.subscribe() as other:
        hub.publish(event(1))
        assert await one.receive() == await other.receive() == event(1)


async def test_a_subscriber_that_lags_loses_the_oldest_events_and_holds_nobody_up() -> None:
    hub = EventHub()
    async with hub.subscribe() as lagging:
        for number in range(300):
            hub.publish(event(number))
        first = await lagging.receive()
        assert first == event(300 - 256)


async def test_nothing_comes_before_or_after_the_subscription() -> None:
    hub = EventHub()
    hub.publish(event(1))
    async with hub.subscribe() as events:
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()
        await events.aclose()
        hub.publish(event(2))
    hub.publish(event(3))
