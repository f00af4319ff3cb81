"""Schedulers die between two steps of the ledger, again and again: no fire starts twice, none vanishes."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from docker.models.containers import Container

from e2e.harness.faults import extra_scheduler
from e2e.harness.probes import Probes
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

#: The steps. A scheduler dies at one not each time it comes there, so that it gets something done first.
STEPS = {
    "claim": ("claim.inserted", "claim.written", "claim.committed"),
    "start": ("start.written", "start.committed"),
    "finish": ("finish.written", "finish.committed"),
}
CHANCE = 0.3


def deaths(container: Container, step: str) -> int:
    """How often a scheduler has died at that step: what it wrote last, each time."""
    log: str = container.logs().decode(errors="replace")
    return sum(f"fail point {point}: exit" in line for line in log.splitlines() for point in STEPS[step])


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("times", [10, pytest.param(100, marks=pytest.mark.faults_long)])
def test_killed_between_two_steps(ha_stack: Stack, probes: Probes, schedulers: list[Container], times: int) -> None:
    """One more scheduler for each step, which dies there `times` times and is started again by its master."""
    how = f"exit at claim, start and finish, {times} times each, three of five schedulers"
    with probes.watch("killed between two steps", how, limit="0 doubled, 0 absent") as watch, ExitStack() as armed:
        watch.strike()
        doomed = {
            step: armed.enter_context(
                extra_scheduler(
                    ha_stack, {"FAIL_POINTS": ",".join(f"{point}=exit@{CHANCE}" for point in points)}, is_doomed=True
                )
            )
            for step, points in STEPS.items()
        }
        wait_until(
            "deaths at every step",
            lambda: {step: deaths(container, step) for step, container in doomed.items()},
            lambda counted: min(counted.values()) >= times,
            within=60 + 15 * times,
            every=1.0,
        )
        watch.heal()
    watch.check()
