"""The database goes away under all schedulers, and comes back: no fire is lost, none late by more than the outage."""

from __future__ import annotations

import time

import pytest
from docker.models.containers import Container

from e2e.harness.faults import DATABASE_SERVICE, query, wait_until_node
from e2e.harness.oracle import FINAL
from e2e.harness.probes import Probes, let_pass
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

#: How much later than the outage was long a fire may be.
LIMIT_S = 3.0
LONG_RUN_S = 8.0


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["docker restart", "docker kill"])
@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.faults_long)])
def test_database_outage_delays_and_loses_nothing(
    ha_stack: Stack, probes: Probes, schedulers: list[Container], how: str, seconds: int
) -> None:
    """`seconds`: how long it stays away before it is started again, for `docker kill`."""
    if how == "docker restart" and seconds > 2:
        pytest.skip("a restart takes as long as it takes; the long outage is a kill")
    database = ha_stack.container(DATABASE_SERVICE)
    client = ha_stack.bearer()
    job_id = f"through-outage-{time.time_ns()}"
    trigger = {"trigger_type": "date", "run_date": "2099-01-01T00:00:00"}
    client.create_job(job_id, "oracle_sleep", trigger, kwargs={"seconds": LONG_RUN_S})
    shown = how if how == "docker restart" else f"{how}, away for {seconds} s"
    with probes.watch(
        "database restarted" if how == "docker restart" else "database killed",
        f"{shown}, under two schedulers",
        outage=True,
        limit="outage + 3 s",
    ) as watch:
        run_id = client.run_now(job_id)["run_id"]
        wait_until("the long run has begun", lambda: ha_stack.logged(job_id), within=10)
        watch.strike()
        if how == "docker restart":
            database.restart(timeout=30)
        else:
            database.kill()
            let_pass(seconds)
            database.start()
        wait_until("the database answers", lambda: _answers(ha_stack), within=60, every=0.05)
        watch.heal()
        for container in schedulers:
            wait_until_node(ha_stack, container)
    ha_stack.wait_until_ready()
    watch.check()
    assert watch.measurement is not None
    assert watch.measurement.outage is not None
    assert max(watch.lateness()) <= watch.measurement.outage + LIMIT_S, watch.measurement
    assert watch.measurement.recovery is not None
    assert watch.measurement.recovery <= LIMIT_S, watch.measurement
    # Nobody died: a run that went on through the outage, and one that was in the middle of a commit, ended well.
    assert watch.verdict.outcomes["lost"] == 0, watch.verdict
    (row,) = wait_until(
        "the long run is on record",
        lambda: [row for row in client.history(job_id) if row["run_id"] == run_id],
        lambda rows: rows and rows[0]["outcome"] in FINAL,
        within=30,
    )
    assert row["outcome"] == "success", row
    client.delete_job(job_id)


def _answers(stack: Stack) -> bool:
    try:
        return query(stack, "SELECT 1") == [["1"]]
    except AssertionError:  # psql's words while the server starts
        return False
