"""Handshakes under way: bounded in time and number, fair between sources, counted."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from meshnode.errors import PeerError
from meshnode.node.transport.libp2p_handshakes import PendingHandshakes, source_of
from trio.testing import MockClock, wait_all_tasks_blocked


class Door:
    """Handshakes that wait for ever, by source, and what became of them."""

    def __init__(self, nursery: trio.Nursery, most: int, timeout: float = 5.0) -> None:
        self.counts: Counter[str] = Counter()
        self.gone: list[str] = []
        self.pending = PendingHandshakes(most, timeout, self.counts)
        self._nursery = nursery

    async def knock(self, name: str, host: str) -> None:
        self._nursery.start_soon(self._wait, name, host)
        await wait_all_tasks_blocked()

    async def _wait(self, name: str, host: str) -> None:
        with pytest.raises(PeerError, match="no time left"), self.pending.one_more(host):
            await trio.sleep_forever()
        self.gone.append(name)


async def test_the_oldest_of_the_busiest_source_makes_room(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        door = Door(nursery, 4)
        await door.knock("honest", "192.0.2.1")
        for number in range(6):
            await door.knock(f"flood {number}", "198.51.100.66")
        assert door.gone == ["flood 0", "flood 1", "flood 2"]
        assert len(door.pending) == 4
        await door.knock("another honest one", "192.0.2.2")
        assert door.gone[-1] == "flood 3"
        assert door.counts == {"displaced": 4}
        nursery.cancel_scope.cancel()
    assert len(door.pending) == 0


async def test_a_handshake_has_one_deadline_in_all(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        door = Door(nursery, 4, timeout=5.0)
        began = trio.current_time()
        nursery.start_soon(door._wait, "slow", "192.0.2.1")
    assert trio.current_time() - began == 5.0
    assert door.counts == {"late": 1}
    assert len(door.pending) == 0


async def test_what_fails_by_itself_is_counted_and_told() -> None:
    counts: Counter[str] = Counter()
    pending = PendingHandshakes(4, 5.0, counts)
    with pytest.raises(PeerError, match="nonsense"), pending.one_more("192.0.2.1"):
        raise PeerError("nonsense")
    with pending.one_more("192.0.2.1"):
        assert len(pending) == 1
    assert (counts, len(pending)) == ({"failed": 1}, 0)


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_ipv6_site_is_one_source(host: str, source: str) -> None:
    assert source_of(host) == source
