"""Half of all nodes gone at once, a mesh cut in two, a ring of liars around a key, a day of churn.

`make sim` runs the same in meshes of 1,000 nodes and prints tables.
"""

from __future__ import annotations

import pytest
from meshnode.dht import DhtSettings

from tests.simulation.lab.churn import Churn, exponential, measure_churn
from tests.simulation.lab.clock import run_simulation
from tests.simulation.lab.eclipse import Eclipse, measure_eclipse
from tests.simulation.lab.faults import Loss, Partition, measure_loss, measure_partition
from tests.simulation.lab.mesh import open_lab

pytestmark = pytest.mark.timeout(900)  # seconds on a quiet machine, minutes on a busy one

CALM = DhtSettings(map_members=0, liveness=3600.0, refresh=4 * 3600.0)
"""Less upkeep than usual: harder on the mesh, and easier on whoever waits for the test."""


def test_after_the_loss_of_half_of_sixty_nodes_every_record_with_a_live_holder_is_found() -> None:
    seed = 5

    async def main() -> Loss:
        async with open_lab(seed, CALM) as lab:
            await lab.settle([lab.add() for _ in range(60)])
            return await measure_loss(lab)

    loss = run_simulation(seed, main)
    assert loss.before == 1, f"seed {seed}: {loss}"
    assert loss.at_once >= 0.97, f"seed {seed}: {loss}"
    assert loss.second_time >= 0.99, f"seed {seed}: {loss}"
    assert loss.after_an_hour >= 0.99, f"seed {seed}: {loss}"
    assert loss.seconds_at_once <= 5
    assert loss.lookups_after >= 0.9, f"seed {seed}: {loss}"


def test_after_a_partition_both_sides_find_what_the_other_announced_meanwhile() -> None:
    seed = 6

    async def main() -> Partition:
        async with open_lab(seed, DhtSettings()) as lab:
            await lab.settle([lab.add() for _ in range(30)])
            return await measure_partition(lab, minutes=20, keys_each=20)

    partition = run_simulation(seed, main)
    assert partition.own_side == 1, f"seed {seed}: {partition}"
    assert partition.other_side == 0, f"seed {seed}: {partition}"
    assert partition.healed == 1, f"seed {seed}: {partition}"
    assert partition.heal_seconds is not None
    assert partition.heal_seconds <= 1800, f"seed {seed}: {partition}"


def test_a_fifth_of_all_nodes_colluding_near_a_key_cannot_hide_it() -> None:
    seed = 7

    async def main() -> Eclipse:
        # Few keepers per record: every node knows a small part of the mesh, as in large ones.
        async with open_lab(seed, DhtSettings(map_members=0, k=8)) as lab:
            return await measure_eclipse(lab, honest=80, colluders=20, tries=100)

    eclipse = run_simulation(seed, main)
    assert eclipse.surrounded >= 0.5, f"seed {seed}: {eclipse}"
    assert eclipse.honest_storers >= 2, f"seed {seed}: {eclipse}"
    assert eclipse.victim_found >= 0.9, f"seed {seed}: {eclipse}"
    assert eclipse.others_found >= 0.99, f"seed {seed}: {eclipse}"


def test_records_survive_a_day_in_which_members_come_and_go_every_hour() -> None:
    seed = 8

    async def main() -> Churn:
        async with open_lab(seed, CALM) as lab:
            await lab.settle([lab.add() for _ in range(24)])
            return await measure_churn(lab, exponential(lab, 3600.0), publishers=5, keys_each=20)

    churn = run_simulation(seed, main)
    assert churn.restarts >= 150, f"seed {seed}: {churn}"
    assert churn.found >= 0.97, f"seed {seed}: {churn}"
    assert churn.worst_found >= 0.8, f"seed {seed}: {churn}"
    assert churn.kept >= 0.95, f"seed {seed}: {churn}"
