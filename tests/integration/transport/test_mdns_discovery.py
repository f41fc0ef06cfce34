"""Discovery with real multicast, kept on the loopback interface."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass

import pytest
import trio
from meshnode.dht.peer_id import PeerId
from meshnode.node.identity import Mesh
from meshnode.node.transport.mdns import open_mdns

LOOPBACK = "127.0.0.1"


def multicast_works() -> bool:
    membership = socket.inet_aton("224.0.0.251") + socket.inet_aton(LOOPBACK)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        except OSError:
            return False
    return True


@dataclass
class Announced:
    number: int

    @property
    def peer_id(self) -> PeerId:
        return PeerId.from_ed25519(bytes([self.number]) * 32)

    def addresses(self) -> list[str]:
        return [f"/ip4/192.0.2.{self.number}/tcp/4710"]


def browser_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "zeroconf" in thread.name]


@pytest.mark.skipif(not multicast_works(), reason="no multicast on this machine")
async def test_members_find_each_other_and_no_thread_stays_behind() -> None:
    ours, theirs = Mesh.create("ours"), Mesh.create("theirs")
    found: list[tuple[int, PeerId, list[str]]] = []
    both = trio.Event()

    def finder(number: int):  # type: ignore[no-untyped-def]
        def note(peer: PeerId, addresses: list[str]) -> None:
            found.append((number, peer, addresses))
            if {who for who, _, _ in found} >= {1, 2}:
                both.set()

        return note

    one, other, stranger = Announced(1), Announced(2), Announced(3)
    async with (
        open_mdns(stranger, theirs, finder(3), interfaces=[LOOPBACK]),
        open_mdns(one, ours, finder(1), interfaces=[LOOPBACK]),
        open_mdns(other, ours, finder(2), interfaces=[LOOPBACK]),
    ):
        with trio.fail_after(30):
            await both.wait()
    assert (1, other.peer_id, other.addresses()) in found
    assert (2, one.peer_id, one.addresses()) in found
    assert all(who != 3 and peer != stranger.peer_id for who, peer, _ in found)
    assert browser_threads() == []


async def test_a_machine_without_multicast_goes_without_discovery() -> None:
    async with open_mdns(Announced(1), Mesh.create("m"), print, interfaces=["192.0.2.77"]):
        await trio.lowlevel.checkpoint()
