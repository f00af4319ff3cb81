"""Signals that make Gunicorn start another worker, and more schedulers than before: one start a fire all the same."""

from __future__ import annotations

import signal

import pytest
from docker.models.containers import Container

from e2e.harness.faults import SCHEDULER_SERVICE, node_of, wait_until_node
from e2e.harness.probes import Probes, let_pass
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

LIMIT_S = 3.0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTTIN], ids=lambda number: number.name)
def test_signal_to_a_master(
    ha_stack: Stack, probes: Probes, schedulers: list[Container], number: signal.Signals
) -> None:
    told = schedulers[0]

    def workers() -> set[int]:
        return {process.pid for process in ha_stack.gunicorn("scheduler", "worker", container=told)}

    before = workers()
    how = f"{number.name} to the master of one of two schedulers"
    with probes.watch("HUP, TTIN, more schedulers", how, limit="0 doubled") as watch:
        struck = watch.strike()
        ha_stack.signal(number, "scheduler", "master", container=told)
        if number is signal.SIGHUP:
            wait_until("another worker", workers, lambda pids: pids and not pids & before, within=60)
            wait_until_node(ha_stack, told, since=struck)
        let_pass(2)
        assert len(workers()) == 1
    watch.check()
    assert watch.next_fire_late <= LIMIT_S, watch.measurement


@pytest.mark.timeout(240)
def test_scale_to_three_schedulers_and_back(ha_stack: Stack, probes: Probes, schedulers: list[Container]) -> None:
    with probes.watch("HUP, TTIN, more schedulers", "--scale scheduler=3, and back to 2", limit="0 doubled") as watch:
        watch.strike()
        ha_stack.up(scheduler=3)
        known = {container.id for container in schedulers}
        (third,) = [one for one in ha_stack.containers_of(SCHEDULER_SERVICE) if one.id not in known]
        wait_until_node(ha_stack, third)
        node = node_of(third)
        wait_until("starts on the third", lambda: [s for s in ha_stack.starts() if s.node == node], within=30)
        ha_stack.up(scheduler=2)
    watch.check()
    assert watch.next_fire_late <= LIMIT_S, watch.measurement
    assert watch.verdict.outcomes["lost"] == 0, watch.verdict
