"""The broker goes away and comes back: every claimed run starts once, and what runs meanwhile is not disturbed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from e2e.harness.client import SCHEDULER
from e2e.harness.fleet import BROKER_SERVICE, run_on_fleet
from e2e.harness.probes import Probes, let_pass
from e2e.harness.stack import Stack

#: The sender and the workers try again every two seconds.
LIMIT_S = 5.0


@pytest.fixture(scope="module")
def fleet_probes(ha_stack: Stack) -> Iterator[Probes]:
    """Five jobs a second, run by the fleet."""
    running = Probes(ha_stack, 5, prefix="fleet-probe", executor="celery")
    running.start()
    yield running
    running.stop()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["docker restart", "docker kill"])
def test_every_claimed_run_starts_once(ha_stack: Stack, fleet_probes: Probes, how: str) -> None:
    broker = ha_stack.container(BROKER_SERVICE)
    shown = how if how == "docker restart" else f"{how}, away for 5 s"
    fault = "broker restarted" if how == "docker restart" else "broker killed"
    with fleet_probes.watch(fault, f"{shown}, under two workers", outage=True, limit="outage + 5 s") as watch:
        ends = run_on_fleet(ha_stack, "oracle_sleep", kwargs={"seconds": 6})
        ends.begun()
        watch.strike()
        if how == "docker restart":
            broker.restart(timeout=30)
        else:
            broker.kill()
            let_pass(5)
            broker.start()
        watch.heal()
        assert ends.ended()["outcome"] == "success"
    watch.check()
    assert watch.verdict.outcomes["lost"] == watch.verdict.outcomes["missed"] == 0, watch.verdict
    assert watch.measurement is not None
    assert watch.measurement.outage is not None
    assert max(watch.lateness()) <= watch.measurement.outage + LIMIT_S, watch.measurement


@pytest.mark.timeout(120)
def test_ends_cancellations_and_deaths_need_no_broker(ha_stack: Stack) -> None:
    broker = ha_stack.container(BROKER_SERVICE)
    ends = run_on_fleet(ha_stack, "oracle_sleep", kwargs={"seconds": 5})
    cancelled = run_on_fleet(ha_stack, "oracle_sleep", kwargs={"seconds": 60})
    limited = run_on_fleet(ha_stack, "oracle_sleep", kwargs={"seconds": 60}, time_limit=6)
    for run in (ends, cancelled, limited):
        run.begun()
    broker.kill()
    try:
        began = time.monotonic()
        ha_stack.bearer().data("POST", f"{SCHEDULER}/runs/{cancelled.run_id}/actions/cancel")
        assert cancelled.ended(within=10)["outcome"] == "cancelled"
        assert ends.ended(within=15)["outcome"] == "success"
        assert limited.ended(within=15)["outcome"] == "failed"
        waiting = run_on_fleet(ha_stack)
        assert time.monotonic() - began < 30
    finally:
        broker.start()
    assert waiting.ended(within=30)["outcome"] == "success"
    ha_stack.wait_until_ready()
