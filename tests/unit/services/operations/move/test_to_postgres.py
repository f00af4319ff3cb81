"""What the move does before and beside PostgreSQL; e2e/test_move_to_postgres.py has it on a real one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from app.db.engines import create_engine_for, read_transaction, write_transaction
from app.db.jobstore_tables import jobs, run_logs, runs
from app.db.migrate import METADATA, ensure_schema
from app.runtime import Runtime
from app.services.operations.failure import OperationFailed
from app.services.operations.move.to_postgres import move
from app.services.operations.stores.copy import sum_of, tables_of
from app.settings import Settings

POSTGRES = "postgresql+psycopg://me:secret@127.0.0.1:9/jobs"


@pytest.fixture
def to_postgres(environment: dict[str, str]) -> Settings:
    """The settings of the shape ha on the same userdata; the server is not there."""
    return Settings.load(environment | {"JOBSTORE_URL": POSTGRES, "DATABASE_URL": POSTGRES})


def silent(_line: str) -> None:
    """Nobody listens."""


def test_every_table_but_the_nodes_is_moved() -> None:
    moved = {table.name for store in METADATA for table in tables_of(store)}
    known = {name for metadata in METADATA.values() for name in metadata.tables}
    assert known - moved == {"nodes"}


def test_rows_come_after_those_that_they_refer_to() -> None:
    for store in METADATA:
        done: set[str] = set()
        for table in tables_of(store):
            assert {key.column.table.name for key in table.foreign_keys} <= done
            done.add(table.name)


def test_the_sum_does_not_depend_on_the_order_and_sees_every_change(tmp_path: Path) -> None:
    rows = [{"run_id": f"{number:032}", "log": f"log {number}"} for number in range(300)]
    sums = []
    for name in ("one", "two"):
        engine = create_engine_for(f"sqlite:///{tmp_path}/{name}.db")
        ensure_schema(engine, "jobstore")
        random.shuffle(rows)
        with write_transaction(engine) as connection:
            connection.execute(insert(run_logs), rows)
            sums.append(sum_of(connection, run_logs))
            connection.execute(update(run_logs).where(run_logs.c.run_id == rows[0]["run_id"]).values(log="other"))
            assert sum_of(connection, run_logs) != sums[0]
        engine.dispose()
    assert sums[0] == sums[1]
    assert sums[0].rows == 300


def test_a_dry_run_counts_without_a_server(
    runtime: Runtime, to_postgres: Settings, add_runs: Callable[..., list[str]]
) -> None:
    """The stack runs on meanwhile: this process itself has the files open."""
    add_runs(3)
    told: list[str] = []
    found = move(to_postgres, tell=told.append, dry_run=True)
    with read_transaction(runtime.jobstore) as connection:
        assert found.sums["jobstore"]["runs"] == sum_of(connection, runs)
    assert found.sums["jobstore"]["runs"].rows == 3
    assert found.sums["app"]["users"].rows == 1
    assert "postgresql://127.0.0.1:9/jobs does not answer, so it was not looked at" in told
    assert "secret" not in str(found.as_json())
    assert not list(to_postgres.userdata_dir.glob("moved*"))


def test_sqlite_as_a_target_is_refused(runtime: Runtime) -> None:
    with pytest.raises(OperationFailed, match=r"JOBSTORE_URL names the SQLite file .*scheduler\.db"):
        move(runtime.settings, tell=silent)


def test_a_file_that_is_missing_is_refused(to_postgres: Settings) -> None:
    with pytest.raises(OperationFailed, match=r"there is no jobstore database at .*scheduler\.db"):
        move(to_postgres, tell=silent)


def test_values_that_do_not_fit_are_named(runtime: Runtime, to_postgres: Settings) -> None:
    runtime.ledger.load_defaults([])
    with write_transaction(runtime.jobstore) as connection:
        columns = {column.name: 1 for column in jobs.columns if not column.nullable}
        connection.execute(insert(jobs).values(columns | {"id": "long", "task": "x" * 256, "kwargs": "{}"}))
    with pytest.raises(OperationFailed) as refused:
        move(to_postgres, tell=silent, dry_run=True)
    line = str(refused.value)
    assert "jobs.task of 'long' (256 characters)" in line
    assert "\n" not in line
