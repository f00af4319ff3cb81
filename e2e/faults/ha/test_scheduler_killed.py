"""A scheduler is killed: the other goes on at once, and what the dead one had claimed is started by it."""

from __future__ import annotations

import signal

import pytest
from docker.models.containers import Container

from e2e.harness.faults import kill_and_start, wait_until_node
from e2e.harness.probes import Probes
from e2e.harness.stack import Stack

LIMIT_S = 3.0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("victim", ["worker", "master", "container"])
def test_next_fire_is_on_time(ha_stack: Stack, probes: Probes, schedulers: list[Container], victim: str) -> None:
    killed = schedulers[0]
    with probes.watch("scheduler killed", f"SIGKILL to the {victim}, one of two schedulers", limit="3 s") as watch:
        struck = watch.strike()
        if victim == "worker":
            ha_stack.signal(signal.SIGKILL, "scheduler", "worker", container=killed)
        elif victim == "master":
            ha_stack.signal(signal.SIGKILL, "scheduler", "master", container=killed)
        else:
            kill_and_start(killed)
        # Killed or not: in the end it is a node again, by itself.
        wait_until_node(ha_stack, killed, since=struck)
    watch.check()
    assert watch.next_fire_late <= LIMIT_S, watch.measurement
    assert max(watch.lateness()) <= LIMIT_S, watch.measurement
