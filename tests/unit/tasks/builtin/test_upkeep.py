"""The built-in tasks that look after the store: backup_jobstore and purge_run_history."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy import func, insert, select

from app.db.clock import to_us
from app.db.engines import read_transaction, write_transaction
from app.db.jobstore_tables import runs
from app.errors import ValidationError
from app.ledger import run_id_floor
from app.runtime import Runtime
from app.services.operations.backup.backups import list_backups
from app.tasks.builtin.backup_jobstore import backup_jobstore
from app.tasks.builtin.purge_run_history import purge_run_history
from tests.unit.ledger.run_rows import run_row


@pytest.fixture(autouse=True)
def _in_context(app: Flask) -> Iterator[None]:
    with app.app_context():
        yield


def add_run(runtime: Runtime, *, age: timedelta, outcome: str = "success") -> None:
    at = to_us(datetime.now(UTC) - age)
    with write_transaction(runtime.jobstore) as connection:
        connection.execute(insert(runs).values(run_row("job", at, run_id=run_id_floor(at), outcome=outcome)))


def count(runtime: Runtime) -> int:
    with read_transaction(runtime.jobstore) as connection:
        return int(connection.execute(select(func.count()).select_from(runs)).scalar_one())


def test_backup_task_makes_verified_backups_and_keeps_the_newest(runtime: Runtime) -> None:
    for _ in range(3):
        backup_jobstore(keep=2)
    assert len(list_backups(runtime.settings)) == 2


def test_purge_task_keeps_the_retention(runtime: Runtime) -> None:
    add_run(runtime, age=timedelta(days=91))
    add_run(runtime, age=timedelta(days=89, hours=23))
    purge_run_history()
    assert count(runtime) == 1
    purge_run_history(retention_days=30)
    assert count(runtime) == 0


def test_purge_task_never_takes_a_run_that_has_not_ended(runtime: Runtime) -> None:
    add_run(runtime, age=timedelta(days=400), outcome="running")
    purge_run_history(retention_days=1)
    assert count(runtime) == 1


@pytest.mark.parametrize(
    ("task", "kwargs"), [("backup_jobstore", {"keep": 0}), ("purge_run_history", {"retention_days": 0})]
)
def test_limits_of_nothing_are_refused(runtime: Runtime, task: str, kwargs: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        runtime.tasks.check_kwargs(task, kwargs)
