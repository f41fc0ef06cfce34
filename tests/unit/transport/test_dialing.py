"""Dials on a virtual clock, with addresses that answer, refuse or hang as told."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from meshnode.dht.peer_id import PeerId
from meshnode.errors import PeerError
from meshnode.node.transport.address_book import AddressBook
from meshnode.node.transport.dialing import Dialler
from meshnode.node.transport.limits import HostLimits
from trio.testing import MockClock

ME = PeerId.from_ed25519(bytes(32))
PEER = PeerId.from_ed25519(bytes([1]) * 32)
LIMITS = HostLimits()


class Network:
    """Answers dials: an address maps to seconds until it answers, or None to be refused."""

    def __init__(self, nursery: trio.Nursery, answers: dict[str, float | None]) -> None:
        self.answers = answers
        self.connected: set[PeerId] = set()
        self.dialled: list[tuple[str, float]] = []
        self.cancelled: list[str] = []
        self._start = trio.current_time()
        self.book = AddressBook(ME)
        self.book.add(PEER, list(answers))
        self.dialler = Dialler(
            nursery, self.book, self.dial_one, self.connected.__contains__, LIMITS, random.Random(1)
        )

    async def dial_one(self, peer: PeerId, address: str) -> None:
        self.dialled.append((address, round(trio.current_time() - self._start, 3)))
        answer = self.answers[address]
        if answer is None:
            raise PeerError("refused")
        try:
            await trio.sleep(answer)
        except trio.Cancelled:
            self.cancelled.append(address)
            raise
        self.connected.add(peer)


@asynccontextmanager
async def network(answers: dict[str, float | None]) -> AsyncIterator[Network]:
    async with trio.open_nursery() as nursery:
        yield Network(nursery, answers)
        nursery.cancel_scope.cancel()


def address(number: int) -> str:
    return f"/ip4/192.0.2.{number}/tcp/4710"


NEVER = 1e6


async def test_a_slow_address_gets_a_head_start_and_a_refusal_none(
    autojump_clock: MockClock,
) -> None:
    async with network({address(1): NEVER, address(2): None, address(3): 0.01}) as net:
        await net.dialler.dial(PEER)
        assert net.dialled == [(address(1), 0.0), (address(2), 0.1), (address(3), 0.1)]
        assert net.cancelled == [address(1)]
        assert net.book.get(PEER)[0] == address(3)


async def test_the_deadline_is_for_all_addresses_together(autojump_clock: MockClock) -> None:
    async with network({address(n): NEVER for n in range(1, 10)}) as net:
        start = trio.current_time()
        with pytest.raises(PeerError, match="9 of 9 addresses silent"):
            await net.dialler.dial(PEER)
        assert trio.current_time() - start == pytest.approx(LIMITS.dial_timeout)


async def test_the_error_tells_what_each_address_said(autojump_clock: MockClock) -> None:
    async with network({address(1): None, address(2): NEVER}) as net:
        with pytest.raises(PeerError, match=r"192\.0\.2\.1/tcp/4710 refused; 1 of 2 addresses"):
            await net.dialler.dial(PEER)


async def test_back_off_doubles_up_to_its_cap_and_ends_with_success(
    autojump_clock: MockClock,
) -> None:
    async with network({address(1): None}) as net:
        for failures in range(1, 12):
            with pytest.raises(PeerError, match="refused"):
                await net.dialler.dial(PEER)
            dials = len(net.dialled)
            longest = min(LIMITS.backoff_cap, LIMITS.backoff_base * 2 ** (failures - 1))
            await trio.sleep(0.49 * longest)
            with pytest.raises(PeerError, match=f"after {failures} failed"):
                await net.dialler.dial(PEER)
            assert len(net.dialled) == dials
            await trio.sleep(0.52 * longest)
        net.answers[address(1)] = 0.0
        await net.dialler.dial(PEER)
        net.connected.clear()
        await net.dialler.dial(PEER)


async def test_a_failed_dial_is_none_when_the_peer_dialled_us_meanwhile(
    autojump_clock: MockClock,
) -> None:
    async with network({address(1): NEVER}) as net:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(net.dialler.dial, PEER)
            await trio.sleep(1)
            net.connected.add(PEER)
        net.dialler.backoff.check(PEER)


async def test_nobody_waits_on_for_a_dial_when_the_peer_dials_us(autojump_clock: MockClock) -> None:
    async with network({address(1): NEVER}) as net:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(net.dialler.dial, PEER)
            await trio.sleep(1)
            net.connected.add(PEER)
            net.dialler.connected(PEER)
        assert trio.current_time() - started == 1
        assert not net.cancelled


async def test_an_address_nobody_foresaw_costs_itself_and_not_the_host(
    autojump_clock: MockClock,
) -> None:
    async with network({address(1): None, address(2): 0.01}) as net:
        orderly = net.dial_one

        async def crash(peer: PeerId, where: str) -> None:
            if where == address(1):
                raise UnicodeError("label too long")
            await orderly(peer, where)

        net.dialler._dial_one = crash
        await net.dialler.dial(PEER)
        assert net.book.get(PEER)[0] == address(2)
