"""Totals of the runs: exact, rising whatever happens to the rows, and the same for whoever reads them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event, func, insert, select, update

from app.db.engines import create_engine_for, write_transaction
from app.db.jobstore_tables import run_totals, runs, uncounted_runs
from app.db.migrate import ensure_schema
from app.ledger.run_ids import new_run_id
from app.repositories.run_totals_repository import (
    ADDED_EVERY_S,
    BEYOND,
    MOST_S,
    SETTLED_AFTER_S,
    RunTotalsRepository,
)
from tests.unit.ledger.run_rows import run_row

SECOND = 1_000_000
BEGIN = 1_800_000_000 * SECOND


@dataclass
class Ledger:
    """The store under test with a clock that the test sets."""

    engine: Engine
    now: int = BEGIN
    totals: RunTotalsRepository = field(init=False)

    def __post_init__(self) -> None:
        self.totals = self.reader()
        self.totals.begin()

    def reader(self) -> RunTotalsRepository:
        """What another process has."""
        return RunTotalsRepository(self.engine, clock=lambda _connection: self.now)

    def claim(self, **values: Any) -> str:
        run_id = new_run_id(self.now)
        pending = {"run_id": run_id, "task": "t", "outcome": "pending"}
        row = run_row(f"job-{run_id}", self.now, **pending | values)
        with write_transaction(self.engine) as connection:
            connection.execute(insert(runs), row)
        return run_id

    def set(self, run_id: str, **values: Any) -> None:
        with write_transaction(self.engine) as connection:
            connection.execute(update(runs).where(runs.c.run_id == run_id).values(**values))

    def ran(self, late_s: float = 0.0, took_s: float = 0.0, outcome: str = "success", **values: Any) -> str:
        """A run that was claimed now and has ended."""
        started = self.now + int(late_s * SECOND)
        ended = started + int(took_s * SECOND)
        return self.claim(outcome=outcome, started_at=started, finished_at=ended, **values)

    def fires(self) -> dict[tuple[str, str, str], int]:
        return dict(self.totals.read().fires)

    def pass_s(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)

    def rows(self, table: Any) -> int:
        with self.engine.connect() as connection:
            return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    engine = create_engine_for(f"sqlite:///{tmp_path / 'scheduler.db'}")
    # A commit that waits for the disk would make this slow; nothing here survives the test.
    event.listen(engine, "connect", lambda connection, _record: connection.execute("PRAGMA synchronous=OFF"))
    ensure_schema(engine, "jobstore")
    yield Ledger(engine)
    engine.dispose()


def test_moments_are_counted_by_outcome_kind_and_task(ledger: Ledger) -> None:
    ledger.ran()
    ledger.ran(task="u", outcome="failed")
    ledger.ran(kind="manual")
    ledger.ran(attempt=2)
    ledger.claim(outcome="missed", count=7)
    ledger.claim()  # has not ended
    assert ledger.fires() == {
        ("success", "schedule", "t"): 1,
        ("failed", "schedule", "u"): 1,
        ("success", "manual", "t"): 1,
        ("success", "retry", "t"): 1,
        ("missed", "schedule", "t"): 7,
    }


def test_lateness_is_that_of_first_attempts_of_scheduled_runs(ledger: Ledger) -> None:
    ledger.ran(late_s=0.02)
    ledger.ran(late_s=0.25)
    ledger.ran(late_s=4000)
    ledger.ran(late_s=50, attempt=2)
    ledger.ran(late_s=50, kind="manual")
    ledger.ran(late_s=-2)  # a clock that was set back
    late = ledger.totals.read().lateness["default"]
    assert dict(late.buckets) == {"0.01": 1, "0.05": 1, "0.25": 1, BEYOND: 1}
    assert late.sum_s == pytest.approx(4000.27)


def test_durations_are_those_of_runs_whose_end_is_known(ledger: Ledger) -> None:
    ledger.ran(took_s=0.2)
    ledger.ran(took_s=20_000, outcome="failed", task="u")
    ledger.ran(took_s=30, outcome="lost")
    durations = ledger.totals.read().duration
    assert {task: dict(found.buckets) for task, found in durations.items()} == {"t": {"0.5": 1}, "u": {BEYOND: 1}}
    assert durations["u"].sum_s == 20_000


def test_what_is_on_record_from_before_the_beginning_is_history(ledger: Ledger) -> None:
    ledger.pass_s(-10)
    ledger.ran()
    ledger.pass_s(20)
    ledger.ran()
    assert ledger.fires() == {("success", "schedule", "t"): 1}


def test_a_reading_begins_the_counting_where_no_scheduler_did(ledger: Ledger) -> None:
    with write_transaction(ledger.engine) as connection:
        connection.execute(delete(run_totals))
    ledger.ran()
    ledger.pass_s(1)
    assert ledger.fires() == {}
    ledger.pass_s(1)
    ledger.ran()
    assert ledger.fires() == {("success", "schedule", "t"): 1}


def test_totals_outlive_the_rows(ledger: Ledger) -> None:
    for _ in range(3):
        ledger.ran(late_s=0.2, took_s=2)
    ledger.pass_s(ADDED_EVERY_S + 1)
    before = ledger.totals.read()  # and has them added
    with write_transaction(ledger.engine) as connection:
        connection.execute(delete(runs))
    assert ledger.totals.read() == before
    assert before.fires == {("success", "schedule", "t"): 3}


def test_a_reading_looks_only_at_the_last_minutes(ledger: Ledger) -> None:
    old = ledger.ran()
    ledger.pass_s(ADDED_EVERY_S + 1)
    ledger.totals.read()
    ledger.set(old, outcome="failed")  # nobody does that; it shows what is read
    assert ledger.fires() == {("success", "schedule", "t"): 1}


def test_a_run_that_lasts_is_counted_when_it_ends(ledger: Ledger) -> None:
    run_id = ledger.claim(started_at=ledger.now)
    ledger.set(run_id, outcome="running")
    for _ in range(3):
        ledger.pass_s(ADDED_EVERY_S + 1)
        assert ledger.fires() == {}
    assert ledger.rows(uncounted_runs) == 1
    ledger.set(run_id, outcome="success", finished_at=ledger.now)
    assert ledger.fires() == {("success", "schedule", "t"): 1}
    ledger.pass_s(ADDED_EVERY_S + 1)
    ledger.totals.read()
    assert ledger.rows(uncounted_runs) == 0
    assert ledger.fires() == {("success", "schedule", "t"): 1}


def test_a_run_called_lost_that_finished_after_all_was_both(ledger: Ledger) -> None:
    run_id = ledger.ran(outcome="lost")
    assert ledger.fires() == {("lost", "schedule", "t"): 1}
    ledger.set(run_id, outcome="success", reason="it was presumed lost and finished after all")
    assert ledger.fires() == {("lost", "schedule", "t"): 1, ("success", "schedule", "t"): 1}


def test_what_nobody_counted_for_a_day_is_left_out(ledger: Ledger) -> None:
    ledger.ran()
    ledger.pass_s(MOST_S + 10)
    ledger.ran()
    assert ledger.fires() == {("success", "schedule", "t"): 1}
    ledger.pass_s(SETTLED_AFTER_S + 1)
    ledger.totals.add_settled()
    assert ledger.fires() == {("success", "schedule", "t"): 1}


def test_of_several_that_add_at_once_one_does(ledger: Ledger) -> None:
    for _ in range(50):
        ledger.ran()
    ledger.pass_s(ADDED_EVERY_S)
    barrier = Barrier(4)
    added: list[bool] = []

    def add() -> None:
        reader = ledger.reader()
        barrier.wait(10)
        added.append(reader.add_settled())

    threads = [Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(added) == [False, False, False, True]
    assert ledger.fires() == {("success", "schedule", "t"): 50}


@pytest.mark.parametrize("seed", range(3))
def test_no_count_is_lost_doubled_or_falls(ledger: Ledger, seed: int) -> None:
    chance = random.Random(seed)
    readers = [ledger.reader() for _ in range(3)]
    expected: Counter[tuple[str, str, str]] = Counter()
    active: list[str] = []
    before: dict[tuple[str, str, str], int] = {}
    for _ in range(150):
        ledger.pass_s(chance.choice((1, 5, 60, 200)))
        for _ in range(chance.randrange(3)):
            active.append(ledger.claim(started_at=ledger.now))
        while active and chance.random() < 0.4:
            outcome = chance.choice(("success", "failed", "lost", "cancelled"))
            run_id = active.pop(chance.randrange(len(active)))
            ledger.set(run_id, outcome=outcome, finished_at=ledger.now)
            expected[outcome, "schedule", "t"] += 1
        found = dict(chance.choice(readers).read().fires)
        assert found == dict(expected)
        assert all(found[key] >= value for key, value in before.items())
        before = found
    assert ledger.rows(run_totals) > 1  # some were added to the totals
