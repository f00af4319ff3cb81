"""The history goes over whole when it can be read, and as far as it can be read when it is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from app.db.clock import now_us
from app.db.engines import create_engine_for, read_transaction, write_transaction
from app.db.jobstore_tables import jobs, outbox, run_logs, runs
from app.db.migrate import ensure_schema
from app.ledger import NewJob
from app.ledger.repeats import RepeatedRequest, RepeatKey
from app.repositories.run_totals_repository import RunTotalsRepository
from app.runtime import Runtime
from app.services.operations.backup.backups import back_up
from app.services.operations.failure import OperationFailed
from app.services.operations.reset.history import carry_from, carry_history
from app.services.operations.reset.set_aside import Aside, asides, set_aside
from app.services.scheduler.repeated_requests import refuse_repeat
from app.triggers import parse_trigger
from tests.unit.ledger.run_rows import run_row
from tests.unit.services.operations.conftest import DEFAULTS

AddRuns = Callable[..., list[str]]
PAGE = 4096


def reset(runtime: Runtime, **note: Any) -> Aside:
    """The store aside, and a fresh one with the defaults in its place."""
    runtime.jobstore.dispose()
    aside = set_aside(runtime.settings, reason="test", **note)
    ensure_schema(runtime.jobstore, "jobstore")
    runtime.ledger.load_defaults(DEFAULTS)
    return aside


def history(runtime: Runtime) -> dict[str, Any]:
    with read_transaction(runtime.jobstore) as connection:
        return {row["run_id"]: row for row in connection.execute(select(runs)).mappings()}


def logs(runtime: Runtime) -> dict[str, str]:
    with read_transaction(runtime.jobstore) as connection:
        rows = connection.execute(select(run_logs.c.run_id, run_logs.c.log))
        return {row.run_id: row.log for row in rows}


def damage(file: Path, *, pages: range) -> None:
    content = bytearray(file.read_bytes())
    for page in pages:
        content[page * PAGE : (page + 1) * PAGE] = b"\xaa" * PAGE
    file.write_bytes(content)


def test_every_row_and_log_goes_over(with_defaults: Runtime, add_runs: AddRuns) -> None:
    ids = add_runs(1200)
    before, logs_before = history(with_defaults), logs(with_defaults)
    aside = reset(with_defaults)
    assert history(with_defaults) == {}
    [carried] = carry_from(with_defaults, [])
    assert (carried.runs, carried.logs, carried.damage, carried.gaps) == (1200, 1200, None, [])
    assert history(with_defaults) == before
    assert logs(with_defaults) == logs_before
    assert sorted(before) == ids
    assert asides(with_defaults.settings)[0].note.carried_at is not None
    assert carry_from(with_defaults, []) == []
    [again] = carry_from(with_defaults, [aside.path])
    assert (again.runs, again.runs_there_already) == (0, 1200)


def test_undelivered_messages_go_over(with_defaults: Runtime, add_runs: AddRuns) -> None:
    add_runs(1)
    message = {"kind": "alert", "payload": '{"event": "run.failed"}', "created_at": now_us(), "next_try_at": now_us()}
    with write_transaction(with_defaults.jobstore) as connection:
        connection.execute(insert(outbox), [{"id": f"{number:032x}", **message} for number in range(3)])
    reset(with_defaults)
    [carried] = carry_from(with_defaults, [])
    assert (carried.messages, carried.damage) == (3, None)
    with read_transaction(with_defaults.jobstore) as connection:
        rows = [dict(row) for row in connection.execute(select(outbox).order_by(outbox.c.id)).mappings()]
    assert [row["id"] for row in rows] == [f"{number:032x}" for number in range(3)]
    assert {row["payload"] for row in rows} == {message["payload"]}


def test_a_request_that_is_sent_again_is_still_known(with_defaults: Runtime) -> None:
    """A run starts once across a reset; a job that the reset took away can be created again."""
    ledger = with_defaults.ledger
    run, gone, back = (RepeatKey(scope=f"POST {number} 1", key="key", fingerprint="f" * 64) for number in range(3))
    first = ledger.request_run("copy_report", "1", repeat=run)
    for job_id, repeat in (("gone", gone), ("back", back)):
        ledger.add_job(NewJob(id=job_id, task="t", trigger=DEFAULTS[0].trigger), "1", repeat=repeat)
    aside = reset(with_defaults)
    ledger.add_job(NewJob(id="back", task="t", trigger=DEFAULTS[0].trigger), "1")  # by the export that was applied
    [carried] = carry_from(with_defaults, [])
    assert (carried.repeats, carried.damage) == (2, None)
    with pytest.raises(RepeatedRequest) as repeated:
        ledger.request_run("copy_report", "1", repeat=run)
    assert repeated.value.resource == first.run_id
    assert list(history(with_defaults)) == [first.run_id]
    with pytest.raises(RepeatedRequest):
        refuse_repeat(with_defaults.jobstore, back)
    refuse_repeat(with_defaults.jobstore, gone)
    [again] = carry_from(with_defaults, [aside.path])
    assert again.repeats == 0


def test_the_counts_of_the_metrics_begin_anew(with_defaults: Runtime, add_runs: AddRuns) -> None:
    """What is carried over was counted in the old store; it does not happen once more."""
    totals = RunTotalsRepository(with_defaults.jobstore)
    totals.begin()
    add_runs(3)
    add_runs(1, outcome="pending")
    reset(with_defaults)
    totals.begin()
    carry_from(with_defaults, [])
    assert len(history(with_defaults)) == 4
    assert totals.read().fires == {}


def test_source_is_left_as_it_is(with_defaults: Runtime, add_runs: AddRuns) -> None:
    add_runs(10)
    aside = reset(with_defaults)
    content = aside.file.read_bytes()
    carry_from(with_defaults, [])
    assert aside.file.read_bytes() == content


def test_runs_without_an_end_get_one(with_defaults: Runtime, add_runs: AddRuns) -> None:
    [waiting] = add_runs(1, outcome="pending")
    [running] = add_runs(1, outcome="running", job_id="copy_report")
    reset(with_defaults)
    [carried] = carry_from(with_defaults, [])
    assert (carried.cancelled, carried.lost) == (1, 1)
    rows = history(with_defaults)
    assert (rows[waiting]["outcome"], rows[running]["outcome"]) == ("cancelled", "lost")
    assert all("reset" in rows[run_id]["reason"] for run_id in (waiting, running))
    assert all(rows[run_id]["finished_at"] is not None for run_id in (waiting, running))


def test_moments_during_the_reset_are_missed_not_gone(with_defaults: Runtime) -> None:
    trigger = parse_trigger({"trigger_type": "interval", "seconds": 60}, default_timezone="UTC").spec
    with_defaults.ledger.change_job("copy_report", {"trigger": trigger}, "1")
    with write_transaction(with_defaults.jobstore) as connection:
        due = connection.execute(select(jobs.c.next_run_time).where(jobs.c.id == "copy_report")).scalar_one()
        first = due - 600 * 1_000_000
        connection.execute(update(jobs).where(jobs.c.id == "copy_report").values(next_run_time=first))
    reset(with_defaults)
    [carried] = carry_from(with_defaults, [])
    assert carried.missed == 10
    [row] = history(with_defaults).values()
    assert (row["outcome"], row["count"]) == ("missed", 10)
    assert (row["scheduled_from"], row["scheduled_for"]) == (first, due - 60 * 1_000_000)


def test_moments_that_a_store_in_between_had_are_not_missed_too(with_defaults: Runtime) -> None:
    """A reset that was interrupted before it carried the history, and run again: two stores aside, the first of which
    does not know what ran on the second."""
    trigger = parse_trigger({"trigger_type": "interval", "seconds": 60}, default_timezone="UTC").spec

    def due_in_the_past(minutes: int) -> int:
        with_defaults.ledger.change_job("copy_report", {"trigger": trigger}, "1")
        with write_transaction(with_defaults.jobstore) as connection:
            query = select(jobs.c.next_run_time).where(jobs.c.id == "copy_report")
            first = int(connection.execute(query).scalar_one()) - minutes * 60_000_000
            connection.execute(update(jobs).where(jobs.c.id == "copy_report").values(next_run_time=first))
        return first

    first = due_in_the_past(20)
    reset(with_defaults)
    # The second store ran for some minutes, then it was set aside as well.
    due_in_the_past(5)
    ran = [first + minute * 60_000_000 for minute in range(8, 15)]
    with write_transaction(with_defaults.jobstore) as connection:
        connection.execute(insert(runs), [run_row("copy_report", moment, claimed_at=now_us()) for moment in ran[:3]])
        fold = {"scheduled_from": ran[3], "count": 4, "outcome": "missed"}
        connection.execute(insert(runs), [run_row("copy_report", ran[-1], claimed_at=now_us(), **fold)])
    reset(with_defaults)
    carry_from(with_defaults, [])
    covered: list[int] = []
    for row in history(with_defaults).values():
        begin = row["scheduled_for"] if row["scheduled_from"] is None else row["scheduled_from"]
        moments = list(range(begin, row["scheduled_for"] + 1, 60_000_000))
        assert len(moments) == row["count"]
        covered += moments
    assert sorted(covered) == [first + minute * 60_000_000 for minute in range(len(covered))], "each moment, once"
    assert len(covered) in (20, 21)


def test_damaged_file_gives_both_ends(with_defaults: Runtime, add_runs: AddRuns) -> None:
    ids = add_runs(2000, pad="x" * 100)
    aside = reset(with_defaults)
    pages = aside.file.stat().st_size // PAGE
    damage(aside.file, pages=range(pages // 2, pages // 2 + 3))
    [carried] = carry_from(with_defaults, [])
    assert carried.damage
    assert carried.gaps
    assert not carried.failed
    rows = history(with_defaults)
    assert 0 < len(rows) + len(logs(with_defaults)) < 4000
    assert set(rows) <= set(ids)


def test_backup_fills_what_the_damaged_file_lacks(with_defaults: Runtime, add_runs: AddRuns) -> None:
    ids = add_runs(2000, pad="x" * 100)
    backup = back_up(with_defaults.settings, reason="test")
    aside = reset(with_defaults, backup=str(backup.path))
    pages = aside.file.stat().st_size // PAGE
    damage(aside.file, pages=range(pages // 3, pages // 2))
    results = carry_from(with_defaults, [])
    assert [result.source for result in results] == [str(aside.file), str(backup.path / "scheduler.db")]
    assert sorted(history(with_defaults)) == ids
    assert len(logs(with_defaults)) == 2000


def test_file_that_is_no_database_is_reported_and_can_be_tried_again(with_defaults: Runtime) -> None:
    aside = reset(with_defaults)
    aside.file.write_bytes(b"this is no database at all, and never was one")
    [carried] = carry_from(with_defaults, [])
    assert carried.failed
    assert "cannot be read as a SQLite database" in str(carried.damage)
    assert asides(with_defaults.settings)[0].note.carried_at is None


def test_other_databases_are_refused(with_defaults: Runtime, tmp_path: Path) -> None:
    with pytest.raises(OperationFailed, match="no file"):
        carry_history(tmp_path / "missing.db", with_defaults.jobstore)
    with pytest.raises(OperationFailed, match="no run history"):
        carry_history(with_defaults.settings.userdata_dir / "whalefall.db", with_defaults.jobstore)


def test_older_schema_goes_over_by_the_columns_that_both_have(
    with_defaults: Runtime, add_runs: AddRuns, tmp_path: Path
) -> None:
    ids = add_runs(3)
    aside = reset(with_defaults)
    old = create_engine_for(f"sqlite:///{aside.file}")
    with old.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE runs DROP COLUMN error")
    old.dispose()
    carry_from(with_defaults, [])
    assert sorted(history(with_defaults)) == ids
