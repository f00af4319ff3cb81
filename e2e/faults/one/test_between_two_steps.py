"""The only scheduler dies between two steps of the ledger, again and again: no fire starts twice, none vanishes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e.harness.fail_points import STEPS, deaths
from e2e.harness.probes import Probes
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

#: Of dying each time that a fail point is reached: so that about as many of its lives end at each of the three steps.
CHANCES = {"claim": 0.1, "start": 0.25, "finish": 0.5}


@contextmanager
def armed(stack: Stack) -> Iterator[None]:
    """The stack's container is made anew with its fail points armed, and in the end without."""
    points = [f"{point}=exit@{CHANCES[step]}" for step, points in STEPS.items() for point in points]
    stack.environment["FAIL_POINTS"] = ",".join(points)
    stack.up()
    try:
        yield
    finally:
        del stack.environment["FAIL_POINTS"]
        stack.up()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("times", [10, pytest.param(100, marks=pytest.mark.faults_long)])
def test_killed_between_two_steps(one_stack: Stack, probes: Probes, times: int) -> None:
    how = f"exit at claim, start and finish, at least {times} times each, the only one"
    with probes.watch(
        "killed between two steps", how, outage=True, limit="0 doubled, 0 absent", at_rest_within=120
    ) as watch:
        watch.strike()
        with armed(one_stack):
            died = wait_until(
                "deaths at every step",
                lambda: {step: deaths(one_stack.container(), step) for step in STEPS},
                lambda counted: min(counted.values()) >= times,
                within=60 + 12 * times,
                every=1.0,
            )
        one_stack.wait_until_ready()
        watch.heal()
    print(f"deaths: {died}")
    assert watch.verdict.clean, watch.verdict
    assert watch.verdict.outcomes["success"], watch.verdict  # it got something done between two deaths
