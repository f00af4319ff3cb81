"""Engines and transactions of both databases, for SQLite and, by the same calls, for PostgreSQL."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, OperationalError

from app.db.clock import now_us
from app.db.connecting import Connector

REQUEST_BUSY_TIMEOUT_S = 30.0
LOOP_BUSY_TIMEOUT_S = 0.8
"""The scheduler's loop looks at least once a second, so it must not wait longer for a lock."""

IDLE_IN_TRANSACTION_S = 1.5
"""PostgreSQL: a process that froze in a transaction withholds its rows from all others no longer than this."""
STATEMENT_TIMEOUT_S = 60.0
SILENT_CONNECTION_S = 10
"""Well below the watchdog's limit: a database behind a broken network must not look like a loop that hangs."""

RECONNECT_S = 5.0
"""A request whose connection is gone waits so long for the server to come back: about as long as a restart takes."""

_WRITE = "whalefall_write"


class DamagedDatabase(Exception):
    """The database file cannot be trusted. It is left as it is."""


def sqlite_path(url: str | URL) -> Path | None:
    """The file of a SQLite `url`; None for any other database or an in-memory one."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        return None
    return Path(parsed.database)


def create_engine_for(
    url: str | URL, *, busy_timeout_s: float = REQUEST_BUSY_TIMEOUT_S, reconnect_s: float = 0.0
) -> Engine:
    """An engine for `url`; nothing is opened before the first use.

    SQLite: WAL, `synchronous=FULL` (a commit that was answered survives a power cut), and a lock is waited
    for up to `busy_timeout_s` seconds. Missing parent folders are made.

    PostgreSQL: a lock is waited for as long; a transaction that its process leaves open, because it froze or was cut
    off, is ended by the server after IDLE_IN_TRANSACTION_S, and a silent connection is given up after
    SILENT_CONNECTION_S. What the URL itself says of these wins. A server that is away is waited for up to `reconnect_s`
    seconds where a connection is wanted.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        engine = create_engine(parsed, pool_pre_ping=True, connect_args=_libpq_settings(parsed, busy_timeout_s))
        event.listen(engine, "do_connect", Connector(reconnect_s))
        return engine
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True)
    path = sqlite_path(parsed)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        parsed,
        connect_args={"timeout": busy_timeout_s, "check_same_thread": False, "isolation_level": None},
        pool_size=5,
        max_overflow=20,
        pool_timeout=REQUEST_BUSY_TIMEOUT_S,
    )
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _libpq_settings(url: URL, busy_timeout_s: float) -> dict[str, str]:
    limits = {
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_S,
        "lock_timeout": busy_timeout_s,
        "statement_timeout": STATEMENT_TIMEOUT_S,
    }
    options = [f"-c {name}={round(seconds * 1000)}" for name, seconds in limits.items()]
    settings = {
        "connect_timeout": f"{SILENT_CONNECTION_S}",
        "tcp_user_timeout": f"{SILENT_CONNECTION_S * 1000}",
        "keepalives_idle": f"{SILENT_CONNECTION_S}",
        "keepalives_interval": "2",
        "keepalives_count": "3",
        **{name: value for name, value in url.query.items() if isinstance(value, str)},
    }
    settings["options"] = " ".join([*options, settings.get("options", "")]).strip()
    return settings


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.text_factory = _text
    # The busy timeout is set by the driver's `timeout` before any of these can meet a lock.
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _text(value: bytes) -> str:
    # A row with damaged bytes must not fail the query that selects it among others; written out, a damaged byte
    # is still no valid JSON, so that such a job is set aside.
    return value.decode("utf-8", "backslashreplace")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later fails at once with "database is locked" when another
    # one wrote in between, whatever the busy timeout; one that will write takes the lock at its beginning.
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that may write; commits at the end, rolls back on an exception."""
    with engine.connect().execution_options(**{_WRITE: True}) as connection, connection.begin():
        yield connection


@contextmanager
def read_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads: one consistent view, never waiting for a writer."""
    with engine.connect() as connection, connection.begin():
        yield connection


def database_now_us(connection: Connection) -> int:
    """Now in microseconds since the epoch: the database's clock where it has one of its own, so that nodes
    with different clocks agree."""
    if connection.dialect.name == "postgresql":
        return int(
            connection.execute(text("SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint")).scalar_one()
        )
    return now_us()


def check_integrity(engine: Engine) -> None:
    """Raises DamagedDatabase when the SQLite file behind `engine` fails `quick_check` or is no database."""
    path = sqlite_path(engine.url)
    if path is None or not path.exists():
        return
    keep = f"The file {path} is kept as it is; restore a backup, or move it aside with its -wal and -shm files."
    try:
        with engine.connect() as connection:
            finding = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    except OperationalError:
        raise  # locked, unreadable, disk full: not a verdict on the content
    except DatabaseError as error:
        raise DamagedDatabase(f"The database is damaged: {error.orig}. {keep}") from error
    if finding != "ok":
        raise DamagedDatabase(f"The database is damaged: {finding}. {keep}")
