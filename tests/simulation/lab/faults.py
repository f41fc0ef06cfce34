"""What is still found when half of all nodes are gone at once, and after a partition."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from .lookups import fresh_keys, measure_lookups, share_found
from .mesh import Lab, LabNode

_READERS = 5


class Library:
    """Keys that some nodes announced, and who holds them."""

    def __init__(self) -> None:
        self.holders: dict[bytes, set[LabNode]] = {}

    async def announce(self, lab: Lab, publishers: Sequence[LabNode], keys_each: int) -> None:
        for publisher in publishers:
            keys = fresh_keys(lab, keys_each)
            await publisher.dht.announce(keys)
            self.holders.update({digest: {publisher} for digest, _ in keys})

    def of(self, *publishers: LabNode) -> dict[bytes, set[LabNode]]:
        return {digest: of for digest, of in self.holders.items() if of & set(publishers)}


async def found_by(
    readers: Sequence[LabNode], wanted: dict[bytes, set[LabNode]]
) -> tuple[float, float]:
    """The mean share of `wanted` that `readers` find, one after the other; the longest time."""
    shares, longest = [], 0.0
    for reader in readers:
        began = trio.current_time()
        found = await reader.dht.find_chunks(list(wanted))
        longest = max(longest, trio.current_time() - began)
        shares.append(share_found(found, wanted))
    return statistics.mean(shares), longest


@dataclass(frozen=True, slots=True)
class Loss:
    """Shares of keys with a live holder that are found: before, at once, and an hour later.

    `table_dead`: share of routing table entries that are dead an hour later; `lookups_after`: how
    often lookups then find the nearest peer.
    """

    nodes: int
    lost: float
    keys: int
    before: float
    at_once: float
    seconds_at_once: float
    second_time: float
    seconds_second_time: float
    after_an_hour: float
    table_dead: float
    lookups_after: float


async def measure_loss(lab: Lab, fraction: float = 0.5, keys_each: int = 100) -> Loss:
    """Kill `fraction` of all nodes at one instant."""
    publishers = lab.rng.sample(lab.up(), 10 if len(lab.up()) > 20 else 3)
    library = Library()
    await library.announce(lab, publishers, keys_each)
    nodes = lab.up()
    before, _ = await found_by(_some(lab, publishers), library.holders)
    for node in lab.rng.sample(nodes, round(fraction * len(nodes))):
        lab.kill(node)
    wanted = library.of(*[p for p in publishers if p.is_up])
    readers = _some(lab, publishers)
    at_once, seconds = await found_by(readers, wanted)
    again, seconds_again = await found_by(readers, wanted)
    await trio.sleep(3600)
    later, _ = await found_by(_some(lab, publishers), wanted)
    up = {node.peer for node in lab.up()}
    entries = [entry.peer in up for node in lab.up() for entry in node.dht.peers()]
    return Loss(
        nodes=len(nodes),
        lost=fraction,
        keys=len(wanted),
        before=before,
        at_once=at_once,
        seconds_at_once=seconds,
        second_time=again,
        seconds_second_time=seconds_again,
        after_an_hour=later,
        table_dead=1 - sum(entries) / len(entries),
        lookups_after=(await measure_lookups(lab, 20)).nearest,
    )


def _some(lab: Lab, but: Sequence[LabNode], count: int = _READERS) -> list[LabNode]:
    others = [node for node in lab.up() if node not in but]
    return lab.rng.sample(others, min(count, len(others)))


@dataclass(frozen=True, slots=True)
class Partition:
    """Shares of keys found across the cut. `heal_seconds`: from the end of the partition until all
    keys of both sides, announced before and during it, were found from both sides; None: never
    within the time watched."""

    nodes: int
    minutes: float
    own_side: float
    other_side: float
    healed: float
    heal_seconds: float | None


async def measure_partition(
    lab: Lab, minutes: float = 60.0, keys_each: int = 50, watch: float = 7200.0
) -> Partition:
    """Cut the mesh in two halves for a while; both announce meanwhile; then heal."""
    nodes = lab.up()
    halves = (nodes[::2], nodes[1::2])
    # Per side: what it announced before the cut, and what during it.
    before, during = (Library(), Library()), (Library(), Library())
    for side, half in enumerate(halves):
        await before[side].announce(lab, lab.rng.sample(half, 2), keys_each)
    lab.network.partition(*({node.peer for node in half} for half in halves))
    await trio.sleep(minutes * 30)
    for side, half in enumerate(halves):
        await during[side].announce(lab, lab.rng.sample(half, 2), keys_each)
    await trio.sleep(minutes * 30)
    readers = [lab.rng.sample(half, 3) for half in halves]
    own, other = [], []
    for side in (0, 1):
        mine = {**before[side].holders, **during[side].holders}
        theirs = during[1 - side].holders
        own.append((await found_by(readers[side], mine))[0])
        other.append((await found_by(readers[side], theirs))[0])
    everything = {
        digest: of for library in (*before, *during) for digest, of in library.holders.items()
    }
    lab.network.heal()
    began = trio.current_time()
    share, took = 0.0, None
    while trio.current_time() - began < watch:
        shares = [await found_by(some, everything) for some in readers]
        share = min(found for found, _ in shares)
        if share == 1.0:
            took = trio.current_time() - began
            break
        await trio.sleep(30)
    return Partition(
        nodes=len(nodes),
        minutes=minutes,
        own_side=statistics.mean(own),
        other_side=statistics.mean(other),
        healed=share,
        heal_seconds=took,
    )
