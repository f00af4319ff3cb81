from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, exc

from app.db.reach import (
    StoreUnusable,
    is_out_of_reach,
    lacks_rights,
    public_url,
    store_name,
    unusable,
    wait_for_server,
)


def wrapped(kind: type[exc.DBAPIError], original: Exception, *, invalidated: bool = False) -> exc.DBAPIError:
    return kind("SELECT 1", {}, original, connection_invalidated=invalidated)


@pytest.mark.parametrize(
    "error",
    [
        wrapped(exc.OperationalError, sqlite3.OperationalError("database is locked")),
        wrapped(exc.OperationalError, psycopg.errors.AdminShutdown()),
        wrapped(exc.InterfaceError, psycopg.InterfaceError("the connection is closed")),
        wrapped(exc.InternalError, psycopg.errors.IdleInTransactionSessionTimeout()),
        wrapped(exc.InternalError, psycopg.errors.ReadOnlySqlTransaction()),
        wrapped(exc.ProgrammingError, psycopg.Error(), invalidated=True),
        exc.TimeoutError("no connection free"),
    ],
)
def test_what_waiting_helps_against(error: exc.SQLAlchemyError) -> None:
    assert is_out_of_reach(error)


@pytest.mark.parametrize(
    "error",
    [
        wrapped(exc.ProgrammingError, psycopg.errors.SyntaxError()),
        wrapped(exc.IntegrityError, sqlite3.IntegrityError("UNIQUE constraint failed")),
        wrapped(exc.InternalError, psycopg.errors.InFailedSqlTransaction()),
        wrapped(exc.DatabaseError, sqlite3.DatabaseError("malformed")),
        exc.NoResultFound(),
    ],
)
def test_what_it_does_not(error: exc.SQLAlchemyError) -> None:
    assert not is_out_of_reach(error)


def test_missing_rights_are_told_apart() -> None:
    assert lacks_rights(wrapped(exc.ProgrammingError, psycopg.errors.InsufficientPrivilege()))
    assert not lacks_rights(wrapped(exc.ProgrammingError, psycopg.errors.UndefinedTable()))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:secret@db:5433/jobs?options=-csecret", "postgresql://db:5433/jobs"),
        ("postgresql+psycopg://db/jobs", "postgresql://db/jobs"),
        ("sqlite:////data/scheduler.db", "/data/scheduler.db"),
    ],
)
def test_a_url_is_shown_without_secrets(url: str, shown: str) -> None:
    assert public_url(url) == shown


def test_a_store_has_one_name_wherever_its_volume_is_mounted() -> None:
    inside = store_name("sqlite:////app/userdata/scheduler.db", Path("/app/userdata"))
    assert inside == store_name("sqlite:////mnt/data/scheduler.db", Path("/mnt/data"))
    assert inside != store_name("sqlite:////app/userdata/other.db", Path("/app/userdata"))
    assert store_name("postgresql+psycopg://a:b@db/x", Path("/app/userdata")) == "postgresql://db/x"


def test_a_server_that_stays_away_is_given_up_with_one_line() -> None:
    engine = create_engine("postgresql+psycopg://me:secret@127.0.0.1:9/jobs")
    began = time.monotonic()
    with pytest.raises(StoreUnusable) as refused:
        wait_for_server(engine, "JOBSTORE_URL", patience_s=0.2)
    assert 0.2 <= time.monotonic() - began < 10
    line = str(refused.value)
    assert "\n" not in line
    assert "secret" not in line
    assert line.startswith("JOBSTORE_URL: the database at postgresql://127.0.0.1:9/jobs cannot be used: ")
    assert "Connection refused" in line


def test_a_file_is_not_waited_for(tmp_path: Path) -> None:
    wait_for_server(create_engine(f"sqlite:///{tmp_path}/missing/x.db"), "JOBSTORE_URL")


def test_a_folder_that_cannot_be_made_is_told_in_one_line() -> None:
    line = str(unusable("sqlite:////proc/x/scheduler.db", "DATABASE_URL", PermissionError(13, "Permission denied")))
    assert line.startswith("DATABASE_URL: the database at /proc/x/scheduler.db cannot be used: ")
