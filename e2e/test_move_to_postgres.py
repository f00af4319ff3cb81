"""The move from SQLite to PostgreSQL: complete, checked, refused where it must be, harmless wherever it is killed."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import func, insert, inspect, select
from sqlalchemy.engine import Engine

from app.db import account_tables, inventory_tables, jobstore_tables  # noqa: F401 - they fill METADATA
from app.db.engines import create_engine_for, write_transaction
from app.db.migrate import COMPATIBILITY_TABLES, METADATA, VERSION_TABLES, Store, ensure_schema
from app.ledger import failpoints
from app.services.accounts.admin_sync import sync_admin
from e2e.harness.bare_machine import ADMIN_PASSWORD, SECRET_KEY, BareMachine
from e2e.harness.postgres_server import PostgresServer
from e2e.harness.scripts import Outcome
from e2e.harness.store_rows import ROWS, contents, fill, row_of, without_nul

STORES: dict[Store, str] = {"jobstore": "scheduler.db", "app": "whalefall.db"}
STEPS = [name for name in failpoints.NAMES if name.startswith("move.")]


class Deployment(BareMachine):
    """A userdata folder with filled SQLite stores, and an empty PostgreSQL database to move them to; the settings are
    those of the shape ha."""

    def __init__(self, userdata: Path, target: str) -> None:
        super().__init__(userdata, target)
        self.target = target

    def move(self, *arguments: str, **environment: str) -> Outcome:
        return self.flask_jobs("move-to-postgres", *arguments, **environment)

    def source(self, store: Store) -> Engine:
        return create_engine_for(f"sqlite:///{self.userdata / STORES[store]}")

    @property
    def note(self) -> Path:
        return self.userdata / "moved_to_postgres.json"


@pytest.fixture
def deployment(server: PostgresServer, tmp_path: Path) -> Deployment:
    made = Deployment(tmp_path / "userdata", server.new_database("moved"))
    for store in STORES:
        engine = made.source(store)
        ensure_schema(engine, store)
        fill(engine, store)
        if store == "app":
            sync_admin(engine, ADMIN_PASSWORD, SECRET_KEY)
        engine.dispose()
    return made


def assert_moved(deployment: Deployment) -> None:
    """PostgreSQL holds exactly what the files hold, but for the nodes, and goes on numbering behind it."""
    target = create_engine_for(deployment.target)
    try:
        for store in STORES:
            engine = deployment.source(store)
            wanted = contents(engine, store)
            engine.dispose()
            found = contents(target, store)
            assert wanted.keys() == found.keys()
            if store == "jobstore":
                assert found.pop("nodes") == []
                wanted.pop("nodes")
            for name, rows in wanted.items():
                assert len(rows) >= ROWS, name
                key = lambda row: json.dumps(row, sort_keys=True, default=str)  # noqa: E731
                assert found[name] == sorted((without_nul(row) for row in rows), key=key), name
        with target.begin() as connection:
            for table in METADATA["app"].sorted_tables:
                column = table.autoincrement_column
                if column is None:
                    continue
                values = row_of(table, ROWS + 6) | {key.parent.name: 1 for key in table.foreign_keys}
                del values[column.name]
                highest = connection.execute(select(func.max(column))).scalar_one()
                new = connection.execute(insert(table).values(values).returning(column)).scalar_one()
                assert new > highest, table.name
            connection.rollback()
    finally:
        target.dispose()


def files_of(deployment: Deployment) -> dict[str, list[str]]:
    """All rows of the old files, as SQLite itself shows them."""
    found: dict[str, list[str]] = {}
    for name in STORES.values():
        with sqlite3.connect(deployment.userdata / name) as connection:
            connection.text_factory = bytes
            tables = [
                row[0].decode() for row in connection.execute("SELECT name FROM sqlite_schema WHERE type='table'")
            ]
            found |= {table: sorted(map(repr, connection.execute(f'SELECT * FROM "{table}"'))) for table in tables}
        connection.close()
    return found


def assert_refused(outcome: Outcome, *words: str) -> None:
    """One clear line, and exit code 1."""
    assert outcome.code == 1, outcome
    assert outcome.stdout == "", outcome
    last = outcome.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: "), outcome
    for word in words:
        assert word in last, outcome
    assert "Traceback" not in outcome.stderr, outcome


def tables_in(url: str) -> dict[str, int]:
    """How many rows each table of a database has."""
    engine = create_engine_for(url)
    try:
        with engine.connect() as connection:
            names = inspect(connection).get_table_names()
            return {name: connection.exec_driver_sql(f'SELECT count(*) FROM "{name}"').scalar_one() for name in names}
    finally:
        engine.dispose()


def test_everything_is_moved_and_checked(deployment: Deployment) -> None:
    before = files_of(deployment)
    outcome = deployment.move("--json")
    assert outcome.code == 0, outcome
    result = json.loads(outcome.stdout)
    moved = {table.name for store in STORES for table in METADATA[store].sorted_tables} - {"nodes"}
    assert {name: found["rows"] for name, found in result["tables"].items()} == {
        name: len(before[name]) for name in moved
    }
    of_the_schema = {*VERSION_TABLES.values(), *COMPATIBILITY_TABLES.values()}
    assert before.keys() - of_the_schema == moved | {"nodes"}, "the files have tables that nobody moves"
    assert "password" not in outcome.stdout + outcome.stderr
    assert_moved(deployment)
    assert files_of(deployment) == before, "the old files were changed"
    note = json.loads(deployment.note.read_text())
    assert note["sources"] == STORES
    assert note["rows"]["runs"] == ROWS
    assert "password" not in deployment.note.read_text()

    again = deployment.move()
    assert again.code == 0, again
    assert "before" in again.stdout
    assert_moved(deployment)


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_it_ends_right_when_run_again(deployment: Deployment, step: str) -> None:
    killed = deployment.move(FAIL_POINTS=f"{step}=exit")
    assert killed.code == failpoints.EXIT_STATUS, killed
    assert deployment.note.exists() == (step == "move.noted")
    assert not list(deployment.userdata.glob(".moved*")), "a half-written note"
    again = deployment.move()
    assert again.code == 0, again
    assert_moved(deployment)
    assert deployment.note.exists()


def test_a_copy_that_was_overtaken_is_made_anew(deployment: Deployment) -> None:
    """Interrupted after the commit, the old stack ran on; nobody used the copy."""
    assert deployment.move(FAIL_POINTS="move.committed=exit").code == failpoints.EXIT_STATUS
    engine = deployment.source("jobstore")
    table = METADATA["jobstore"].tables["jobs"]
    with write_transaction(engine) as connection:
        connection.execute(table.delete().where(table.c.id == row_of(table, 7)["id"]))
        connection.execute(insert(table), [row_of(table, number) for number in (900, 901)])
    engine.dispose()
    assert deployment.move().code == 0
    assert_moved(deployment)


def test_a_database_that_was_used_is_refused(deployment: Deployment) -> None:
    assert deployment.move().code == 0
    target = create_engine_for(deployment.target)
    nodes = METADATA["jobstore"].tables["nodes"]
    with write_transaction(target) as connection:
        connection.execute(insert(nodes), [row_of(nodes, 1)])
    # As long as the files are what was moved, that is no error: it is done.
    assert deployment.move().code == 0
    engine = deployment.source("app")
    table = METADATA["app"].tables["audit_log"]
    with write_transaction(engine) as connection:
        connection.execute(insert(table), [row_of(table, 900)])
    engine.dispose()
    before = tables_in(deployment.target)
    assert_refused(deployment.move(), "holds data", "runs", deployment.target.split("@")[1])
    assert tables_in(deployment.target) == before
    target.dispose()


@pytest.mark.parametrize("store", STORES)
def test_foreign_data_is_refused(deployment: Deployment, store: Store) -> None:
    target = create_engine_for(deployment.target)
    ensure_schema(target, store)
    name = {"jobstore": "jobs", "app": "users"}[store]
    table = METADATA[store].tables[name]
    with write_transaction(target) as connection:
        connection.execute(insert(table), [row_of(table, 1)])
    target.dispose()
    assert_refused(deployment.move(), "holds data", f"1 rows in {name}")
    assert not deployment.note.exists()
    assert tables_in(deployment.target)[name] >= 1
    assert "moved_from_sqlite" not in tables_in(deployment.target)


def test_the_admin_that_a_start_makes_is_no_foreign_data(deployment: Deployment) -> None:
    assert deployment.flask_jobs("list").code == 0
    assert tables_in(deployment.target)["users"] == 1
    assert deployment.move().code == 0
    assert_moved(deployment)


def test_nothing_is_moved_while_a_process_has_a_file_open(deployment: Deployment) -> None:
    with sqlite3.connect(deployment.userdata / "whalefall.db") as holder:
        holder.execute("SELECT count(*) FROM users").fetchone()
        assert_refused(deployment.move(), "whalefall.db is open in another process")
    holder.close()
    assert deployment.move().code == 0


def test_dry_run_changes_nothing(deployment: Deployment, server: PostgresServer) -> None:
    outcome = deployment.move("--dry-run", "--json")
    assert outcome.code == 0, outcome
    assert json.loads(outcome.stdout)["tables"]["runs"]["rows"] == ROWS
    assert not deployment.note.exists()
    assert tables_in(deployment.target).get("jobs", 0) == 0


def test_values_that_do_not_fit_are_named(deployment: Deployment) -> None:
    """SQLite keeps what it is given, whatever the column says."""
    with sqlite3.connect(deployment.userdata / "scheduler.db") as connection:
        connection.execute(
            "UPDATE jobs SET name = ? WHERE max_instances = (SELECT min(max_instances) FROM jobs)", ["x" * 300]
        )
        connection.execute("UPDATE runs SET max_instances = 'many' WHERE run_id = (SELECT min(run_id) FROM runs)")
    connection.close()
    assert_refused(deployment.move(), "jobs.name", "300 characters", "Nothing was changed")
    assert not deployment.note.exists()


def test_sources_that_cannot_be_moved(deployment: Deployment) -> None:
    assert_refused(deployment.move(JOBSTORE_URL=""), "JOBSTORE_URL", "scheduler.db")
    assert_refused(deployment.move("--jobstore", "/nowhere/x.db"), "/nowhere/x.db")
    file = deployment.userdata / "whalefall.db"
    with file.open("r+b") as damaged:
        damaged.seek(4096)
        damaged.write(b"\xff" * 4096)
    assert_refused(deployment.move(), "whalefall.db is damaged")
    assert not deployment.note.exists()


def test_an_old_stack_does_not_start_after_the_move(deployment: Deployment) -> None:
    assert deployment.move().code == 0
    for scheduler in ("true", "false"):
        refused = deployment.start(JOBSTORE_URL="", DATABASE_URL="", ENABLE_SCHEDULER=scheduler)
        assert refused.code == 4, refused
        assert len(refused.stderr.strip().splitlines()) == 1, refused
        assert "was moved to PostgreSQL" in refused.stderr
        assert "runbooks/move-to-postgres.md" in refused.stderr
    deployment.note.unlink()
    assert deployment.start(JOBSTORE_URL="", DATABASE_URL="", ENABLE_SCHEDULER="false").code == 0
