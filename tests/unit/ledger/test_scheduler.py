"""The real scheduler in one process: loop, dispatcher, executors, several nodes on one store."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from apscheduler import events
from apscheduler.jobstores.base import JobLookupError
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from app.ledger import Ending, LedgerScheduler, RunContext, Ticket, execute
from app.ledger.apscheduler_overrides import LOOK_S
from app.ledger.claim import Claimed
from app.ledger.execution import NICENESS
from app.ledger.nodes import is_proof_of_death

from .conftest import SampleTask, Store, wait_until

Start = Callable[..., LedgerScheduler]


def outcomes(store: Store, **where: Any) -> Counter[str]:
    return Counter(run["outcome"] for run in store.runs(**where))


def test_a_due_job_runs_and_is_on_record(store: Store, start_node: Start) -> None:
    seen: list[RunContext] = []
    store.tasks["sample"] = SampleTask(lambda run, greeting: (seen.append(run), print(greeting)), wants_run=True)
    store.add(kwargs={"greeting": "hello"})
    start_node()
    wait_until(lambda: outcomes(store)["success"] >= 2, "two runs")
    run = store.runs()[0]
    assert (seen[0].id, seen[0].node, seen[0].kind) == (run["run_id"], "n1", "schedule")
    assert run["started_at"] - run["scheduled_for"] < 1_000_000
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT log FROM run_logs LIMIT 1").scalar_one() == "hello\n"


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda: sys.exit(3), "SystemExit: 3"),
        (lambda unexpected: None, "TypeError"),
    ],
)
def test_a_failing_task_is_recorded_and_harms_nobody(
    store: Store, start_node: Start, function: Callable[..., Any], error: str
) -> None:
    store.tasks = {"sample": SampleTask(function), "sound": SampleTask(lambda: None)}
    store.add()
    store.add("other", task="sound")
    start_node()
    wait_until(lambda: outcomes(store, job_id="other")["success"] >= 2, "the other job's runs")
    failed = store.runs(job_id="job", outcome="failed")[0]
    assert error in failed["error"]


def test_an_unknown_task_and_an_unknown_executor_fail_with_a_clear_message(store: Store, start_node: Start) -> None:
    store.tasks["sample"] = SampleTask(lambda: None)
    store.add("no-task", task="gone")
    store.add("no-executor", executor="celery")
    start_node()
    wait_until(lambda: len(store.runs(outcome="failed")) >= 2, "both runs")
    errors = {run["job_id"]: run["error"] for run in store.runs(outcome="failed")}
    assert "task 'gone' is not known" in errors["no-task"]
    assert "executor 'celery' is not known" in errors["no-executor"]


def test_run_now_starts_at_once(store: Store, start_node: Start) -> None:
    store.tasks["sample"] = SampleTask(lambda: None)
    node = start_node()
    store.add(is_enabled=False)
    run = node._ledger.request_run("job", "7")
    wait_until(lambda: outcomes(store)["success"] == 1, "the manual run", timeout_s=2)
    assert store.runs()[0]["run_id"] == run.run_id


def test_a_run_asked_for_by_a_process_without_a_scheduler_is_adopted(store: Store, start_node: Start) -> None:
    store.tasks["sample"] = SampleTask(lambda: None)
    start_node()
    store.add(is_enabled=False)
    store.ledger.request_run("job", "7")
    wait_until(lambda: outcomes(store)["success"] == 1, "the adopted run", timeout_s=4)


def test_an_edit_of_another_process_is_obeyed_within_a_second(store: Store, start_node: Start) -> None:
    started: list[float] = []
    store.tasks["sample"] = SampleTask(lambda: started.append(time.time()))
    start_node()
    moment = datetime.now(UTC) + timedelta(seconds=1)
    store.add(trigger={"type": "date", "run_date": moment.isoformat(), "timezone": "UTC"})
    wait_until(lambda: started, "the run")
    assert started[0] - moment.timestamp() < 1


def test_instances_of_one_claim_run_one_after_the_other(store: Store, start_node: Start) -> None:
    overlapping = threading.Lock()
    order: list[datetime] = []

    def task(run: RunContext) -> None:
        assert overlapping.acquire(blocking=False), "two at once"
        order.append(run.scheduled_for)
        time.sleep(0.02)
        overlapping.release()

    store.tasks["sample"] = SampleTask(task, wants_run=True)
    store.add(coalesce=False)
    first = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=5)
    store.due_at(first)
    start_node()
    wait_until(lambda: outcomes(store)["success"] >= 6, "the backlog")
    assert order == sorted(order)
    assert order[:6] == [first + timedelta(seconds=number) for number in range(6)]


def test_a_claimed_run_that_waits_beyond_its_grace_time_is_missed(store: Store, start_node: Start) -> None:
    release = threading.Event()
    store.tasks = {"sample": SampleTask(release.wait), "late": SampleTask(lambda: None)}
    store.add("long", is_enabled=False)
    node = start_node(threads=1)
    node._ledger.request_run("long", "7")
    wait_until(lambda: outcomes(store)["running"] == 1, "the long run")
    store.add("late", task="late", misfire_grace_time=1)
    wait_until(lambda: store.runs(job_id="late"), "the claim")
    wait_until(
        lambda: (datetime.now(UTC).timestamp() * 1e6 - store.runs(job_id="late")[0]["scheduled_for"]) > 1.2e6, ""
    )
    release.set()
    wait_until(lambda: store.runs(job_id="late", outcome="missed"), "the missed run")
    assert "not started within the grace time" in store.runs(job_id="late", outcome="missed")[0]["reason"]


def test_many_jobs_of_one_second_are_all_on_record(store: Store, start_node: Start) -> None:
    calls: Counter[tuple[str, datetime]] = Counter()
    lock = threading.Lock()

    def task(run: RunContext) -> None:
        with lock:
            calls[run.job_id, run.scheduled_for] += 1

    store.tasks["sample"] = SampleTask(task, wants_run=True)
    for number in range(200):
        store.add(f"job{number}")
    node = start_node()
    wait_until(lambda: outcomes(store)["success"] >= 600, "three ticks")
    node.stop(5)
    assert set(calls.values()) == {1}
    assert len(calls) == outcomes(store)["success"]


def test_several_nodes_share_the_work_without_doubling(store: Store, start_node: Start) -> None:
    calls: Counter[tuple[str, datetime]] = Counter()
    lock = threading.Lock()

    def task(run: RunContext) -> None:
        with lock:
            calls[run.job_id, run.scheduled_for] += 1

    store.tasks["sample"] = SampleTask(task, wants_run=True)
    for number in range(20):
        store.add(f"job{number}")
    nodes = [start_node(f"n{number}") for number in range(3)]
    wait_until(lambda: outcomes(store)["success"] >= 60, "three ticks")
    for node in nodes:
        node.stop(5)
    assert set(calls.values()) == {1}
    assert set(outcomes(store)) <= {"success", "pending"}
    assert {node.state for node in store.ledger.nodes()} == {"stopped"}


def test_tasks_give_way_to_the_loop(store: Store, start_node: Start) -> None:
    seen: list[int] = []
    store.tasks["sample"] = SampleTask(lambda: seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
    store.add(is_enabled=False)
    node = start_node()
    node._ledger.request_run("job", "7")
    wait_until(lambda: outcomes(store)["success"], "the run")
    loop = os.getpriority(os.PRIO_PROCESS, node._thread.native_id)
    assert seen == [NICENESS]
    assert loop < NICENESS


class TestStop:
    def test_what_runs_is_waited_for(self, store: Store, start_node: Start) -> None:
        release = threading.Event()
        store.tasks["sample"] = SampleTask(release.wait)
        store.add(is_enabled=False)
        node = start_node()
        node._ledger.request_run("job", "7")
        wait_until(lambda: outcomes(store)["running"], "the run")
        threading.Timer(0.3, release.set).start()
        assert node.stop(5)
        assert outcomes(store) == {"success": 1}

    def test_what_does_not_end_in_time_is_lost(self, store: Store, start_node: Start) -> None:
        release = threading.Event()
        store.tasks["sample"] = SampleTask(release.wait)
        store.add(is_enabled=False)
        node = start_node()
        node._ledger.request_run("job", "7")
        wait_until(lambda: outcomes(store)["running"], "the run")
        assert not node.stop(0.1)
        assert outcomes(store) == {"lost": 1}
        release.set()

    def test_what_never_started_is_left_for_the_next_node(self, store: Store, start_node: Start) -> None:
        release = threading.Event()
        store.tasks = {"block": SampleTask(release.wait), "sample": SampleTask(lambda: None)}
        store.add("block", task="block", is_enabled=False)
        store.add(is_enabled=False)
        first = start_node("n1", threads=1)
        first._ledger.request_run("block", "7")
        wait_until(lambda: outcomes(store)["running"], "the blocking run")
        first._ledger.request_run("job", "7")
        wait_until(first._dispatcher.queued, "the waiting run")
        start_node("n2")
        threading.Timer(0.5, release.set).start()
        assert first.stop(5)
        wait_until(lambda: outcomes(store)["success"] == 2, "the run on the other node", timeout_s=4)
        assert store.runs(job_id="job")[0]["node"] == "n2"

    def test_after_begin_stop_nothing_is_claimed(self, store: Store, start_node: Start) -> None:
        store.tasks["sample"] = SampleTask(lambda: None)
        node = start_node()
        node.begin_stop()
        turn = node._clocks.turn
        wait_until(lambda: node._clocks.turn > turn, "the end of the turn that may have been under way")
        store.add()
        store.due_at(datetime.now(UTC) - timedelta(seconds=1))
        beat = node._clocks.beat
        wait_until(lambda: node._clocks.beat > beat + 1, "two more heartbeats")
        assert store.runs() == []


@contextmanager
def locked_from_outside(store: Store) -> Iterator[None]:
    """Another program holds SQLite's write lock."""
    path = store.engine.url.database
    assert path is not None
    with closing(sqlite3.connect(path, isolation_level=None)) as outside:
        outside.execute("BEGIN IMMEDIATE")
        yield
        outside.execute("ROLLBACK")


class TestStoreOutage:
    def test_a_locked_store_is_outlived(self, store: Store, start_node: Start) -> None:
        store.tasks["sample"] = SampleTask(lambda: None)
        store.add()
        node = start_node()
        wait_until(lambda: outcomes(store)["success"], "a first run")
        with locked_from_outside(store):
            wait_until(lambda: node.health().problem, "the loop to notice")
            assert "locked" in (node.health().problem or "")
            assert node.health().alive
        before = outcomes(store)["success"]
        wait_until(lambda: outcomes(store)["success"] > before + 1, "runs after the release")
        wait_until(lambda: node.health().problem is None, "a healthy loop")
        assert set(outcomes(store)) <= {"success", "coalesced", "running", "pending"}

    def test_an_end_is_kept_until_the_store_is_back(self, store: Store, start_node: Start) -> None:
        release = threading.Event()
        store.tasks["sample"] = SampleTask(release.wait)
        store.add(is_enabled=False)
        node = start_node()
        node._ledger.request_run("job", "7")
        wait_until(lambda: outcomes(store)["running"], "the run")
        with locked_from_outside(store):
            release.set()
            wait_until(lambda: not node._dispatcher.running(), "the end of the task")
            wait_until(lambda: node._dispatcher._retry_at > 0, "a failed try to record it")
        wait_until(lambda: outcomes(store)["success"] == 1, "the end on record")

    def test_an_end_that_waits_for_the_store_is_recorded_by_the_stop(self, store: Store, start_node: Start) -> None:
        release = threading.Event()
        store.tasks["sample"] = SampleTask(release.wait)
        store.add(is_enabled=False)
        node = start_node()
        node._ledger.request_run("job", "7")
        wait_until(lambda: outcomes(store)["running"], "the run")
        with locked_from_outside(store):
            release.set()
            wait_until(lambda: node._dispatcher._retry_at > 0, "a failed try to record it")
            stopping = threading.Thread(target=node.stop, args=(0.0,))
            stopping.start()
            wait_until(lambda: not node._dispatcher._thread.is_alive(), "the end of the drain")
        stopping.join(timeout=10)
        assert outcomes(store) == {"success": 1}

    def test_a_stop_that_is_not_on_record_leaves_the_proof_of_it(self, store: Store, start_node: Start) -> None:
        node = start_node()
        wait_until(store.ledger.nodes, "its first heartbeat")
        assert node._lock_file is not None
        with locked_from_outside(store):
            node.stop(0.0)
        assert is_proof_of_death(str(node._lock_file.path))


class TestAPSchedulersOwnAPI:
    def test_its_jobs_are_the_ledgers(self, store: Store, start_node: Start) -> None:
        store.tasks["sample"] = SampleTask(lambda: None)
        store.add("b", kwargs={"x": 1})
        store.add("a", is_enabled=False)
        node = start_node()
        assert [job.id for job in node.get_jobs()] == ["b", "a"]
        job = node.get_job("b")
        assert (job.kwargs, job.max_instances, job.next_run_time is not None) == ({"x": 1}, 1, True)
        assert node.get_job("ghost") is None

    def test_it_pauses_resumes_reschedules_adds_and_removes(self, store: Store, start_node: Start) -> None:
        def sample() -> None:
            """The task's function, with the task's name."""

        store.tasks["sample"] = SampleTask(sample)
        store.add()
        node = start_node(paused=True)
        assert node.pause_job("job").next_run_time is None
        assert node.resume_job("job").next_run_time is not None
        node.reschedule_job("job", trigger=IntervalTrigger(minutes=5, timezone=UTC))
        assert store.ledger.get_job("job").trigger["seconds"] == 300  # type: ignore[union-attr]
        node.reschedule_job("job", trigger=CronTrigger(hour=3, timezone="Asia/Shanghai"))
        job = store.ledger.get_job("job")
        assert job is not None
        assert (job.trigger["hour"], job.trigger["timezone"]) == ("3", "Asia/Shanghai")
        node.modify_job("job", max_instances=4)
        assert store.ledger.get_job("job").max_instances == 4  # type: ignore[union-attr]
        node.add_job(store.tasks["sample"].function, "interval", minutes=1, id="added", kwargs={})
        assert store.ledger.get_job("added").task == "sample"  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="registered task"):
            node.add_job(print, "interval", minutes=1)
        node.remove_job("job")
        assert store.ledger.get_job("job") is None
        with pytest.raises(JobLookupError):
            node.pause_job("job")

    def test_its_events_are_sent(self, store: Store, start_node: Start) -> None:
        store.tasks = {"sample": SampleTask(lambda: None), "bad": SampleTask(lambda: 1 / 0)}
        codes: set[int] = set()
        node = start_node()
        node.add_listener(lambda event: codes.add(event.code))
        store.add()
        store.add("bad", task="bad")
        store.add("old", trigger={**store.ledger.get_job("job").trigger}, misfire_grace_time=1)  # type: ignore[union-attr]
        store.due_at(datetime.now(UTC) - timedelta(seconds=60), "old")
        expected = {
            events.EVENT_JOB_SUBMITTED,
            events.EVENT_JOB_EXECUTED,
            events.EVENT_JOB_ERROR,
            events.EVENT_JOB_MISSED,
        }
        wait_until(lambda: expected <= codes, "the events")

    def test_a_paused_scheduler_beats_but_claims_nothing(self, store: Store, start_node: Start) -> None:
        store.tasks["sample"] = SampleTask(lambda: None)
        store.add()
        node = start_node(paused=True)
        beat = node._clocks.beat
        wait_until(lambda: node._clocks.beat > beat + 1, "two heartbeats")
        assert store.runs() == []
        node.resume()
        wait_until(lambda: outcomes(store)["success"], "a run after the resume")


# Functions of the child processes: importable there by name


def _in_child() -> None:
    print(f"in process {os.getpid()}")


def _dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _run_in_child(ticket: Ticket) -> Ending:
    tasks = {"sample": SampleTask(_in_child), "dies": SampleTask(_dies)}
    return execute(ticket, node="child", resolve=tasks.get, context=nullcontext)


def test_the_process_executor_runs_in_a_child_and_survives_its_death(store: Store, start_node: Start) -> None:
    store.add(executor="process", is_enabled=False)
    store.add("dies", task="dies", executor="process", is_enabled=False)
    others = set(multiprocessing.active_children())
    node = start_node(run_in_child=_run_in_child)
    node._ledger.request_run("job", "7")
    wait_until(lambda: store.runs(job_id="job", outcome="success"), "the run in a child", timeout_s=30)
    with store.engine.connect() as connection:
        log = connection.exec_driver_sql("SELECT log FROM run_logs").scalar_one()
    assert log.startswith("in process ")
    assert str(os.getpid()) not in log
    node._ledger.request_run("dies", "7")
    wait_until(lambda: store.runs(job_id="dies", outcome="lost"), "the loss", timeout_s=30)
    assert "died" in store.runs(job_id="dies")[0]["reason"]
    node._ledger.request_run("job", "7")
    wait_until(lambda: len(store.runs(job_id="job", outcome="success")) == 2, "the renewed pool", timeout_s=30)
    node.stop(5)
    assert set(multiprocessing.active_children()) <= others


def test_a_run_that_no_thread_could_be_had_for_fails_and_does_not_run_later(
    store: Store, start_node: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, ran = threading.Event(), threading.Event()
    store.tasks = {"block": SampleTask(release.wait), "sample": SampleTask(ran.set)}
    store.add("block", task="block", is_enabled=False)
    store.add(is_enabled=False)
    node = start_node(threads=2)
    node._ledger.request_run("block", "7")
    wait_until(lambda: outcomes(store)["running"], "the blocking run")
    pool = node._executors["default"]._pool

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limit:
        limit.setattr(threading.Thread, "start", refuse)
        node._ledger.request_run("job", "7")
        wait_until(lambda: store.runs(job_id="job", outcome="failed"), "the refusal")
    assert "can't start new thread" in store.runs(job_id="job")[0]["error"]
    release.set()
    wait_until(lambda: pool._work_queue.empty() and not node._dispatcher.running(), "an idle pool")
    assert not ran.is_set()
    assert node._dispatcher._lanes["default"].taken == 0


def test_a_run_asked_for_while_the_scheduler_is_paused_starts_when_it_resumes(store: Store, start_node: Start) -> None:
    store.tasks["sample"] = SampleTask(lambda: None)
    store.add(is_enabled=False)
    node = start_node(paused=True)
    node._ledger.request_run("job", "7")
    turn = node._clocks.turn
    wait_until(lambda: node._clocks.turn > turn + LOOK_S, "turns while it is paused")
    assert outcomes(store) == {"pending": 1}
    node.resume()
    wait_until(lambda: outcomes(store)["success"], "the run")


def test_the_loop_pauses_where_what_is_due_is_withheld(
    store: Store, start_node: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start_node()
    monkeypatch.setattr("app.ledger.apscheduler_overrides.claim", lambda *_args, **_kwargs: Claimed())
    store.add()
    store.due_at(datetime.now(UTC) - timedelta(seconds=1))
    waits = [node._process_jobs() for _ in range(5)]
    assert min(waits) > 0


def test_a_child_that_dies_while_it_is_idle_is_replaced(store: Store, start_node: Start) -> None:
    store.add(executor="process", is_enabled=False)
    node = start_node(run_in_child=_run_in_child)
    node._ledger.request_run("job", "7")
    wait_until(lambda: store.runs(outcome="success"), "the first run", timeout_s=30)
    (idle,) = node._executors["process"]._idle
    idle.kill()
    # Not waited for: the pool may or may not know of the death when the next run comes.
    node._ledger.request_run("job", "7")
    wait_until(
        lambda: len(store.runs(outcome="success")) + len(store.runs(outcome="lost")) == 2, "its end", timeout_s=30
    )
    node._ledger.request_run("job", "7")
    wait_until(lambda: len(store.runs(outcome="success")) >= 2, "the run in a new child", timeout_s=30)
