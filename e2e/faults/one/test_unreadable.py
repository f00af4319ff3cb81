"""A task's module is gone, a job's row is overwritten: the job stays, what is wrong is told, the others go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.nodes import running_nodes, wait_for_new_node
from e2e.harness.oracle import FINAL
from e2e.harness.probes import Probes
from e2e.harness.sqlite_lock import JOB_STORE
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

LIMIT_S = 3.0
FAR_AWAY = {"trigger_type": "date", "run_date": "2099-01-01T00:00:00"}
EVERY_SECOND = {"trigger_type": "interval", "seconds": 1}

#: Runs in the container: FILE JOB TRIGGER; overwrites a job's trigger, prints what was there.
OVERWRITE = """
import sqlite3, sys
file, job, trigger = sys.argv[1:]
connection = sqlite3.connect(file, timeout=20)
print(connection.execute("SELECT trigger FROM jobs WHERE id = ?", (job,)).fetchone()[0])
connection.execute("UPDATE jobs SET trigger = ? WHERE id = ?", (trigger, job))
connection.commit()
"""
READ_TRIGGER = """
import sqlite3, sys
print(sqlite3.connect(sys.argv[1]).execute("SELECT trigger FROM jobs WHERE id = ?", sys.argv[2:]).fetchone()[0])
"""
BROKEN = '{"type": "interval", "secon'


def restart(stack: Stack) -> None:
    known = running_nodes(stack)
    stack.container().restart()
    wait_for_new_node(stack, known)
    stack.wait_until_ready()


@contextmanager
def module_gone(stack: Stack, name: str) -> Iterator[None]:
    module = stack.oracle_folder / "tasks" / f"{name}.py"
    renamed = module.rename(module.with_suffix(".gone"))
    try:
        restart(stack)
        yield
    finally:
        renamed.rename(module)


def last_run(client: Client, job_id: str) -> dict[str, str]:
    """The newest run of a job, once it has ended."""
    rows = wait_until(
        f"a run of {job_id}", lambda: client.history(job_id), lambda f: f and f[0]["outcome"] in FINAL, within=20
    )
    return rows[0]


@pytest.mark.timeout(180)
def test_a_job_whose_task_is_gone_stays_and_its_runs_say_why(one_stack: Stack, probes: Probes) -> None:
    client = one_stack.bearer()
    client.create_job("vanishes", "vanishing", FAR_AWAY)
    with probes.watch("task module gone", "renamed, and a restart", outage=True, limit="3 s") as watch:
        watch.strike()
        with module_gone(one_stack, "vanishing"):
            watch.heal()
            assert client.job("vanishes")["id"] == "vanishes"
            client.run_now("vanishes")
            gone = last_run(client, "vanishes")
    watch.check()
    assert gone["outcome"] == "failed"
    assert "'vanishing' is not known" in gone["error"]
    # Back with its module, without a change of the job.
    with probes.watch("task module gone", "back again, and a restart", outage=True, limit="3 s") as watch:
        watch.strike()
        restart(one_stack)
        watch.heal()
        client.run_now("vanishes")
        assert last_run(client, "vanishes")["outcome"] == "success"
    watch.check()
    client.delete_job("vanishes")


@pytest.mark.timeout(180)
def test_an_overwritten_row_is_set_aside_untouched_and_stops_nobody(one_stack: Stack, probes: Probes) -> None:
    client = one_stack.bearer()
    client.create_job("overwritten", "oracle_fire", EVERY_SECOND)
    with probes.watch("unreadable row", "half a trigger in a job's row", limit="3 s") as watch:
        watch.strike()
        whole = one_stack.execute("python3", "-I", "-c", OVERWRITE, JOB_STORE, "overwritten", BROKEN).strip()
        assert json.loads(whole)["type"] == "interval"
        told = wait_until(
            "the job's problem",
            lambda: client.get(f"{SCHEDULER}/jobs/overwritten").text,
            lambda text: "problem" in text and "null" not in text.partition('"problem"')[2][:8],
            within=10,
        )
    watch.check()
    assert watch.next_fire_late <= LIMIT_S, watch.measurement
    assert "trigger" in told
    kept = one_stack.execute("python3", "-I", "-c", READ_TRIGGER, JOB_STORE, "overwritten").strip()
    assert kept == BROKEN
    # A new trigger mends it.
    client.data("PUT", f"{SCHEDULER}/jobs/overwritten", json=EVERY_SECOND)
    before = len([start for start in one_stack.starts() if start.job_id == "overwritten"])
    wait_until(
        "it fires again",
        lambda: len([start for start in one_stack.starts() if start.job_id == "overwritten"]),
        lambda count: count > before,
        within=10,
    )
    client.delete_job("overwritten")
