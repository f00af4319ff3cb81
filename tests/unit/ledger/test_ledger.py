"""Edits, the default jobs, manual runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError

from app.db.clock import from_us
from app.db.engines import create_engine_for, write_transaction
from app.errors import NotFound, PreconditionFailed, ValidationError
from app.ledger import Job, Ledger, NewJob
from app.ledger import ledger as ledger_module
from app.ledger.fates import MOMENTS_PER_LOOK
from app.ledger.ledger import _insert_job

from .conftest import EVERY_SECOND, START, Store, seconds

DAILY = {"type": "cron", "hour": "1", "minute": "0", "second": "0", "timezone": "Asia/Shanghai"}
HOURLY = {"type": "cron", "minute": "0", "second": "0", "timezone": "Asia/Shanghai"}


def default(job_id: str = "builtin", **fields: Any) -> NewJob:
    return NewJob(id=job_id, **{"task": "sample", "trigger": DAILY, "source": "builtin", **fields})


def stored(store: Store, job_id: str = "builtin") -> Job:
    job = store.ledger.get_job(job_id, include_deleted=True)
    assert job is not None
    return job


class TestUnknownCommits:
    def test_the_loop_is_woken_for_a_run_whose_commit_came_through_though_it_seemed_to_fail(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.add()
        woken: list[int] = []
        store.ledger.attach("n1", lambda: woken.append(len(store.runs(kind="manual"))))

        @contextmanager
        def broken(engine: Engine) -> Iterator[Connection]:
            with write_transaction(engine) as connection:
                yield connection
            raise OSError("the connection broke after the commit")

        monkeypatch.setattr(ledger_module, "write_transaction", broken)
        with pytest.raises(OSError, match="broke"):
            store.ledger.request_run("job", "alice")
        assert woken == [1]


class TestEdits:
    def test_a_taken_id_is_refused(self, store: Store) -> None:
        store.add()
        with pytest.raises(ValidationError):
            store.add()
        store.ledger.delete_job("job", by="test")
        with pytest.raises(ValidationError):
            store.add()

    def test_a_new_trigger_takes_effect_at_once(self, store: Store) -> None:
        store.add(trigger=DAILY)
        job = store.ledger.change_job("job", {"trigger": HOURLY}, by="test")
        assert job.next_run_time is not None
        assert job.next_run_time <= datetime.now(UTC) + timedelta(hours=1)
        assert job.trigger == HOURLY
        assert job.revision == 2

    @pytest.mark.parametrize("edit", ["change", "pause", "disable", "delete"])
    def test_no_edit_makes_a_due_fire_vanish(self, store: Store, edit: str) -> None:
        store.add(misfire_grace_time=3600)
        moment = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=2)
        store.due_at(moment)
        edits = {
            "change": lambda: store.ledger.change_job("job", {"trigger": DAILY}, by="test"),
            "pause": lambda: store.ledger.pause_job("job", by="test"),
            "disable": lambda: store.ledger.change_job("job", {"is_enabled": False}, by="test"),
            "delete": lambda: store.ledger.delete_job("job", by="test"),
        }
        edits[edit]()
        assert sum(run["count"] for run in store.runs()) >= 3
        assert store.runs()[0]["scheduled_from"] == int(moment.timestamp()) * 1_000_000

    def test_a_paused_job_stays_paused_through_a_change(self, store: Store) -> None:
        store.add()
        store.ledger.pause_job("job", by="test")
        job = store.ledger.change_job("job", {"trigger": HOURLY}, by="test")
        assert job.is_paused
        assert job.next_run_time is None
        assert store.ledger.resume_job("job", by="test").next_run_time is not None

    def test_a_stale_revision_is_refused(self, store: Store) -> None:
        store.add()
        store.ledger.change_job("job", {"name": "a"}, by="test", if_revision=1)
        with pytest.raises(PreconditionFailed):
            store.ledger.change_job("job", {"name": "b"}, by="test", if_revision=1)
        assert stored(store, "job").name == "a"

    @pytest.mark.parametrize(
        "edit", ["change_job", "pause_job", "resume_job", "delete_job", "restore_job", "request_run"]
    )
    def test_what_does_not_exist_cannot_be_edited(self, store: Store, edit: str) -> None:
        arguments = ("ghost", {"name": "x"}, "test") if edit == "change_job" else ("ghost", "test")
        with pytest.raises(NotFound):
            getattr(store.ledger, edit)(*arguments)

    def test_a_deleted_job_can_be_restored(self, store: Store) -> None:
        store.add()
        store.ledger.delete_job("job", by="test")
        assert store.ledger.get_job("job") is None
        assert store.ledger.restore_job("job", by="test").next_run_time is not None

    def test_deleted_jobs_are_dropped_after_a_while(self, store: Store) -> None:
        store.add()
        store.ledger.delete_job("job", by="test")
        assert store.ledger.purge_deleted_jobs(older_than_days=1) == 0
        assert store.ledger.purge_deleted_jobs(older_than_days=-1) == 1

    def test_a_job_set_aside_is_mended_by_a_change(self, store: Store) -> None:
        store.add()
        store.set_job("job", trigger="damaged")
        store.due_at(START)
        store.claim(START)
        assert stored(store, "job").problem
        job = store.ledger.change_job("job", {"trigger": HOURLY}, by="test")
        assert job.problem is None
        assert job.next_run_time is not None

    def test_a_finished_date_stays_finished_when_renamed(self, store: Store) -> None:
        store.add(trigger={"type": "date", "run_date": START.isoformat(), "timezone": "UTC"})
        store.claim(START + seconds(1))
        assert store.ledger.change_job("job", {"name": "new"}, by="test").next_run_time is None
        assert len(store.runs()) == 1

    def test_an_unknown_field_is_a_programming_error(self, store: Store) -> None:
        store.add()
        with pytest.raises(ValueError, match="next_run_time"):
            store.ledger.change_job("job", {"next_run_time": None}, by="test")


class TestDefaults:
    def test_a_start_adds_what_is_missing(self, store: Store) -> None:
        report = store.ledger.load_defaults([default("a"), default("b")])
        assert report.added == ("a", "b")
        assert store.ledger.load_defaults([default("a"), default("b")]).kept == ("a", "b")

    def test_a_start_keeps_what_the_api_changed(self, store: Store) -> None:
        store.ledger.load_defaults([default()])
        store.ledger.change_job("builtin", {"trigger": HOURLY}, by="test")
        store.ledger.pause_job("builtin", by="test")
        store.ledger.load_defaults([default(trigger=EVERY_SECOND, description="new")])
        job = stored(store)
        assert job.trigger == HOURLY
        assert job.is_paused
        assert job.description == "new"
        assert job.overrides == ("is_paused", "trigger")

    def test_a_start_takes_what_the_file_changed(self, store: Store) -> None:
        store.ledger.load_defaults([default()])
        before = stored(store).next_run_time
        assert store.ledger.load_defaults([default(trigger=EVERY_SECOND)]).updated == ("builtin",)
        assert stored(store).trigger == EVERY_SECOND
        assert stored(store).next_run_time != before

    def test_an_interval_without_a_start_is_not_begun_anew(self, store: Store) -> None:
        first = {"type": "interval", "hours": 5, "start_date": "2026-01-01T00:00:00+00:00", "timezone": "UTC"}
        later = {**first, "start_date": "2026-01-01T01:00:00+00:00"}
        store.ledger.load_defaults([default(trigger=first)])
        assert store.ledger.load_defaults([default(trigger=later)]).kept == ("builtin",)

    def test_jobs_that_the_file_no_longer_names_stay_until_a_reload(self, store: Store) -> None:
        store.ledger.load_defaults([default("a"), default("b")])
        assert store.ledger.load_defaults([default("a")]).unknown == ("b",)
        assert store.ledger.get_job("b") is not None
        report = store.ledger.reload_defaults([default("a")], by="test")
        assert (report.deleted, report.reloaded) == (("a", "b"), ("a",))
        assert store.ledger.get_job("b") is None

    def test_an_own_jobs_id_is_not_taken_over(self, store: Store) -> None:
        store.add("builtin")
        store.ledger.load_defaults([default()])
        assert stored(store).source == "own"

    def test_a_reload_brings_the_defaults_back_and_keeps_what_is_disabled(self, store: Store) -> None:
        store.ledger.load_defaults([default("a"), default("b")])
        store.ledger.change_job("a", {"trigger": HOURLY, "is_enabled": False}, by="test")
        store.ledger.reload_defaults([default("a"), default("b")], by="test")
        assert stored(store, "a").trigger == DAILY
        assert not stored(store, "a").is_enabled
        assert stored(store, "a").next_run_time is None
        assert stored(store, "b").is_enabled
        store.ledger.load_defaults([default("a"), default("b")])
        assert not stored(store, "a").is_enabled

    def test_a_reload_does_not_forget_that_a_job_alarms(self, store: Store) -> None:
        store.ledger.load_defaults([default("a"), default("b")])
        store.set_job("a", is_alarming=True)
        store.ledger.reload_defaults([default("a"), default("b")], by="test")
        assert [store.job(name)["is_alarming"] for name in ("a", "b")] == [True, False]

    def test_own_jobs_can_be_restored_after_a_reload(self, store: Store) -> None:
        store.add("mine", kwargs={"x": 1})
        store.ledger.reload_defaults([default()], by="test")
        assert store.ledger.get_job("mine") is None
        assert store.ledger.restore_job("mine", by="test").kwargs == {"x": 1}

    def test_a_row_that_cannot_be_read_survives_a_reload_aside(self, store: Store) -> None:
        store.ledger.load_defaults([default()])
        store.set_job("builtin", trigger="damaged")
        report = store.ledger.reload_defaults([default()], by="test")
        assert report.reloaded == ("builtin",)
        assert stored(store).trigger == DAILY
        with store.engine.connect() as connection:
            aside = connection.exec_driver_sql("SELECT trigger FROM jobs WHERE id LIKE 'builtin~%'").scalars().all()
        assert aside == ["damaged"]

    def test_a_job_that_cannot_be_removed_does_not_stop_the_rest(self, store: Store) -> None:
        store.ledger.load_defaults([default("a"), default("b")])
        with store.engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER stuck BEFORE DELETE ON jobs WHEN old.id = 'a' BEGIN SELECT RAISE(ABORT, 'stuck'); END"
            )
        report = store.ledger.reload_defaults([default("a"), default("b")], by="test")
        assert report.deleted == ("b",)
        assert report.failed == {"a": "IntegrityError: stuck"}, "the statement and its parameters are not shown"
        assert store.ledger.get_job("a") is not None

    def test_a_store_that_is_locked_meanwhile_is_no_reload(self, store: Store) -> None:
        store.ledger.load_defaults([default()])
        impatient = create_engine_for(store.engine.url, busy_timeout_s=0.1)
        with write_transaction(store.engine), pytest.raises(OperationalError, match="locked"):
            Ledger(impatient).reload_defaults([default()], by="test")
        impatient.dispose()
        assert stored(store).trigger == DAILY


class TestManualRuns:
    def test_a_paused_and_a_disabled_job_can_be_run(self, store: Store) -> None:
        store.add("paused")
        store.ledger.pause_job("paused", by="test")
        store.add("disabled", is_enabled=False)
        for job_id in ("paused", "disabled"):
            assert store.ledger.request_run(job_id, "7", {"a": 1}).outcome == "pending"
        assert {run["kwargs"] for run in store.runs()} == {'{"a":1}'}
        assert {run["created_by"] for run in store.runs()} == {"7"}

    def test_max_instances_holds(self, store: Store) -> None:
        store.add(is_enabled=False)
        store.ledger.request_run("job", "7")
        with pytest.raises(ValidationError) as refused:
            store.ledger.request_run("job", "7")
        assert refused.value.field == "max_instances"

    def test_ten_at_once_are_ten_runs(self, store: Store) -> None:
        store.add(max_instances=10, is_enabled=False)
        assert len({store.ledger.request_run("job", "7").run_id for _ in range(10)}) == 10


def test_old_runs_are_purged_and_active_ones_stay(store: Store) -> None:
    store.add(max_instances=3)
    store.ledger.request_run("job", "7")
    for second in range(5):
        store.due_at(START + seconds(second))
        store.claim(START + seconds(second))
    with store.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE runs SET outcome = 'success' WHERE outcome = 'pending' AND kind = 'schedule'"
        )
    assert store.ledger.purge_runs(START + seconds(3), batch=2) == 3
    assert [from_us(run["scheduled_for"]) for run in store.runs(kind="schedule")] == [
        START + seconds(3),
        START + seconds(4),
    ]
    assert store.ledger.purge_runs(datetime.now(UTC) + timedelta(days=1)) == 2
    assert [run["kind"] for run in store.runs()] == ["manual"]


def test_a_purge_lets_others_write_between_its_transactions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add()
    for second in range(5):
        store.due_at(START + seconds(second))
        store.claim(START + seconds(second))
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE runs SET outcome = 'success'")
    impatient = create_engine_for(store.engine.url, busy_timeout_s=0)
    pauses: list[float] = []

    def write_meanwhile(pause_s: float) -> None:
        pauses.append(pause_s)
        with write_transaction(impatient):
            """The lock is free."""

    monkeypatch.setattr(time, "sleep", write_meanwhile)
    assert store.ledger.purge_runs(START + seconds(5), batch=2) == 5
    assert len(pauses) == 2
    assert min(pauses) >= 0.1  # the longest nap of who waits for the lock


def test_a_job_is_read_by_one_query(store: Store) -> None:
    store.add()
    statements: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    store.ledger.get_job("job")
    assert len([statement for statement in statements if statement.startswith("SELECT")]) == 1


def test_edits_made_together_are_all_or_none(store: Store) -> None:
    store.add("a")

    def pause(*job_ids: str) -> None:
        with store.ledger.together() as edits:
            for job_id in job_ids:
                edits.pause_job(job_id, by="test")

    with pytest.raises(NotFound):
        pause("a", "ghost")
    assert not stored(store, "a").is_paused
    pause("a")
    assert stored(store, "a").is_paused


def test_an_edit_claims_all_that_is_due_however_many_looks_it_takes(store: Store) -> None:
    store.add(coalesce=False, misfire_grace_time=10_000)
    first = datetime.now(UTC).replace(microsecond=0) - seconds(2 * MOMENTS_PER_LOOK + 100)
    store.due_at(first)
    job = store.ledger.change_job("job", {"trigger": DAILY}, "7")
    assert job.next_run_time is not None
    moments = sum(run["count"] for run in store.runs())
    assert moments > 2 * MOMENTS_PER_LOOK
    assert Counter(run["outcome"] for run in store.runs()) == {"pending": MOMENTS_PER_LOOK, "skipped": 1}


def test_a_default_that_another_node_adds_meanwhile_is_kept(store: Store) -> None:
    """What PostgreSQL shows two nodes that start together: neither sees the other's row before it inserts its own."""

    added: list[str] = []

    def add_meanwhile(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT jobs.id") and not added:
            added.append("builtin")
            _insert_job(connection, default(), by="other", now=0)

    event.listen(store.engine, "after_cursor_execute", add_meanwhile)
    report = store.ledger.load_defaults([default(), default("second")])
    assert (report.added, report.kept) == (("second",), ("builtin",))
    assert stored(store).created_by == "other"
