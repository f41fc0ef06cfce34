"""Holders that are being sought are waited for where nobody else has the chunk, and only then."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from meshnode.dht.peer_id import PeerId
from meshnode.node.transfer.find import Finder
from trio.testing import MockClock

ALONE, SHARED, ELSEWHERE = (bytes([number]) * 32 for number in range(3))


class Search:
    def __init__(self, *peers: PeerId) -> None:
        self.peers = peers
        self.waited_for: list[set[PeerId]] = []

    def seeks(self, peer: PeerId) -> bool:
        return peer in self.peers

    async def sought(self, peers: Collection[PeerId]) -> None:
        self.waited_for.append(set(peers))


async def test_only_who_holds_a_chunk_that_nobody_else_has_is_waited_for(
    mesh, autojump_clock: MockClock
) -> None:
    lost, lost_too, here = mesh.add(), mesh.add(), mesh.add()
    await lost.store.put([(ALONE, b"1"), (SHARED, b"2")], verify=False)
    await lost_too.store.put([(SHARED, b"2")], verify=False)
    await here.store.put([(SHARED, b"2"), (ELSEWHERE, b"3")], verify=False)
    search = Search(lost.id, lost_too.id)
    finder = Finder(replace(mesh.context(), search=search))
    await finder.find([ALONE, SHARED])
    assert search.waited_for == []
    found = await finder.find_again([ALONE, SHARED, ELSEWHERE])
    assert search.waited_for == [{lost.id}]
    assert found[ALONE] == [lost.id]
