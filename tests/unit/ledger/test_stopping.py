"""Cancelling runs and their time limits, in threads and in processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app import create_app
from app.errors import NotFound, ValidationError
from app.ledger import Ending, LedgerScheduler, RunContext, Ticket, apscheduler_overrides, execute
from app.ledger.execution import prepare_process
from app.ledger.stopping import RunStopped, SoftTimeLimitExceeded, StopSignal
from app.runtime import runtime_of
from app.scheduler import stop_scheduler
from app.services.scheduler.scheduler_actions_service import SchedulerActionsService
from app.services.scheduler.scheduler_job_write_service import SchedulerJobWriteService
from app.services.scheduler.scheduler_runs_read_service import SchedulerRunsReadService
from app.settings import Settings

from .conftest import START, SampleTask, Store, wait_until

Start = Callable[..., LedgerScheduler]


def obey(run: RunContext) -> None:
    """Works until it is asked to stop."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        run.check()
        time.sleep(0.01)


def look(run: RunContext) -> None:
    """Ends in order when it is asked to stop."""
    run.stop.wait(30)


def ignore() -> None:
    """Does not listen."""
    time.sleep(1.6)


def hang() -> None:
    """Does not listen, and does not end."""
    time.sleep(60)


def tidy_up() -> None:
    """Uses its soft limit to end in order."""
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        print("tidied up")
        raise


TASKS = {
    "obey": SampleTask(obey, wants_run=True),
    "look": SampleTask(look, wants_run=True),
    "ignore": SampleTask(ignore),
    "hang": SampleTask(hang),
    "tidy_up": SampleTask(tidy_up),
}


def run_in_child(ticket: Ticket) -> Ending:
    """What the child process runs."""
    return execute(ticket, node="child", resolve=TASKS.get, context=nullcontext, alarm=True)


def come_up_slowly() -> None:
    """What takes longer in a child than the time limit of its run."""
    time.sleep(2.5)


def start_slowly(parent: int) -> None:
    """In the place of a child's first steps: a machine on which they take longer than the time limit of a run."""
    prepare_process(parent)
    time.sleep(2.5)


def never_come_up(parent: int) -> None:
    """In the place of a child's first steps, long before it could tell its process id."""
    time.sleep(60)


def broken() -> None:
    """An app that cannot be built."""
    raise LookupError("no app today")


@pytest.fixture
def node(store: Store, start_node: Start) -> LedgerScheduler:
    store.tasks.update(TASKS)
    return start_node(run_in_child=run_in_child)


def begin(store: Store, node: LedgerScheduler, task: str, **job: Any) -> str:
    store.add(task, task=task, is_enabled=False, **job)
    run = node._ledger.request_run(task, "alice")
    wait_until(lambda: outcome(store, run.run_id) == "running", "its start", timeout_s=30)
    return run.run_id


def outcome(store: Store, run_id: str) -> str:
    return str(store.runs(run_id=run_id)[0]["outcome"])


def ended(store: Store, run_id: str) -> dict[str, Any]:
    wait_until(lambda: outcome(store, run_id) not in ("pending", "running"), "its end", timeout_s=30)
    return store.runs(run_id=run_id)[0]


class TestCancel:
    def test_a_run_that_waits_never_starts(self, store: Store) -> None:
        store.add()
        run = store.ledger.request_run("job", "alice")
        cancelled = store.ledger.cancel_run(run.run_id, "bob")
        assert (cancelled.outcome, cancelled.cancel_requested_by) == ("cancelled", "bob")
        assert cancelled.finished_at is not None

    def test_what_has_ended_cannot_be_cancelled_and_what_never_was_is_not_found(self, store: Store) -> None:
        store.add()
        run = store.ledger.request_run("job", "alice")
        store.ledger.cancel_run(run.run_id, "bob")
        with pytest.raises(ValidationError) as refusal:
            store.ledger.cancel_run(run.run_id, "bob")
        assert refusal.value.field == "run_id"
        with pytest.raises(NotFound):
            store.ledger.cancel_run("0" * 32, "bob")

    def test_who_asked_first_is_on_record(self, store: Store, node: LedgerScheduler) -> None:
        run_id = begin(store, node, "look")
        store.ledger.cancel_run(run_id, "bob")
        assert store.runs(run_id=run_id)[0]["cancel_requested_by"] == "bob"

    def test_a_task_that_listens_is_cancelled(self, store: Store, node: LedgerScheduler) -> None:
        run_id = begin(store, node, "obey", max_attempts=3)
        store.ledger.cancel_run(run_id, "bob")
        run = ended(store, run_id)
        assert (run["outcome"], run["reason"]) == ("cancelled", "it was cancelled")
        assert len(store.runs()) == 1

    def test_a_task_that_finishes_all_the_same_is_a_success(self, store: Store, node: LedgerScheduler) -> None:
        run_id = begin(store, node, "ignore")
        store.ledger.cancel_run(run_id, "bob")
        run = ended(store, run_id)
        assert run["outcome"] == "success"
        assert "was to be cancelled" in run["reason"]

    def test_a_process_is_killed_and_the_next_run_gets_a_new_one(self, store: Store, node: LedgerScheduler) -> None:
        run_id = begin(store, node, "hang", executor="process")
        store.ledger.cancel_run(run_id, "bob")
        run = ended(store, run_id)
        assert (run["outcome"], run["reason"]) == ("cancelled", "it was cancelled; its process was killed")
        begin(store, node, "ignore", executor="process")


class TestLimits:
    def test_a_thread_is_asked_at_the_soft_limit(self, store: Store, node: LedgerScheduler) -> None:
        run = ended(store, begin(store, node, "obey", soft_time_limit=1, time_limit=30))
        assert (run["outcome"], run["error"]) == ("failed", "it reached its soft time limit of 1 s")

    def test_a_thread_that_ends_in_order_when_asked_is_a_success(self, store: Store, node: LedgerScheduler) -> None:
        assert ended(store, begin(store, node, "look", soft_time_limit=1))["outcome"] == "success"

    def test_a_thread_that_goes_on_past_its_limit_has_failed(self, store: Store, node: LedgerScheduler) -> None:
        run = ended(store, begin(store, node, "ignore", time_limit=1))
        assert run["outcome"] == "failed"
        assert run["error"].startswith("it reached its time limit of 1 s; it went on to its end")

    def test_a_process_has_its_time_from_when_it_could_begin(self, store: Store, start_node: Start) -> None:
        store.tasks.update(TASKS)
        node = start_node(run_in_child=run_in_child, prepare_child=come_up_slowly)
        assert ended(store, begin(store, node, "ignore", executor="process", time_limit=2))["outcome"] == "success"
        began = time.monotonic()
        run = ended(store, begin(store, node, "hang", executor="process", time_limit=1))
        assert run["outcome"] == "failed"
        assert "1 s" in run["error"]
        assert time.monotonic() - began < 10

    def test_a_process_that_starts_slowly_takes_nothing_from_its_tasks_time(
        self, store: Store, node: LedgerScheduler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(apscheduler_overrides, "prepare_process", start_slowly)
        assert ended(store, begin(store, node, "ignore", executor="process", time_limit=2))["outcome"] == "success"

    def test_a_task_that_is_too_long_is_killed_in_a_process_that_starts_slowly_too(
        self, store: Store, node: LedgerScheduler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(apscheduler_overrides, "prepare_process", start_slowly)
        run = ended(store, begin(store, node, "hang", executor="process", time_limit=1, max_attempts=1))
        assert (run["outcome"], run["error"]) == ("failed", "it reached its time limit of 1 s; its process was killed")
        took_s = (run["finished_at"] - run["started_at"]) / 1_000_000
        assert 3.5 <= took_s < 10

    def test_a_process_that_is_still_coming_up_can_be_cancelled(self, store: Store, start_node: Start) -> None:
        store.tasks.update(TASKS)
        node = start_node(run_in_child=run_in_child, prepare_child=come_up_slowly)
        run_id = begin(store, node, "hang", executor="process", time_limit=5)
        store.ledger.cancel_run(run_id, "bob")
        assert ended(store, run_id)["outcome"] == "cancelled"

    def test_a_process_that_never_comes_up_is_killed_all_the_same(
        self, store: Store, node: LedgerScheduler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(apscheduler_overrides, "prepare_process", never_come_up)
        monkeypatch.setattr(apscheduler_overrides, "_READY_WITHIN_S", 1.0)
        run = ended(store, begin(store, node, "ignore", executor="process", time_limit=1))
        assert run["outcome"] == "failed"
        assert run["error"] == "it reached its time limit of 1 s; its process was killed before it had come up"
        cancelled = begin(store, node, "hang", executor="process")
        store.ledger.cancel_run(cancelled, "bob")
        assert ended(store, cancelled)["outcome"] == "cancelled"
        monkeypatch.setattr(apscheduler_overrides, "prepare_process", prepare_process)
        assert ended(store, begin(store, node, "look", executor="process", soft_time_limit=1))["outcome"] == "failed"

    def test_an_orderly_stop_waits_for_a_run_whose_process_is_still_coming_up(
        self, store: Store, start_node: Start
    ) -> None:
        store.tasks.update(TASKS)
        node = start_node(run_in_child=run_in_child, prepare_child=come_up_slowly)
        begin(store, node, "ignore", executor="process", time_limit=2)
        assert node.stop(30)
        assert [run["outcome"] for run in store.runs()] == ["success"]

    def test_a_process_whose_app_cannot_be_built_leaves_it_to_the_run_to_say_so(
        self, store: Store, start_node: Start
    ) -> None:
        store.tasks.update(TASKS)
        node = start_node(run_in_child=run_in_child, prepare_child=broken)
        assert ended(store, begin(store, node, "ignore", executor="process", time_limit=30))["outcome"] == "success"

    def test_a_process_is_killed_at_the_limit(self, store: Store, node: LedgerScheduler) -> None:
        run = ended(store, begin(store, node, "hang", executor="process", time_limit=2))
        assert (run["outcome"], run["error"]) == ("failed", "it reached its time limit of 2 s; its process was killed")

    def test_a_process_may_tidy_up_at_the_soft_limit(self, store: Store, node: LedgerScheduler) -> None:
        run = ended(store, begin(store, node, "tidy_up", executor="process", soft_time_limit=2, time_limit=30))
        assert (run["outcome"], run["error"]) == ("failed", "it reached its soft time limit of 2 s")
        with store.engine.connect() as connection:
            assert "tidied up" in connection.exec_driver_sql("SELECT log FROM run_logs").scalar_one()


SLOW_APP = """
import multiprocessing
import time

from app.tasks import task

if multiprocessing.parent_process() is not None:
    time.sleep(1.5)


@task("nap", description="Sleeps")
def nap(seconds: float):
    time.sleep(seconds)
"""


def test_the_time_limit_does_not_count_while_a_process_builds_its_app(settings: Settings) -> None:
    settings.tasks_dir.mkdir(parents=True)
    (settings.tasks_dir / "slow_app.py").write_text(SLOW_APP, encoding="utf-8")
    runtime = runtime_of(create_app(settings))

    def run(job_id: str, seconds: float) -> Any:
        job = {"id": job_id, "task": "nap", "kwargs": {"seconds": seconds}, "trigger_type": "cron", "hour": 1}
        SchedulerJobWriteService(runtime).upsert({**job, "executor": "process", "time_limit": 1})
        asked = SchedulerActionsService(runtime).start_run(job_id)
        read = SchedulerRunsReadService(runtime)
        wait_until(lambda: read.get_run(asked.run_id).finished_at, "its end", timeout_s=30)
        return read.get_run(asked.run_id)

    try:
        short, long = run("short", 0.2), run("long", 60)
    finally:
        stop_scheduler()
    assert short.outcome == "success", short.error
    assert (long.outcome, long.error) == ("failed", "it reached its time limit of 1 s; its process was killed")


def test_a_task_that_says_cpu_bound_runs_in_a_process(store: Store, start_node: Start) -> None:
    store.tasks["hang"] = SampleTask(hang, cpu_bound=True)
    node = start_node(run_in_child=run_in_child)
    run_id = begin(store, node, "hang")
    node._ledger.cancel_run(run_id, "bob")
    assert "process was killed" in ended(store, run_id)["reason"]


def test_a_failed_run_is_tried_again_after_its_delay(store: Store, start_node: Start) -> None:
    def fail_twice(run: RunContext) -> None:
        if run.attempt < 3:
            raise ValueError(run.attempt)

    store.tasks["sample"] = SampleTask(fail_twice, wants_run=True)
    store.add(max_attempts=5, retry_delay=1, is_enabled=False)
    node = start_node()
    node._ledger.request_run("job", "alice")
    wait_until(lambda: store.runs(outcome="success"), "the third attempt", timeout_s=20)
    first, second, third = store.runs()
    assert [run["attempt"] for run in (first, second, third)] == [1, 2, 3]
    assert second["started_at"] - first["finished_at"] >= 1_000_000
    assert third["started_at"] - second["finished_at"] >= 2_000_000
    assert {second["first_run_id"], third["first_run_id"]} == {first["run_id"]}


def test_a_waiting_attempt_of_a_node_that_stopped_is_started_by_another_when_it_is_time(
    store: Store, start_node: Start
) -> None:
    def fail_once(run: RunContext) -> None:
        if run.attempt < 2:
            raise ValueError

    store.tasks["sample"] = SampleTask(fail_once, wants_run=True)
    store.add(max_attempts=2, retry_delay=3, is_enabled=False)
    node = start_node("first")
    node._ledger.request_run("job", "alice")
    wait_until(lambda: len(store.runs()) == 2, "the waiting attempt")
    node.stop(1)
    start_node("second")
    (run,) = wait_until(lambda: store.runs(outcome="success"), "the second attempt", timeout_s=20)
    assert (run["attempt"], run["node"]) == (2, "second")
    assert run["started_at"] >= run["not_before"]


def test_a_weightier_reason_replaces_a_lighter_one() -> None:
    stop = StopSignal()
    assert not stop.requested
    for reason, expected in (("soft", "soft"), ("hard", "hard"), ("soft", "hard"), ("cancel", "cancel")):
        stop.request(reason)  # type: ignore[arg-type]
        assert stop.reason == expected
    context = RunContext(
        id="r", job_id="j", scheduled_for=START, node="n", kind="manual", attempt=1, created_by="x", stop=stop
    )
    assert context.stop_requested
    with pytest.raises(RunStopped):
        context.check()


def test_no_lateness_is_counted_for_later_attempts(store: Store, start_node: Start) -> None:
    store.tasks["sample"] = SampleTask(lambda: 1 / 0)
    store.add(max_attempts=2, retry_delay=1)
    store.due_at(datetime.now(UTC) - timedelta(seconds=0.1))
    node = start_node()
    wait_until(lambda: len(store.runs(attempt=2, outcome="failed")), "the second attempt", timeout_s=20)
    assert max(node._dispatcher.lateness_ms) < 5000
