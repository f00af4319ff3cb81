"""The network between a scheduler and the database: gone, silent, or slow and lossy."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
from docker.models.containers import Container

from e2e.harness.faults import (
    detour_to_database,
    disconnected,
    extra_scheduler,
    node_of,
    packets_dropped,
    wait_until_node,
)
from e2e.harness.probes import Probes, let_pass
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

LIMIT_S = 3.0
#: A start that is on its way to the log when the network goes was on record before.
UNDER_WAY_S = 0.5


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["docker network disconnect", "packets dropped"])
@pytest.mark.parametrize("seconds", [8, pytest.param(45, marks=pytest.mark.faults_long)])
def test_cut_off_scheduler_starts_nothing_and_comes_back(
    ha_stack: Stack, probes: Probes, schedulers: list[Container], how: str, seconds: int
) -> None:
    alone = schedulers[0]
    node = node_of(alone)
    with probes.watch("cut off from the database", f"{how}, {seconds} s, one of two schedulers", limit="3 s") as watch:
        cut: AbstractContextManager[None] = (
            disconnected(ha_stack, alone) if how == "docker network disconnect" else packets_dropped(alone)
        )
        with cut:
            # Only when the call has returned is it cut off for certain.
            watch.strike()
            let_pass(seconds)
            watch.heal()
        wait_until_node(ha_stack, alone)
        assert watch.healed is not None
        healed = watch.healed
        wait_until(
            "it starts runs again",
            lambda: [s for s in ha_stack.starts() if s.node == node and s.time > healed],
            within=30,
        )
    watch.check()
    assert watch.struck is not None
    meanwhile = [s for s in watch.starts if s.node == node and watch.struck + UNDER_WAY_S < s.time < healed]
    assert meanwhile == []
    assert watch.next_fire_late <= LIMIT_S, watch.measurement
    assert max(watch.lateness(not_by=node)) <= LIMIT_S, watch.measurement


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seconds", [15, pytest.param(90, marks=pytest.mark.faults_long)])
def test_slow_lossy_network_misses_nothing(
    ha_stack: Stack, probes: Probes, schedulers: list[Container], seconds: int
) -> None:
    """A third scheduler reaches the database over 500 ms (there and back) and loses a tenth of the packets."""
    how = f"500 ms and 10 % loss, {seconds} s, one of three schedulers"
    with (
        detour_to_database(ha_stack, delay_s=0.25) as detour,
        probes.watch("slow, lossy network to the database", how, limit="0 missed") as watch,
        extra_scheduler(ha_stack, {"JOBSTORE_URL": detour.url, "DATABASE_URL": detour.url}) as slow,
    ):
        with detour.bad(), packets_dropped(slow, share=0.1):
            watch.strike()
            let_pass(seconds)
        watch.heal()
    watch.check()
    assert watch.verdict.outcomes["missed"] == 0, watch.verdict


@pytest.mark.faults_long
@pytest.mark.timeout(400)
def test_all_schedulers_behind_a_slow_lossy_network_miss_nothing(
    ha_stack: Stack, probes: Probes, schedulers: list[Container]
) -> None:
    """Nobody with a good way to the database helps: two more schedulers on the bad one, the other two are stopped."""
    how = "500 ms and 10 % loss, 60 s, all schedulers"
    with (
        detour_to_database(ha_stack, delay_s=0.25) as detour,
        probes.watch("slow, lossy network to the database", how, limit="0 missed") as watch,
        extra_scheduler(ha_stack, {"JOBSTORE_URL": detour.url, "DATABASE_URL": detour.url}) as one,
        extra_scheduler(ha_stack, {"JOBSTORE_URL": detour.url, "DATABASE_URL": detour.url}) as other,
    ):
        for container in schedulers:
            container.stop(timeout=60)
        try:
            with detour.bad(), packets_dropped(one, share=0.1), packets_dropped(other, share=0.1):
                watch.strike()
                let_pass(60)
            watch.heal()
        finally:
            for container in schedulers:
                container.start()
        for container in schedulers:
            wait_until_node(ha_stack, container)
    watch.check(share=0.25)  # a minute of such a network costs more than the rest makes up for
    assert watch.verdict.outcomes["missed"] == 0, watch.verdict
    slow_starts = [start for start in watch.starts if start.node in {node_of(one), node_of(other)}]
    assert slow_starts, "the slow schedulers started nothing"
