"""The migration of an upgrade: what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, text

from app.db.engines import create_engine_for, read_transaction, write_transaction
from app.db.migrate import HEADS, Store, current_revision, ensure_schema, schema_transaction, upgrade_schema
from app.ledger import Ledger
from app.services.operations.failure import OperationFailed
from app.services.operations.migration import migrate_stores, parse_revisions, unusable_reason
from app.settings import Settings

FIRST_RELEASE = parse_revisions("jobstore=0002,app=0001")
PRESENT = parse_revisions(",".join(f"{store}={head}" for store, head in HEADS.items()))
SECRETS = {"SECRET_KEY": "s" * 32, "ADMIN_PASSWORD": "p" * 12, "API_TOKEN": "t" * 32}


def at_first_release(engine: Engine) -> None:
    """The job store as 0.1.0 left it, with a row."""
    with schema_transaction(engine) as connection:
        upgrade_schema(connection, "jobstore", to=FIRST_RELEASE["jobstore"])
        connection.execute(text("INSERT INTO run_logs VALUES ('run', 'its log')"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings.load({**SECRETS, "USERDATA_DIR": str(tmp_path)})
    at_first_release(create_engine_for(made.jobstore_url))
    ensure_schema(create_engine_for(made.database_url), "app")
    return made


def revision(settings: Settings) -> str | None:
    with read_transaction(create_engine_for(settings.jobstore_url)) as connection:
        return current_revision(connection, "jobstore")


def test_the_first_release_is_migrated_and_can_go_on(settings: Settings) -> None:
    jobstore, app = migrate_stores(settings, usable_for=FIRST_RELEASE)
    assert (jobstore.before, jobstore.after) == ("0002", HEADS["jobstore"])
    assert jobstore.rows["run_logs"] == 1
    assert (app.before, app.after, app.rows) == ("0001", HEADS["app"], {})
    assert unusable_reason(settings, FIRST_RELEASE) is None


def test_again_there_is_nothing_to_do(settings: Settings) -> None:
    migrate_stores(settings, usable_for=FIRST_RELEASE)
    again = migrate_stores(settings, usable_for=FIRST_RELEASE)
    assert [(each.before, each.rows) for each in again] == [(HEADS[each.store], {}) for each in again]


def test_a_schema_that_the_running_release_cannot_use_is_taken_back(settings: Settings) -> None:
    too_old = {**FIRST_RELEASE, "jobstore": "0001"}
    with pytest.raises(OperationFailed, match=r"usable from 0002 on, and it knows 0001.*nothing was changed"):
        migrate_stores(settings, usable_for=too_old)
    assert revision(settings) == "0002"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("DELETE FROM run_logs", "would leave 0 of 1 rows in the table run_logs"),
        ("DROP TABLE run_logs", "would drop the tables run_logs"),
    ],
)
def test_a_migration_that_loses_something_is_taken_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, harm: str, said: str
) -> None:
    def harmful(connection: Connection, store: Store) -> None:
        upgrade_schema(connection, store)
        connection.execute(text(harm))

    monkeypatch.setattr("app.services.operations.migration.upgrade_schema", harmful)
    with pytest.raises(OperationFailed, match=said):
        migrate_stores(settings, usable_for=FIRST_RELEASE)
    assert revision(settings) == "0002"
    with read_transaction(create_engine_for(settings.jobstore_url)) as connection:
        assert connection.execute(text("SELECT count(*) FROM run_logs")).scalar_one() == 1


def test_a_newer_schema_that_allows_it_is_left_alone(settings: Settings) -> None:
    migrate_stores(settings, usable_for=FIRST_RELEASE)
    with write_transaction(create_engine_for(settings.jobstore_url)) as connection:
        connection.execute(text("UPDATE jobstore_schema_version SET version_num = '9999'"))
    assert migrate_stores(settings, usable_for=PRESENT)[0].after == "9999"
    assert unusable_reason(settings, PRESENT) is None
    with write_transaction(create_engine_for(settings.jobstore_url)) as connection:
        connection.execute(text("UPDATE jobstore_schema_compatibility SET usable_from = '9999'"))
    assert "usable from 9999 on" in str(unusable_reason(settings, PRESENT))


@pytest.mark.parametrize(
    "words",
    [
        "",
        "jobstore=0002",
        "jobstore=0002,app=1",
        "jobs=0002,app=0001",
        "jobstore=０００２,app=0001",
        "jobstore,app=0001",
    ],
)
def test_revisions_that_are_none_are_refused(words: str) -> None:
    with pytest.raises(OperationFailed, match="accepted: "):
        parse_revisions(words)


def test_containers_that_migrate_together_do_it_once(settings: Settings, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "app.cli.migrate", "--usable-for", "jobstore=0002,app=0001", "--json"]
    environment = {**os.environ, **SECRETS, "USERDATA_DIR": str(tmp_path)}
    programs = [
        subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)
    ]
    outputs = [program.communicate(timeout=60) for program in programs]
    assert [program.returncode for program in programs] == [0] * 4, outputs
    befores = [json.loads(output)[0]["before"] for output, _ in outputs]
    assert sorted(befores) == sorted(["0002", *[HEADS["jobstore"]] * 3])


def test_a_refusal_is_one_line_and_the_exit_code(settings: Settings, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.cli.migrate", "--usable-for", "jobstore=0001,app=0001"],
        env={**os.environ, **SECRETS, "USERDATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("Error: the release that is running could not go on")


def test_a_check_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.cli.migrate", "--check", "--usable-for", "jobstore=0001,app=0001"],
        env={**os.environ, **SECRETS, "USERDATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "usable from 0002 on, and it knows 0001" in done.stderr
    assert revision(settings) == "0002"


def test_a_release_that_knows_of_no_holds_is_kept_from_held_jobs(settings: Settings) -> None:
    migrate_stores(settings, usable_for=FIRST_RELEASE)
    engine = create_engine_for(settings.jobstore_url)
    ledger = Ledger(engine)
    ledger.hold("a restore", by="test")
    assert "all jobs are held" in str(unusable_reason(settings, FIRST_RELEASE))
    assert unusable_reason(settings, PRESENT) is None
    ledger.release_hold("skip")
    assert unusable_reason(settings, FIRST_RELEASE) is None
