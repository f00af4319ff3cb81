"""Runbooks of jobs that fire twice, late or not at all, followed in a stack that is in just that situation."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from operator import eq
from zoneinfo import ZoneInfo

import pytest

from e2e.harness.checkout import READY
from e2e.harness.client import SCHEDULER
from e2e.harness.runbooks import COPY_REPORT, Operator
from e2e.harness.site import Site, site
from e2e.harness.waiting import wait_for_clock, wait_until

DAILY = {"trigger_type": "cron", "cron_expression": "0 3 * * *"}
EVERY_TWO_SECONDS = {"trigger_type": "interval", "seconds": 2}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The one container. Each page leaves it as it should be: healthy."""
    with site(tmp_path_factory.mktemp("runbooks"), "runbooks-jobs", tasks={"copy_report": COPY_REPORT}) as made:
        yield made


@pytest.fixture
def operator(here: Site) -> Operator:
    return Operator(here)


def test_two_jobs_with_one_task(here: Site, operator: Operator) -> None:
    client = here.bearer()
    for job_id in ("copy_report", "copy_report_again"):
        client.create_job(job_id, "copy_report", DAILY)
    client.run_now("copy_report")
    done = operator.follow("jobs-run-twice", "two jobs")
    assert '"id": "copy_report_again", "task": "copy_report"' in done.diagnosis


def test_attempts_repeat_a_task(here: Site, operator: Operator) -> None:
    client = here.bearer()
    wanted = EVERY_TWO_SECONDS | {"kwargs": {"fails": True}, "max_attempts": 2, "retry_delay": 1}
    client.data("PUT", f"{SCHEDULER}/jobs/copy_report", json=wanted)
    wait_until(
        "a second attempt",
        lambda: [row["attempt"] for row in client.history("copy_report")],
        lambda found: 2 in found,
        within=30,
    )
    operator.follow("jobs-run-twice", "attempts")
    client.delete_job("copy_report")


class TestJobDidNotFire:
    """One job, and one reason after the other."""

    JOB = f"{SCHEDULER}/jobs/nightly_report"

    @pytest.fixture(scope="class", autouse=True)
    @staticmethod
    def nightly_report(here: Site) -> Iterator[None]:
        here.bearer().create_job("nightly_report", "copy_report", DAILY)
        yield
        here.bearer().delete_job("nightly_report")

    def test_paused(self, here: Site, operator: Operator) -> None:
        here.bearer().data("POST", f"{self.JOB}/actions/pause")
        done = operator.follow("job-did-not-fire", "paused")
        assert "paused" in done.diagnosis

    def test_disabled(self, here: Site, operator: Operator) -> None:
        here.bearer().data("POST", f"{self.JOB}/action", json={"action": "disable"})
        done = operator.follow("job-did-not-fire", "disabled")
        assert "disabled" in done.diagnosis

    def test_held(self, here: Site, operator: Operator) -> None:
        here.execute("flask", "jobs", "hold", "--reason", "looking at the store")
        done = operator.follow("job-did-not-fire", "held")
        assert "looking at the store" in done.diagnosis

    def test_scheduler_stopped(self, here: Site, operator: Operator) -> None:
        here.execute("supervisorctl", "stop", "whalefall_scheduler")
        wait_until("health to be red", lambda: here.status_of(READY), partial(eq, 503), within=60)
        done = operator.follow("job-did-not-fire", "stopped")
        assert "whalefall_scheduler              STOPPED" in done.diagnosis

    def test_missed(self, here: Site, operator: Operator) -> None:
        """The machine sleeps over the moment."""
        moment = datetime.now(ZoneInfo("Asia/Shanghai")) + timedelta(seconds=3)
        once_a_day = {"trigger_type": "cron", "cron_expression": f"{moment:%S %M %H} * * *"}
        here.bearer().data("PUT", self.JOB, json=once_a_day | {"misfire_grace_time": 1})
        container = here.container()
        container.pause()
        wait_for_clock(moment.timestamp() + 3)
        container.unpause()
        wait_until("the missed moment", lambda: here.outcomes("nightly_report")[0], partial(eq, "missed"), within=30)
        done = operator.follow("job-did-not-fire", "missed")
        assert "missed" in done.diagnosis


def test_places_taken(here: Site, operator: Operator) -> None:
    here.keep(SCHEDULER_THREADS="1", DRAIN_SECONDS="1")
    here.start()
    client = here.bearer()
    client.create_job("long", "oracle_sleep", DAILY, kwargs={"seconds": 600})
    client.run_now("long")
    wait_until("the long run", lambda: here.outcomes("long"), partial(eq, ["running"]), within=30)
    client.run_now("purge_run_history")

    def free_places() -> list[int]:
        nodes = client.data("GET", f"{SCHEDULER}/status")["nodes"]
        return [node["stats"]["free"]["default"] for node in nodes if node["is_alive"]]

    wait_until("the node to tell of it", free_places, partial(eq, [0]), within=30)
    done = operator.follow("jobs-fire-late", "places taken")
    assert '"default":0' in done.diagnosis
    wait_until("the run that waited", lambda: here.outcomes("purge_run_history")[0], partial(eq, "success"), within=30)
    client.delete_job("long")


def test_clock_change(here: Site, operator: Operator) -> None:
    client = here.bearer()
    berlin = {"trigger_type": "cron", "cron_expression": "30 2 * * *", "timezone": "Europe/Berlin"}
    client.create_job("nightly", "purge_run_history", berlin)
    done = operator.follow("clock-change-nights")
    assert "moved" in done.diagnosis
    assert "comes twice" in done.diagnosis
    client.delete_job("nightly")
