"""An older app's jobs become jobs here: triggers, pauses, arguments; what cannot be taken over is listed."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import sqlite3
import tarfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import pytz
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from flask import Flask

from app.db.engines import write_transaction
from app.ledger import Job, NewJob
from app.runtime import Runtime
from app.services.operations import legacy
from app.services.operations.failure import OperationFailed
from app.services.operations.legacy import LegacyRow, Takeover
from app.triggers import next_fire, parse_trigger
from tests.unit.services.operations.legacy.conftest import OldApp

SHANGHAI = ZoneInfo("Asia/Shanghai")
TASKS = """
from app.tasks import task

@task("copy_report")
def copy_report(target: str, copies: int = 1) -> None: ...
"""
NIGHTLY = {"trigger_type": "cron", "cron_expression": "0 1 * * *"}


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    folder = Path(environment["USERDATA_DIR"]) / "tasks"
    folder.mkdir(parents=True)
    (folder / "reports.py").write_text(TASKS)
    return environment


@pytest.fixture
def here(runtime: Runtime) -> Runtime:
    """This stack, with a default job."""
    spec = parse_trigger(NIGHTLY, default_timezone="Asia/Shanghai").spec
    runtime.ledger.load_defaults([NewJob(id="sync_accounts", task="sync_accounts", trigger=spec, source="builtin")])
    return runtime


def take_over(here: Runtime, old: OldApp, **options: Any) -> Takeover:
    old.close()
    with old.path.open("rb") as stream:
        rows = legacy.read_stream(stream, here.settings.userdata_dir)
    return legacy.take_over(here, rows, **options)


def job_of(here: Runtime, job_id: str) -> Job:
    job = here.ledger.get_job(job_id)
    assert job is not None
    return job


def actions(done: Takeover) -> dict[str, str]:
    return {job.id: job.action for job in done.jobs} | {job.id: job.reason for job in done.not_taken}


def test_jobs_of_each_kind(here: Runtime, old_app: OldApp) -> None:
    start = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)
    soon = (datetime.now(UTC) + timedelta(days=3)).replace(microsecond=0)
    report = {"kwargs": {"target": "b"}}
    old_app.add("sync_accounts", "sync_accounts", CronTrigger(hour=2, minute=15, timezone=SHANGHAI), paused=True)
    old_app.add("copy_report", "weekly", CronTrigger(day_of_week="0", hour=5, timezone=SHANGHAI), args=["a"])
    old_app.add("copy_report", "often", IntervalTrigger(minutes=90, start_date=start, timezone=pytz.UTC), **report)
    old_app.add("copy_report", "once", DateTrigger(soon), kwargs={"target": "c", "copies": 2}, name="Once 一次")
    done = take_over(here, old_app)
    assert actions(done) == {"often": "add", "once": "add", "sync_accounts": "change", "weekly": "add"}

    changed = job_of(here, "sync_accounts")
    assert (changed.trigger["hour"], changed.trigger["minute"], changed.is_paused) == ("2", "15", True)
    assert changed.source == "builtin"
    weekly = job_of(here, "weekly")
    assert weekly.trigger["day_of_week"] == "mon"  # APScheduler's 0 is Monday, crontab's Sunday
    assert weekly.kwargs == {"target": "a"}
    often = job_of(here, "often")
    assert often.next_run_time is not None
    assert (often.next_run_time - start) % timedelta(minutes=90) == timedelta(0)  # the same grid
    once = job_of(here, "once")
    assert (once.next_run_time, once.name, once.kwargs) == (soon, "Once 一次", {"target": "c", "copies": 2})


CRON = [
    {"minute": "*/7"},
    {"hour": "1-5/2", "minute": "5,35"},
    {"day": "last", "hour": 3},
    {"day": "2nd mon,last fri", "hour": 3},
    {"month": "jan-mar,6", "day": 1},
    {"day_of_week": "*/2", "hour": 4},
    {"day_of_week": "mon-fri", "second": "30"},
    {"day_of_week": "3-5,sun", "hour": "*/6"},
    {"week": "10-20/5", "day_of_week": 6},
    {"year": "2027-2099", "hour": 0, "jitter": 30},
    {"minute": "10/15", "start_date": datetime(2027, 1, 1, tzinfo=UTC), "end_date": datetime(2031, 1, 1, tzinfo=UTC)},
]


@pytest.mark.parametrize("fields", CRON, ids=str)
@pytest.mark.parametrize("zone", [SHANGHAI, pytz.timezone("America/New_York")], ids=str)
def test_cron_triggers_fire_as_they_did(here: Runtime, old_app: OldApp, fields: dict[str, Any], zone: Any) -> None:
    trigger = CronTrigger(timezone=zone, **fields)
    old_app.add("copy_report", "job", trigger, kwargs={"target": "x"})
    assert actions(take_over(here, old_app)) == {"job": "add"}
    spec = job_of(here, "job").trigger
    assert spec.get("jitter") == fields.get("jitter")
    plain = CronTrigger(timezone=zone, **{name: value for name, value in fields.items() if name != "jitter"})
    ours = {name: value for name, value in spec.items() if name != "jitter"}
    # Noon in winter: what the two do differently around a clock change is told in docs/decisions.md.
    then = now = datetime(2026, 12, 20, 12, tzinfo=UTC)
    for _ in range(12):
        then, now = plain.get_next_fire_time(None, then), next_fire(ours, None, now)
        assert then == now
        assert then is not None
        then, now = then + timedelta(seconds=1), then + timedelta(seconds=1)


def test_again_changes_nothing(here: Runtime, old_app: OldApp) -> None:
    old_app.add("sync_accounts", "sync_accounts", CronTrigger(hour=2, timezone=SHANGHAI), paused=True)
    old_app.add("copy_report", "a", IntervalTrigger(hours=1, timezone=SHANGHAI), kwargs={"target": "x"}, paused=True)
    take_over(here, old_app)
    before = [(job.revision, job.trigger) for job in (job_of(here, "a"), job_of(here, "sync_accounts"))]
    assert set(actions(take_over(here, old_app)).values()) == {"unchanged"}
    assert [(job.revision, job.trigger) for job in (job_of(here, "a"), job_of(here, "sync_accounts"))] == before


def test_what_was_changed_here_stays_unless_overwritten(here: Runtime, old_app: OldApp) -> None:
    old_app.add("sync_accounts", "sync_accounts", CronTrigger(hour=2, timezone=SHANGHAI))
    old_app.add("copy_report", "a", IntervalTrigger(hours=1, timezone=SHANGHAI), kwargs={"target": "x"})
    take_over(here, old_app)
    noon = parse_trigger({"trigger_type": "cron", "hour": "12"}, default_timezone="UTC").spec
    here.ledger.change_job("sync_accounts", {"trigger": noon}, "1")
    here.ledger.change_job("a", {"kwargs": {"target": "y"}}, "1")
    here.ledger.delete_job("a", "1")
    kept = take_over(here, old_app)
    assert set(actions(kept).values()) == {"kept"}
    assert all("--overwrite" in job.notes[-1] for job in kept.jobs)
    assert job_of(here, "sync_accounts").trigger == noon
    assert here.ledger.get_job("a") is None
    assert set(actions(take_over(here, old_app, overwrite=True)).values()) == {"change"}
    assert job_of(here, "sync_accounts").trigger["hour"] == "2"
    assert job_of(here, "a").kwargs == {"target": "x"}


def test_a_dry_run_changes_nothing(here: Runtime, old_app: OldApp) -> None:
    old_app.add("copy_report", "a", IntervalTrigger(hours=1, timezone=SHANGHAI), kwargs={"target": "x"})
    assert actions(take_over(here, old_app, dry_run=True)) == {"a": "add"}
    assert here.ledger.get_job("a") is None


def test_what_cannot_be_taken_over_is_listed(
    here: Runtime, old_app: OldApp, hostile: dict[str, bytes], sentinel: Path
) -> None:
    cron = CronTrigger(hour=2, timezone=SHANGHAI)
    report = {"kwargs": {"target": "x"}}
    old_app.add("old_only", "unknown-function", cron)
    old_app.add("copy_report", "two-triggers", OrTrigger([cron, cron]), **report)
    old_app.add("copy_report", "calendar", CalendarIntervalTrigger(months=1, timezone=SHANGHAI), **report)
    old_app.add("copy_report", "missing-argument", cron)
    old_app.add("copy_report", "unknown-argument", cron, kwargs={"target": "x", "colour": "red"})
    old_app.add("copy_report", "too-many", cron, args=["a", 1, 2])
    old_app.add("copy_report", "no-json", cron, kwargs={"target": {1, 2}})
    old_app.add("copy_report", "wrong type", cron, **report)
    old_app.write("no-pickle", b"\x80\x04damaged")
    old_app.write("empty", None)
    old_app.write("past", _state(trigger=DateTrigger(datetime(2020, 1, 1, tzinfo=UTC))))
    old_app.write("version", _state(version=2))
    for number, data in enumerate(hostile.values()):
        old_app.write(f"hostile-{number}", data)
    done = take_over(here, old_app)
    assert done.jobs == ()
    reasons = {job.id: job.reason for job in done.not_taken}
    assert not sentinel.exists()
    for job_id, part in {
        "unknown-function": "no task here stands for its function old_app.tasks:old_only; --map old_app.tasks:old_only",
        "two-triggers": "its trigger is apscheduler.triggers.combining.OrTrigger; accepted: cron, interval, date",
        "calendar": "CalendarIntervalTrigger",
        "missing-argument": "target",
        "unknown-argument": "colour",
        "too-many": "its 3 positional arguments do not fit the task copy_report(target, copies)",
        "no-json": "builtins.set",
        "wrong type": "its id is none here",
        "no-pickle": "no intact pickle",
        "empty": "no intact pickle",
        "past": "2020-01-01",
        "version": "version 2",
        "hostile-0": "its pickle holds os.system, not the state of a job",
        "hostile-5": "its trigger is os.system",
    }.items():
        assert part in reasons[job_id], reasons[job_id]
    assert len(reasons) == 12 + len(hostile)
    assert [job.id for job in here_jobs(here)] == ["sync_accounts"]


def here_jobs(here: Runtime) -> list[Job]:
    from app.repositories.jobs_repository import JobFilter, JobsRepository

    return [reading.job for reading in JobsRepository(here.jobstore).page(JobFilter())]


def _state(**changes: Any) -> bytes:
    state = {
        **{"version": 1, "id": "x", "func": "old_app.tasks:copy_report", "executor": "default", "args": ()},
        **{"trigger": CronTrigger(hour=2, timezone=SHANGHAI), "kwargs": {"target": "x"}, "name": "x"},
        **{"misfire_grace_time": 1, "coalesce": True, "max_instances": 1, "next_run_time": None},
    }
    return pickle.dumps(state | changes)


def test_damaged_rows_stop_no_other(here: Runtime) -> None:
    """Bytes changed by chance: each row is taken over or listed, whatever comes of it."""
    chance = random.Random(20261121)
    triggers = [CronTrigger(day="2nd mon", timezone=pytz.timezone("Europe/Berlin"), start_date="2026-01-01")]
    triggers += [IntervalTrigger(minutes=5, timezone=SHANGHAI), DateTrigger(datetime(2030, 1, 1, tzinfo=UTC))]
    rows = []
    for number in range(2000):
        data = bytearray(pickle.dumps(pickle.loads(_state(trigger=chance.choice(triggers))), chance.randrange(6)))
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        rows.append(LegacyRow(f"job-{number}", True, bytes(data)))
    done = legacy.take_over(here, rows, dry_run=True)
    assert {job.id for job in (*done.jobs, *done.not_taken)} == {row.id for row in rows}
    assert len(done.jobs) > 500
    assert len(done.not_taken) > 500
    assert all(job.reason and "\n" not in job.reason for job in done.not_taken)


def test_settings_and_what_differs_here(here: Runtime, old_app: OldApp) -> None:
    old_app.write("as-it-was", _state(misfire_grace_time=45, coalesce=False, max_instances=3))
    old_app.write("endless", _state(misfire_grace_time=None, max_instances=99, executor="processpool"))
    old_app.write("odd", _state(misfire_grace_time=2.5, max_instances="many", name=5, coalesce=None))
    done = take_over(here, old_app)
    job = job_of(here, "as-it-was")
    assert (job.misfire_grace_time, job.coalesce, job.max_instances) == (45, False, 3)
    notes = {each.id: " / ".join(each.notes) for each in done.jobs}
    assert notes["as-it-was"] == ""
    endless = job_of(here, "endless")
    assert (endless.misfire_grace_time, endless.max_instances, endless.executor) == (366 * 86400, 10, "default")
    for part in ("without an end", "max_instances is 10 here", "'processpool' is `default` here"):
        assert part in notes["endless"]
    odd = job_of(here, "odd")
    assert (odd.misfire_grace_time, odd.max_instances, odd.name, odd.coalesce) == (300, 1, "odd", True)


def test_apschedulers_own_grace_time_is_nobodys_choice(here: Runtime, old_app: OldApp) -> None:
    old_app.add("copy_report", "a", IntervalTrigger(hours=1, timezone=SHANGHAI), kwargs={"target": "x"})
    [job] = take_over(here, old_app).jobs
    assert job_of(here, "a").misfire_grace_time == 300
    assert job.notes == ("its grace time of 1 s, APScheduler's default, is 300 s here",)


@pytest.mark.parametrize("key", ["old_app.tasks:old_only", "old_only", "renamed"])
def test_functions_that_have_another_name_here(here: Runtime, old_app: OldApp, key: str) -> None:
    old_app.add("old_only", "renamed", CronTrigger(hour=2, timezone=SHANGHAI), args=["a"])
    assert actions(take_over(here, old_app, tasks={key: "copy_report"})) == {"renamed": "add"}
    assert job_of(here, "renamed").task == "copy_report"


def test_a_map_to_a_task_that_is_not_known(here: Runtime, old_app: OldApp) -> None:
    with pytest.raises(OperationFailed, match=r"'nothing', which is not known here; accepted: .*copy_report"):
        take_over(here, old_app, tasks={"x": "nothing"})


def test_all_or_nothing(here: Runtime, old_app: OldApp, monkeypatch: pytest.MonkeyPatch) -> None:
    for job_id in ("a", "b"):
        old_app.add("copy_report", job_id, IntervalTrigger(hours=1, timezone=SHANGHAI), kwargs={"target": "x"})
    # Another process adds the second one after the plan was made.
    planned = legacy.take_over(here, _rows(here, old_app), dry_run=True)
    assert actions(planned) == {"a": "add", "b": "add"}
    from app.services.operations.legacy import takeover

    original = takeover._Edit.apply

    def apply(edit: Any, ledger: Any) -> None:
        if edit.shown.id == "b":
            raise OperationFailed("the disk is full")
        original(edit, ledger)

    monkeypatch.setattr(takeover._Edit, "apply", apply)
    with pytest.raises(OperationFailed):
        take_over(here, old_app)
    assert here.ledger.get_job("a") is None


def _rows(here: Runtime, old: OldApp) -> list[LegacyRow]:
    old.close()
    with old.path.open("rb") as stream:
        return legacy.read_stream(stream, here.settings.userdata_dir)


def test_a_tar_with_what_is_in_the_wal(here: Runtime, old_app: OldApp) -> None:
    """An older app that was killed has its newest changes in the -wal; the main file alone would not know them."""
    old_app.close()
    with closing(sqlite3.connect(old_app.path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO apscheduler_jobs VALUES ('in-wal', NULL, ?)", (_state(),))
        connection.commit()
        wal = old_app.path.with_name("old.db-wal")
        assert wal.stat().st_size > 0
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(old_app.path, "some/where/old.db")
            tar.add(wal, "../../old.db-wal")
        with old_app.path.open("rb") as stream:
            assert legacy.read_stream(stream, here.settings.userdata_dir) == []
    packed.seek(0)
    [row] = legacy.read_stream(packed, here.settings.userdata_dir)
    assert (row.id, row.has_next_run) == ("in-wal", False)
    assert list(here.settings.userdata_dir.glob(".legacy-*")) == []


def test_the_copy_of_an_import_that_was_killed_goes_with_the_next(here: Runtime, old_app: OldApp) -> None:
    left, at_work = (here.settings.userdata_dir / f".legacy-{name}" for name in ("left", "at-work"))
    for place in (left, at_work):
        place.mkdir()
        (place / "store.db").write_bytes(b"x")
    os.utime(left, (time.time() - 7200,) * 2)
    _rows(here, old_app)
    assert not left.exists()
    assert at_work.exists()


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda _path: b"", "no SQLite database"),
        (lambda _path: b"nothing of the kind" * 100, "no SQLite database"),
        (lambda path: path.read_bytes()[:3000], "no SQLite database that can be read"),
        (lambda path: path.read_bytes()[:16] + b"\xff" * 4096, "no SQLite database that can be read"),
    ],
)
def test_files_that_hold_no_store(here: Runtime, old_app: OldApp, make: Any, part: str) -> None:
    old_app.close()
    with pytest.raises(OperationFailed, match=part):
        legacy.read_stream(io.BytesIO(make(old_app.path)), here.settings.userdata_dir)
    assert list(here.settings.userdata_dir.glob(".legacy-*")) == []


@pytest.mark.parametrize(
    ("script", "part"),
    [
        ("CREATE TABLE jobs (id)", "no table apscheduler_jobs; its tables: jobs"),
        ("CREATE TABLE apscheduler_jobs (id, state)", "has no job_state, next_run_time"),
        ("CREATE TABLE t (id); CREATE VIEW apscheduler_jobs AS SELECT id FROM t", "no table apscheduler_jobs"),
        ("CREATE VIRTUAL TABLE apscheduler_jobs USING fts5(id, next_run_time, job_state)", "no table apscheduler_jobs"),
    ],
)
def test_databases_of_another_kind(here: Runtime, tmp_path: Path, script: str, part: str) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    with path.open("rb") as stream, pytest.raises(OperationFailed, match=part):
        legacy.read_stream(stream, here.settings.userdata_dir)


def test_the_table_in_this_stacks_own_store(here: Runtime) -> None:
    with pytest.raises(OperationFailed, match="holds no table apscheduler_jobs"):
        legacy.read_present_store(here.jobstore)
    with write_transaction(here.jobstore) as connection:
        connection.exec_driver_sql("CREATE TABLE apscheduler_jobs (id TEXT, next_run_time FLOAT, job_state BLOB)")
        connection.exec_driver_sql("INSERT INTO apscheduler_jobs VALUES ('a', 1.5, ?)", (_state(),))
    assert actions(legacy.take_over(here, legacy.read_present_store(here.jobstore))) == {"a": "add"}


def test_the_command(app: Flask, here: Runtime, old_app: OldApp) -> None:
    old_app.add("copy_report", "a", CronTrigger(hour=2, timezone=SHANGHAI), kwargs={"target": "x"}, paused=True)
    old_app.add("old_only", "b", CronTrigger(hour=2, timezone=SHANGHAI))
    old_app.close()
    run = app.test_cli_runner().invoke
    told = run(args=["jobs", "import-legacy", str(old_app.path), "--dry-run"])
    assert told.exit_code == 0, told.output
    assert told.stdout.startswith("would be added: a (task copy_report, At 02:00, every day, paused)\n")
    assert "not taken over: b: no task here" in told.stdout
    assert here.ledger.get_job("a") is None
    old_app.write("\x1b]0;obeyed\x07\nid", b"c\x1b[2J\nx\n.")
    told = run(args=["jobs", "import-legacy", str(old_app.path), "--dry-run"])
    assert "not taken over: \\u001b]0;obeyed\\u0007\\u000aid: its pickle holds" in told.stdout
    assert "\x1b" not in told.stdout
    done = run(args=["jobs", "import-legacy", "-", "--json"], input=old_app.path.read_bytes())
    assert [job["action"] for job in json.loads(done.stdout)["jobs"]] == ["add"]
    assert "what the API had changed before: " in done.stderr
    for arguments in ([], [str(old_app.path), "--from-store"], [str(old_app.path), "--map", "x"]):
        assert run(args=["jobs", "import-legacy", *arguments]).exit_code == 2
    assert run(args=["jobs", "import-legacy", str(old_app.path), "--table", 'x"; --']).exit_code == 1
