"""The real DHT code in meshes of 10, 100 and 1,000 nodes: how far lookups go, what they cost.

`make sim` runs the same at 10,000 nodes and prints tables. Every assertion is about an outcome;
the seed of a run is in its failure.
"""

from __future__ import annotations

import math

import pytest
import trio
from meshnode.dht import DhtSettings

from tests.simulation.lab.clock import run_simulation
from tests.simulation.lab.lookups import Announcing, Lookups, measure_announcing, measure_lookups
from tests.simulation.lab.mesh import open_lab

pytestmark = pytest.mark.timeout(900)  # seconds on a quiet machine, minutes on a busy one

ITERATIVE = DhtSettings(map_members=0)
FULL_MAP = DhtSettings()


def measure(
    seed: int, nodes: int, settings: DhtSettings, *, cold: bool, lookups: int
) -> tuple[Lookups, Announcing]:
    async def main() -> tuple[Lookups, Announcing]:
        async with open_lab(seed, settings) as lab:
            if cold:
                await lab.join(nodes)
            else:
                await lab.settle([lab.add() for _ in range(nodes)])
            await trio.sleep(30)
            return await measure_lookups(lab, lookups), await measure_announcing(lab)

    return run_simulation(seed, main)


@pytest.mark.parametrize(("nodes", "seed"), [(10, 1), (100, 2)])
def test_with_a_full_map_a_thousand_keys_cost_one_request_per_member(nodes: int, seed: int) -> None:
    lookups, announcing = measure(seed, nodes, FULL_MAP, cold=True, lookups=20)
    assert lookups.nearest == 1, f"seed {seed}: {lookups}"
    assert announcing.asked <= nodes - 1, f"seed {seed}: {announcing}"
    # What a new connection makes both sides ask is counted as well.
    assert announcing.messages_again <= 1.2 * nodes, f"seed {seed}: {announcing}"
    # The announcement is over when most have every key; `placed` says that the others got it too.
    assert announcing.fewest_storers >= min(nodes - 1, 11)
    assert announcing.placed > 0.95
    assert announcing.found == 1
    assert announcing.find_messages <= 2 * nodes


@pytest.mark.parametrize(
    ("nodes", "seed", "cold"), [(100, 3, True), (1000, 4, False)], ids=["100 cold", "1000 settled"]
)
def test_without_a_map_lookups_take_the_hops_that_theory_says(
    nodes: int, seed: int, cold: bool
) -> None:
    lookups, announcing = measure(seed, nodes, ITERATIVE, cold=cold, lookups=20)
    assert lookups.mean_hops <= lookups.theory + 0.6, f"seed {seed}: {lookups}"
    assert 1 <= lookups.most_hops <= math.ceil(lookups.bound)
    assert lookups.nearest >= 0.95, f"seed {seed}: {lookups}"
    assert lookups.overlap >= 0.95, f"seed {seed}: {lookups}"
    assert lookups.mean_asked <= 3 * ITERATIVE.k
    # One request per responsible peer, and a few to find out who these are and whether they are
    # there; a lookup per key would cost twenty thousand.
    assert announcing.messages <= 2 * nodes, f"seed {seed}: {announcing}"
    assert announcing.messages_again <= 1.2 * nodes
    assert announcing.placed > 0.9, f"seed {seed}: {announcing}"
    assert announcing.found == 1, f"seed {seed}: {announcing}"
