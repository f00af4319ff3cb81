"""A job store in PostgreSQL is set aside whole or not at all, wherever it is killed; on a real server."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, text
from sqlalchemy.engine import Engine

from app.db.clock import to_us
from app.db.engines import create_engine_for, write_transaction
from app.db.jobstore_tables import holds, idempotency_keys, jobs, nodes
from app.db.migrate import METADATA, ensure_schema
from app.ledger import failpoints
from e2e.harness.bare_machine import BareMachine
from e2e.harness.postgres_server import PostgresServer
from e2e.harness.scripts import Outcome
from e2e.harness.store_rows import Contents, contents, fill, row_of, without_nul


class Deployment(BareMachine):
    """A filled job store in PostgreSQL that nobody uses."""

    def __init__(self, userdata: Path, url: str, store: Engine) -> None:
        super().__init__(userdata, url)
        self.store = store

    def set_aside(self, **environment: str) -> Outcome:
        return self.flask_jobs("set-aside", "--reason", "test", **environment)

    def contents(self) -> Contents:
        return contents(self.store, "jobstore")

    def asides(self) -> list[Path]:
        return sorted((self.userdata / "backups").glob("aside-*"))


@pytest.fixture
def deployment(server: PostgresServer, tmp_path: Path) -> Iterator[Deployment]:
    url = server.new_database("aside")
    engine = create_engine_for(url)
    ensure_schema(engine, "jobstore")
    fill(engine, "jobstore", with_nul=False)
    with write_transaction(engine) as connection:
        connection.execute(delete(holds))
    yield Deployment(tmp_path / "userdata", url, engine)
    engine.dispose()


def copied(aside: Path) -> Contents:
    """Every row of the file, read plainly; nodes are not copied."""
    engine = create_engine_for(f"sqlite:///{aside}/scheduler.db")
    found = contents(engine, "jobstore")
    engine.dispose()
    assert found.pop("nodes") == []
    return found


def assert_set_aside(deployment: Deployment, before: Contents) -> None:
    """All that was there is in one folder, and nothing of it is left in the store."""
    (aside,) = deployment.asides()
    assert copied(aside) == {name: rows for name, rows in before.items() if name != "nodes"}
    assert not any(deployment.contents().values())


def test_every_row_goes_aside_and_what_is_not_the_stores_stays(deployment: Deployment) -> None:
    with write_transaction(deployment.store) as connection:
        connection.execute(text("CREATE TABLE somebodys (name text)"))
        connection.execute(text("INSERT INTO somebodys VALUES ('mine')"))
    before = deployment.contents()
    assert before.keys() == METADATA["jobstore"].tables.keys()
    done = deployment.set_aside()
    assert done.code == 0, done
    assert done.stdout.strip() == str(deployment.asides()[0])
    assert_set_aside(deployment, before)
    with deployment.store.begin() as connection:
        assert connection.execute(text("SELECT name FROM somebodys")).scalar_one() == "mine"
        assert connection.execute(text("SELECT username FROM users")).scalar_one() == "admin"


@pytest.mark.parametrize("step", [name for name in failpoints.NAMES if name.startswith("aside.")])
def test_killed_and_run_again(deployment: Deployment, step: str) -> None:
    """Before the commit the copy is none, after it the copy is all there is."""
    before = deployment.contents()
    killed = deployment.set_aside(FAIL_POINTS=f"{step}=exit")
    assert killed.code == failpoints.EXIT_STATUS, killed
    assert len(deployment.asides()) == 1
    if step == "aside.copied":
        assert deployment.contents() == before
        again = deployment.set_aside()
        assert again.code == 0, again
    else:
        carried = deployment.flask_jobs("carry-history")
        assert carried.code == 0, carried
        runs = len(deployment.contents()["runs"])
        assert runs == len(before["runs"]) > 0
        with write_transaction(deployment.store) as connection:
            for table in METADATA["jobstore"].sorted_tables:
                connection.execute(delete(table))
    assert_set_aside(deployment, before)


def test_history_comes_back_without_what_the_server_cannot_hold(deployment: Deployment) -> None:
    """Of a file that was damaged since, or of a SQLite store: one garbled row costs the others nothing."""
    before = deployment.contents()["runs"]
    done = deployment.set_aside()
    assert done.code == 0, done
    with closing(sqlite3.connect(deployment.asides()[0] / "scheduler.db")) as aside:
        garbled, torn = (row[0] for row in aside.execute("SELECT run_id FROM runs ORDER BY run_id LIMIT 2"))
        aside.execute("UPDATE runs SET count = 'garbled' WHERE run_id = ?", (garbled,))
        aside.execute("UPDATE runs SET reason = ? WHERE run_id = ?", ("torn\0text", torn))
        aside.commit()
    carried = deployment.flask_jobs("carry-history", "--json")
    assert carried.code == 0, carried
    [told] = json.loads(carried.stdout)
    after = {row["run_id"]: row for row in deployment.contents()["runs"]}
    assert told["runs"] == len(after) == len(before) - 1
    assert garbled not in after
    assert after[torn]["reason"] == "torn\\x00text"


def test_requests_that_are_sent_again_are_still_known(deployment: Deployment) -> None:
    """Several keys of one route, and one of a job that is gone."""
    keys = [
        {"scope": "POST run 1", "key": f"key {number}", "fingerprint": "0" * 64, "resource": resource, "created_at": 1}
        for number, resource in enumerate(("a" * 32, "b" * 32, "a garbled one", "gone"))
    ]
    with write_transaction(deployment.store) as connection:
        connection.execute(delete(idempotency_keys))
        connection.execute(insert(idempotency_keys), keys)
        connection.execute(insert(jobs), without_nul(row_of(jobs, 99) | {"id": "gone"}))
    done = deployment.set_aside()
    assert done.code == 0, done
    with closing(sqlite3.connect(deployment.asides()[0] / "scheduler.db")) as aside:
        aside.execute("UPDATE idempotency_keys SET created_at = 'garbled' WHERE key = 'key 2'")
        aside.commit()
    carried = deployment.flask_jobs("carry-history", "--json")
    assert carried.code == 0, carried
    [told] = json.loads(carried.stdout)
    assert deployment.contents()["idempotency_keys"] == keys[:2]
    assert told["repeats"] == 2
    again = deployment.flask_jobs("carry-history", str(deployment.asides()[0]), "--json")
    assert json.loads(again.stdout)[0]["repeats"] == 0, again


def test_refused_while_a_scheduler_lives(deployment: Deployment) -> None:
    now = to_us(datetime.now(UTC))
    alive = row_of(nodes, 1) | {"node_id": "alive", "kind": "scheduler", "name": "other-machine", "state": "running"}
    with write_transaction(deployment.store) as connection:
        # It will have beaten until the command gives up waiting for its death.
        connection.execute(insert(nodes).values(alive | {"heartbeat_at": now + 60_000_000, "started_at": now}))
    before = deployment.contents()
    refused = deployment.set_aside()
    assert refused.code == 1, refused
    assert "still at work on this store: scheduler other-machine" in refused.stderr
    assert deployment.contents() == before
    assert deployment.asides() == []


def test_refused_while_it_is_held(deployment: Deployment) -> None:
    assert deployment.flask_jobs("hold", "--reason", "works at the database").code == 0
    refused = deployment.set_aside()
    assert refused.code == 1, refused
    assert "the job store is held (works at the database)" in refused.stderr
    assert deployment.asides() == []
