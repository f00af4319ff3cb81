"""A node's clock is wrong by an hour: the database's clock decides, so that nothing fires early, late or twice."""

from __future__ import annotations

import pytest
from docker.models.containers import Container

from e2e.harness.client import SCHEDULER
from e2e.harness.faults import extra_scheduler, node_of, step_clock, steppable_clock
from e2e.harness.probes import Probes, let_pass
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

HOUR_S = 3600
LIMIT_S = 3.0


def wrong_clocks_told(stack: Stack) -> set[str]:
    """The nodes whose clocks the status says are off."""
    status = stack.bearer().data("GET", f"{SCHEDULER}/status")
    return {node for problem in status["problems"] if problem["code"] == "clock_off" for node in problem["nodes"]}


@pytest.mark.timeout(180)
def test_clock_stepped_by_an_hour_fires_nothing_early_or_twice(
    ha_stack: Stack, probes: Probes, schedulers: list[Container]
) -> None:
    how = "libfaketime, 1 h ahead, then 1 h behind, then right again, one of three schedulers"
    with (
        steppable_clock(ha_stack) as (environment, mounts),
        probes.watch("clock stepped by an hour", how, limit="0 doubled, 0 early") as watch,
        extra_scheduler(ha_stack, environment, mounts=mounts) as wrong,
    ):
        node = node_of(wrong)
        probes.wrong_clocks.add(node)

        def starts_there() -> int:
            return sum(start.node == node for start in ha_stack.starts())

        watch.strike()
        for offset in (HOUR_S, -HOUR_S, 0):
            step_clock(ha_stack, wrong, offset)
            let_pass(2)
            enough = starts_there() + 5
            wait_until(
                f"starts on the node whose clock is {offset:+d} s off",
                starts_there,
                lambda count, enough=enough: count >= enough,  # type: ignore[misc]
                within=30,
            )
            told = {node} if offset else set()
            wait_until("the status to tell of the clock", lambda: wrong_clocks_told(ha_stack), told.__eq__, within=15)
        watch.heal()
    # The oracle counts a start before its moment as a contradiction.
    watch.check()
    assert watch.next_fire_late <= LIMIT_S, watch.measurement
    assert max(watch.lateness()) <= LIMIT_S, watch.measurement
