"""A day in a mesh whose members come and go."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import trio
from meshnode.dht.backend import RowKind

from .lookups import fresh_keys, share_found
from .mesh import Lab, LabNode

OFFLINE = 0.1
"""The share of nodes that are down at any time."""
_READERS = 3

Sessions = Callable[[], float]


def exponential(lab: Lab, median: float) -> Sessions:
    """Lengths of sessions in seconds, without memory."""
    return lambda: lab.rng.expovariate(math.log(2) / median)


def lognormal(lab: Lab, median: float, sigma: float = 1.5) -> Sessions:
    """Many short sessions and some very long ones, as measured in open networks."""
    return lambda: lab.rng.lognormvariate(math.log(median), sigma)


@dataclass(frozen=True, slots=True)
class Churn:
    """Hourly samples. `found`: share of keys whose holder was up that readers found; `kept`: of
    those whose holder was down, whose record should outlive it; both the mean and the worst hour.
    Messages and bytes are per node and hour."""

    nodes: int
    hours: float
    median_session: float
    mean_up: float
    restarts: int
    keys: int
    found: float
    worst_found: float
    kept: float
    worst_kept: float
    slowest_find: float
    messages: float
    kib: float


class _Life:
    """Starts and kills nodes; none is killed while it is asked something."""

    def __init__(self, lab: Lab, sessions: Sessions, mean_offline: float) -> None:
        self._lab = lab
        self._sessions = sessions
        self._mean_offline = mean_offline
        self.asked: set[LabNode] = set()
        self.restarts = 0

    async def live(self, node: LabNode) -> None:
        while True:
            await trio.sleep(self._sessions())
            while node in self.asked:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(1)
            self._lab.kill(node)
            await trio.sleep(self._lab.rng.expovariate(1 / self._mean_offline))
            knows_peers = any(row[0] == RowKind.PEER for row in node.backend.rows)
            # Whoever never had the time to save a table asks a member it was invited by.
            await self._lab.start(
                node, [] if knows_peers else [self._lab.rng.choice(self._lab.up())]
            )
            self.restarts += 1


async def measure_churn(
    lab: Lab,
    sessions: Sessions,
    *,
    hours: float = 24.0,
    median: float = 3600.0,
    mean: float | None = None,
    publishers: int = 10,
    keys_each: int = 50,
    progress: Callable[[str], None] = lambda _: None,
) -> Churn:
    """Let all nodes of `lab` come and go, publishers included, and look every hour.

    Every end is a power cut; a node comes back with its disk. `mean`: of a session, seconds.
    """
    mean = mean if mean is not None else median / math.log(2)
    nodes = list(lab.nodes)
    holders: dict[bytes, set[LabNode]] = {}
    for publisher in lab.rng.sample(nodes, publishers):
        keys = fresh_keys(lab, keys_each)
        await publisher.dht.announce(keys)
        holders.update({digest: {publisher} for digest, _ in keys})
    life = _Life(lab, sessions, mean * OFFLINE / (1 - OFFLINE))
    before, found, kept, up, slowest = lab.totals(), [], [], [], 0.0
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(life.live, node)
        for hour in range(math.ceil(hours)):
            await trio.sleep(min(3600.0, (hours - hour) * 3600.0))
            up.append(len(lab.up()))
            live = {d: of for d, of in holders.items() if any(node.is_up for node in of)}
            dead = {d: of for d, of in holders.items() if d not in live}
            readers = lab.rng.sample(lab.up(), _READERS)
            life.asked.update(readers)
            for reader in readers:
                began = trio.current_time()
                answer = await reader.dht.find_chunks(list(holders))
                slowest = max(slowest, trio.current_time() - began)
                if live:
                    found.append(share_found(answer, live))
                if dead:
                    kept.append(share_found(answer, dead))
            life.asked.clear()
            progress(f"hour {hour + 1}: {up[-1]} up, found {found[-1]:.3f}")
        after = lab.totals()
        nursery.cancel_scope.cancel()
    node_hours = statistics.mean(up) * hours
    return Churn(
        nodes=len(nodes),
        hours=hours,
        median_session=median,
        mean_up=statistics.mean(up) / len(nodes),
        restarts=life.restarts,
        keys=len(holders),
        found=statistics.mean(found),
        worst_found=min(found),
        kept=statistics.mean(kept) if kept else 1.0,
        worst_kept=min(kept, default=1.0),
        slowest_find=slowest,
        messages=(after["rpcs_sent"] - before["rpcs_sent"]) / node_hours,
        kib=(after["bytes"] - before["bytes"]) / 1024 / node_hours,
    )
