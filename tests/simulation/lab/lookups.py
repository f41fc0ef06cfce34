"""How far a lookup goes and whether it finds the truth; what an announcement costs."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import trio
from meshnode.dht.keyspace import chunk_position, position

from .mesh import Lab, LabNode

CHUNK_BYTES = 1 << 20


def expected_hops(nodes: int, k: int) -> float:
    """Questions one after the other, beyond our own table, until the nearest peer is known.

    The k peers of a bucket lie at random in one half of what is left: the nearest of them to a
    target is nearer by a factor of 2 and, in the mean, exp(H_k) more (the logarithm of the least of
    k uniform numbers has the mean -H_k). Steps end where nodes know all their neighbours, that is k
    peers; the first is in our own table, and nobody asks about less than nothing.
    """
    bits_a_step = 1 + sum(1 / i for i in range(1, k + 1)) / math.log(2)
    return max(0.0, math.log2(nodes / k) / bits_a_step)


@dataclass(frozen=True, slots=True)
class Lookups:
    """`overlap`: share of the true k nearest that lookups came back with; `nearest`: how often the
    very nearest was among them; `theory`: `expected_hops`; `bound`: log2 of the number of nodes."""

    nodes: int
    lookups: int
    mean_hops: float
    most_hops: int
    theory: float
    bound: float
    mean_asked: float
    overlap: float
    nearest: float
    mean_seconds: float
    worst_seconds: float


async def measure_lookups(lab: Lab, count: int) -> Lookups:
    """Iterative lookups of random keys by random nodes, held against the truth."""
    index, k = lab.index(), lab.settings.k
    hops, asked, seconds, right, nearest = [], [], [], 0, 0
    for _ in range(count):
        node, key = lab.rng.choice(lab.up()), lab.rng.randbytes(32)
        began = trio.current_time()
        result = await node.dht.find_closest(key)
        seconds.append(trio.current_time() - began)
        true = [p for p in index.closest(position(key), k + 1) if p != node.peer][:k]
        hops.append(result.report.hops)
        asked.append(result.report.asked)
        right += len(set(true) & set(result.closest))
        nearest += bool(result.closest) and result.closest[0] == true[0]
    nodes = len(lab.up())
    return Lookups(
        nodes=nodes,
        lookups=count,
        mean_hops=statistics.mean(hops),
        most_hops=max(hops),
        theory=expected_hops(nodes, k),
        bound=math.log2(nodes),
        mean_asked=statistics.mean(asked),
        overlap=right / (count * min(k, nodes - 1)),
        nearest=nearest / count,
        mean_seconds=statistics.mean(seconds),
        worst_seconds=max(seconds),
    )


@dataclass(frozen=True, slots=True)
class Announcing:
    """One node announces `keys` fresh keys, another finds them; then the same once more.

    Messages are requests, bytes those both sides wrote to streams for them. `placed`: share of the
    true k nearest of each key that took its record. `again`: with the chart, or map, known.
    """

    nodes: int
    keys: int
    messages: int
    kib: float
    seconds: float
    messages_again: int
    asked: int
    fewest_storers: int
    mean_storers: float
    placed: float
    find_messages: int
    find_kib: float
    find_seconds: float
    found: float


def fresh_keys(lab: Lab, count: int) -> list[tuple[bytes, int]]:
    return [(lab.rng.randbytes(32), CHUNK_BYTES) for _ in range(count)]


async def measure_announcing(lab: Lab, count: int = 1000) -> Announcing:
    """As `Announcing` says, by two random nodes."""
    writer, reader = lab.rng.sample(lab.up(), 2)
    keys = fresh_keys(lab, count)
    before, began = _traffic(lab, writer), trio.current_time()
    report = await writer.dht.announce(keys)
    seconds = trio.current_time() - began
    cost = _traffic(lab, writer) - before
    before = _traffic(lab, writer)
    await writer.dht.announce(fresh_keys(lab, count))
    again = _traffic(lab, writer) - before
    before, began = _traffic(lab, reader), trio.current_time()
    found = await reader.dht.find_chunks([digest for digest, _ in keys])
    find_seconds = trio.current_time() - began
    find_cost = _traffic(lab, reader) - before
    storers = list(report.stored.values())
    return Announcing(
        nodes=len(lab.up()),
        keys=count,
        messages=cost.messages,
        kib=cost.sent / 1024,
        seconds=seconds,
        messages_again=again.messages,
        asked=len(report.asked),
        fewest_storers=min(storers),
        mean_storers=statistics.mean(storers),
        placed=_placed(lab, writer, [digest for digest, _ in keys[:200]]),
        find_messages=find_cost.messages,
        find_kib=find_cost.sent / 1024,
        find_seconds=find_seconds,
        found=share_found(found, {digest: {writer} for digest, _ in keys}),
    )


@dataclass(frozen=True, slots=True)
class _Traffic:
    messages: int
    sent: int

    def __sub__(self, other: _Traffic) -> _Traffic:
        return _Traffic(self.messages - other.messages, self.sent - other.sent)


def _traffic(lab: Lab, node: LabNode) -> _Traffic:
    """What one node asked; bytes of the whole mesh, in which nothing else goes on meanwhile."""
    return _Traffic(node.dht.stats().get("rpcs_sent", 0), lab.totals()["bytes"])


def _placed(lab: Lab, writer: LabNode, digests: list[bytes]) -> float:
    index, k = lab.index(), lab.settings.k
    by_peer = {node.peer: node for node in lab.up()}
    right = total = 0
    for digest in digests:
        near = [p for p in index.closest(chunk_position(digest), k + 1) if p != writer.peer][:k]
        total += len(near)
        for peer in near:
            kept = by_peer[peer].dht._chunks.holders(digest, 0.0)
            right += any(record.peer == writer.peer for record in kept)
    return right / total


def share_found(
    found: dict[bytes, list[object]] | dict[bytes, list], holders: dict[bytes, set[LabNode]]
) -> float:
    """The share of keys for which at least one of its holders was named."""
    right = sum(
        any(record.peer in {node.peer for node in of} for record in found.get(digest, ()))
        for digest, of in holders.items()
    )
    return right / len(holders)
