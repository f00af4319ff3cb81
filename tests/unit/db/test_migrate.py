"""Migrations: the schema that they make, once, whoever starts at the same time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

import app.db.account_tables
import app.db.inventory_tables
import app.db.jobstore_tables  # noqa: F401 - the tables that the metadata is compared with
from app.db.engines import create_engine_for, read_transaction, write_transaction
from app.db.migrate import (
    COMPATIBILITY_TABLES,
    HEADS,
    METADATA,
    VERSION_TABLES,
    NewerSchema,
    Store,
    current_revision,
    ensure_schema,
    script_location,
)

STORES = get_args(Store)
START = """
import sys
from app.db.engines import create_engine_for
from app.db.migrate import ensure_schema
sys.stdin.readline()
ensure_schema(create_engine_for(sys.argv[1]), "jobstore")
"""


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return create_engine_for(f"sqlite:///{tmp_path}/store.db")


@pytest.mark.parametrize("store", STORES)
def test_the_migrations_make_the_tables_that_the_code_uses(engine: Engine, store: Store) -> None:
    ensure_schema(engine, store)
    with engine.connect() as connection:
        note = COMPATIBILITY_TABLES[store]
        ours = {"version_table": VERSION_TABLES[store], "include_name": lambda name, *_: name != note}
        context = MigrationContext.configure(connection, opts=ours)
        assert compare_metadata(context, METADATA[store]) == []


@pytest.mark.parametrize("store", STORES)
def test_the_known_head_is_the_newest_script(store: Store) -> None:
    assert ScriptDirectory(str(script_location(store))).get_current_head() == HEADS[store]


def test_a_database_that_is_current_is_left_alone(engine: Engine) -> None:
    ensure_schema(engine, "jobstore")
    with write_transaction(engine) as connection:
        connection.execute(text("INSERT INTO run_logs VALUES ('id', 'log')"))
    ensure_schema(engine, "jobstore")
    with read_transaction(engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM run_logs")).scalar_one() == 1


def test_a_database_of_a_newer_release_is_refused_untouched(engine: Engine) -> None:
    ensure_schema(engine, "jobstore")
    with write_transaction(engine) as connection:
        connection.execute(text("UPDATE jobstore_schema_version SET version_num = '9999'"))
        connection.execute(text("DROP TABLE jobstore_schema_compatibility"))
    with pytest.raises(NewerSchema, match="9999"):
        ensure_schema(engine, "jobstore")
    with read_transaction(engine) as connection:
        assert current_revision(connection, "jobstore") == "9999"


def test_a_database_of_a_newer_release_that_left_it_usable_is_used_as_it_is(engine: Engine) -> None:
    ensure_schema(engine, "jobstore")
    for usable_from, is_usable in ((HEADS["jobstore"], True), ("0001", True), ("9998", False)):
        with write_transaction(engine) as connection:
            connection.execute(text("UPDATE jobstore_schema_version SET version_num = '9999'"))
            connection.execute(
                text("UPDATE jobstore_schema_compatibility SET usable_from = :revision"), {"revision": usable_from}
            )
        if is_usable:
            ensure_schema(engine, "jobstore")
        else:
            with pytest.raises(NewerSchema, match="9999"):
                ensure_schema(engine, "jobstore")
        with read_transaction(engine) as connection:
            assert current_revision(connection, "jobstore") == "9999"


def test_both_stores_may_lie_in_one_database(engine: Engine) -> None:
    for store in STORES:
        ensure_schema(engine, store)
    with read_transaction(engine) as connection:
        assert {"jobs", "users"} <= set(inspect(connection).get_table_names())
        assert [current_revision(connection, store) for store in STORES] == [HEADS[store] for store in STORES]


def test_processes_that_start_together_migrate_once(engine: Engine) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START, str(engine.url)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0], errors
    with read_transaction(engine) as connection:
        assert current_revision(connection, "jobstore") == HEADS["jobstore"]
