"""A scheduler is killed: the other goes on at once, and what the dead one had claimed is started by it."""

from __future__ import annotations

import signal

import pytest
from docker.models.containers import Container

from e2e.harness.faults import kill_and_start, signal_scheduler, wait_until_node
from e2e.harness.probes import Probes, let_pass
from e2e.harness.stack import Stack

LIMIT_S = 3.0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("victim", ["worker", "master", "container"])
def test_next_fire_is_on_time(ha_stack: Stack, probes: Probes, schedulers: list[Container], victim: str) -> None:
    killed = schedulers[0]
    with probes.watch("scheduler killed", f"SIGKILL to the {victim}, one of two schedulers", limit="3 s") as watch:
        watch.strike()
        if victim == "worker":
            signal_scheduler(ha_stack, killed, "worker", signal.SIGKILL)
        elif victim == "master":
            signal_scheduler(ha_stack, killed, "master", signal.SIGKILL)
        else:
            kill_and_start(killed)
        # Killed or not: in the end it is a node again, by itself.
        let_pass(1)
        wait_until_node(ha_stack, killed)
    watch.check()
    assert watch.next_fire_late <= LIMIT_S, watch.measurement
    assert max(watch.lateness()) <= LIMIT_S, watch.measurement
