"""Pages of jobs and of histories: one query each, and each of them served by an index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert

from app.db.clock import from_us, now_us, to_us
from app.db.engines import create_engine_for, write_transaction
from app.db.jobstore_tables import UNUSUAL, jobs, runs
from app.db.migrate import ensure_schema
from app.ledger import Ledger, NewJob
from app.repositories.jobs_repository import JobFilter, JobsRepository
from app.repositories.runs_repository import RunFilter, RunsRepository
from tests.unit.ledger.run_rows import run_row

NOW = datetime.now(UTC)
TRIGGER = {"type": "cron", "hour": "1", "timezone": "Asia/Shanghai"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine_for(f"sqlite:///{tmp_path / 'scheduler.db'}")
    ensure_schema(engine, "jobstore")
    ledger = Ledger(engine)
    for number in range(30):
        ledger.add_job(NewJob(id=f"job-{number:02}", task="t", trigger=TRIGGER), by="x")
    yield engine
    engine.dispose()


def add_run(store: Engine, job_id: str, at: datetime, outcome: str, **values: Any) -> str:
    """A ledger row of a moment; it started on time unless the outcome says that it never did."""
    moment = to_us(at)
    never = outcome in ("pending", "missed", "coalesced", "skipped")
    started_at = None if never else moment + 7000
    row = run_row(job_id, moment, **{"task": "t", "outcome": outcome, "started_at": started_at} | values)
    with write_transaction(store) as connection:
        connection.execute(insert(runs).values(row))
    return str(row["run_id"])


def plans(store: Engine, read: Callable[[], object]) -> list[str]:
    """How SQLite runs each query of `read`."""
    seen: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if statement.startswith("SELECT"):
            seen.append((statement, parameters))

    event.listen(store, "before_cursor_execute", note)
    read()
    event.remove(store, "before_cursor_execute", note)
    found = []
    for statement, parameters in seen:
        with store.connect() as connection:
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            found.append("\n".join(str(row[3]) for row in rows))
    return found


def test_a_job_knows_its_newest_start_and_its_newest_outcome(store: Engine) -> None:
    add_run(store, "job-01", NOW - timedelta(hours=2), "success")
    started = add_run(store, "job-01", NOW - timedelta(hours=1), "failed")
    add_run(store, "job-01", NOW - timedelta(minutes=5), "missed")
    reading = JobsRepository(store).get("job-01")
    assert reading is not None
    assert reading.last_outcome == "missed"
    with store.connect() as connection:
        at = connection.execute(runs.select().where(runs.c.run_id == started)).mappings().one()["started_at"]
    assert reading.last_run_time == from_us(at)
    never = JobsRepository(store).get("job-02")
    assert never is not None
    assert (never.last_run_time, never.last_outcome) == (None, None)


def test_a_page_of_jobs_is_one_query_by_index(store: Engine) -> None:
    repository = JobsRepository(store)
    page = repository.page(JobFilter(), limit=10, after="job-04")
    assert [reading.job.id for reading in page] == [f"job-{number:02}" for number in range(5, 15)]
    (plan,) = plans(store, lambda: repository.page(JobFilter(), limit=10, after="job-04"))
    assert "SCAN" not in plan
    assert "TEMP B-TREE" not in plan
    assert "ix_runs_job_id_run_id" in plan


def test_a_page_of_a_history_is_one_query_by_index(store: Engine) -> None:
    ids = [add_run(store, "job-01", NOW - timedelta(seconds=n), "success") for n in range(20, 0, -1)]
    repository = RunsRepository(store)
    first = repository.history("job-01", RunFilter(), limit=5)
    assert first is not None
    assert [run.run_id for run in first.runs] == ids[:-6:-1]
    assert first.timezone == "Asia/Shanghai"
    second = repository.history("job-01", RunFilter(), limit=50, before=first.runs[-1].run_id)
    assert second is not None
    assert [run.run_id for run in second.runs] == ids[-6::-1]
    (plan,) = plans(store, lambda: repository.history("job-01", RunFilter(), limit=5, before=ids[9]))
    assert "SEARCH runs USING INDEX ix_runs_job_id_run_id (job_id=? AND run_id<?)" in plan
    assert "SCAN runs" not in plan


@pytest.mark.parametrize(
    ("outcome", "index"),
    [
        *((outcome, "ix_runs_unusual (job_id=? AND outcome=?") for outcome in UNUSUAL),
        *((outcome, "ix_runs_active") for outcome in ("pending", "running")),
        ("success", "ix_runs_job_id_run_id (job_id=?"),
    ],
)
def test_a_history_filtered_by_outcome_reads_no_more_than_it_shows(store: Engine, outcome: str, index: str) -> None:
    for number in range(40):
        add_run(store, "job-01", NOW - timedelta(seconds=number), "success" if number % 8 else outcome)
        add_run(store, "job-02", NOW - timedelta(seconds=number), outcome)
    repository = RunsRepository(store)
    found = repository.history("job-01", RunFilter(outcome=outcome), limit=50)
    assert found is not None
    assert len(found.runs) == (40 if outcome == "success" else 5)
    assert {(run.job_id, run.outcome) for run in found.runs} == {("job-01", outcome)}
    (plan,) = plans(store, lambda: repository.history("job-01", RunFilter(outcome=outcome), limit=50))
    assert index in plan
    if outcome in UNUSUAL:
        older = repository.history("job-01", RunFilter(outcome=outcome), limit=50, before=found.runs[2].run_id)
        assert older is not None
        assert older.runs == found.runs[3:]


def test_no_job_and_no_runs_differ(store: Engine) -> None:
    repository = RunsRepository(store)
    nothing = repository.history("job-03", RunFilter(), limit=5)
    assert nothing is not None
    assert nothing.runs == []
    assert repository.history("no such job", RunFilter(), limit=5) is None
    assert repository.history("\0", RunFilter(), limit=5) is None


def test_active_and_alarming_runs_come_from_their_small_indexes(store: Engine) -> None:
    for number in range(50):
        add_run(store, "job-01", NOW - timedelta(seconds=100 + number), "success")
    pending = add_run(store, "job-01", NOW - timedelta(seconds=3), "pending")
    running = add_run(store, "job-02", NOW - timedelta(seconds=2), "running")
    lost = add_run(store, "job-02", NOW - timedelta(seconds=90), "lost")
    add_run(store, "job-02", NOW - timedelta(days=9), "failed")
    repository = RunsRepository(store)
    since = NOW - timedelta(days=1)
    assert [run.run_id for run in repository.active(limit=5)] == [running, pending]
    assert [run.run_id for run in repository.alarming(since, limit=5)] == [lost]
    assert "ix_runs_active" in plans(store, lambda: repository.active(limit=5))[0]
    assert "ix_runs_alarming" in plans(store, lambda: repository.alarming(since, limit=5))[0]
    queue = repository.queue()
    assert {outcome: count for outcome, (count, _) in queue.items()} == {"pending": 1, "running": 1}


def test_attempts_that_wait_on_purpose_are_neither_old_nor_late(store: Engine) -> None:
    at = NOW - timedelta(minutes=10)
    add_run(store, "job-01", at, "failed")
    add_run(store, "job-01", NOW, "success", attempt=2, scheduled_for=to_us(at), not_before=to_us(NOW))
    soon = NOW + timedelta(minutes=5)
    add_run(store, "job-01", NOW, "pending", attempt=3, scheduled_for=to_us(at), not_before=to_us(soon))
    repository = RunsRepository(store)
    assert repository.lateness(NOW - timedelta(hours=1), limit=10) == [7.0]
    count, oldest = repository.queue()["pending"]
    assert (count, oldest) == (1, from_us(to_us(soon)))


def test_a_run_comes_with_the_other_attempts_of_its_fire(store: Engine) -> None:
    moment = to_us(NOW)
    first, second, third = (
        add_run(store, "job-01", NOW + timedelta(seconds=n), "failed", attempt=n, scheduled_for=moment)
        for n in (1, 2, 3)
    )
    add_run(store, "job-01", NOW, "failed", attempt=2, scheduled_for=moment + 1)
    add_run(store, "job-02", NOW, "failed", attempt=2, scheduled_for=moment)
    add_run(store, "job-01", NOW, "failed", attempt=2, scheduled_for=moment, kind="manual")
    repository = RunsRepository(store)
    reading = repository.get(second)
    assert reading is not None
    assert [run.run_id for run in reading.other_attempts] == [first, third]
    assert reading.job_exists
    run_plan, attempts_plan = plans(store, lambda: repository.get(second))
    assert "SCAN" not in run_plan + attempts_plan
    assert repository.get("\0") is None


def test_counts_are_of_moments_not_of_rows(store: Engine) -> None:
    add_run(store, "job-01", NOW - timedelta(minutes=1), "missed", count=3600)
    add_run(store, "job-01", NOW - timedelta(minutes=2), "success")
    add_run(store, "job-01", NOW - timedelta(hours=9), "success")
    repository = RunsRepository(store)
    assert repository.outcome_counts(NOW - timedelta(hours=1)) == {"missed": 3600, "success": 1}
    assert repository.lateness(NOW - timedelta(hours=1), limit=10) == [7.0]


def test_counts_of_jobs(store: Engine) -> None:
    ledger = Ledger(store)
    ledger.pause_job("job-01", by="x")
    ledger.change_job("job-02", {"is_enabled": False}, by="x")
    ledger.delete_job("job-03", by="x")
    counts = JobsRepository(store).counts()
    assert (counts.total, counts.scheduled, counts.paused, counts.disabled, counts.deleted) == (29, 27, 1, 1, 1)


def test_overdue_jobs_are_those_that_nobody_claimed(store: Engine) -> None:
    with write_transaction(store) as connection:
        for job_id, seconds in [("job-01", 10), ("job-02", 60), ("job-03", 1)]:
            late = now_us() - seconds * 1_000_000
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(next_run_time=late))
    repository = JobsRepository(store)
    found = repository.overdue(datetime.now(UTC) - timedelta(seconds=3), limit=5)
    assert [reading.job.id for reading in found] == ["job-02", "job-01"]
    assert [reading.job.id for reading in repository.upcoming(limit=3)] == ["job-02", "job-01", "job-03"]
