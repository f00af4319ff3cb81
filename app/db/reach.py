"""Whether a store can be used: what its failures mean, and how long a start waits for it."""

import time
from pathlib import Path

import structlog
from sqlalchemy import Engine, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.db.connecting import REFUSALS
from app.db.engines import sqlite_path

START_PATIENCE_S = 60.0
"""How long a start waits for a database server: it may have been started together with this process."""
_PAUSE_S = 2.0

_PASSING_SQLSTATES = frozenset(
    {
        "25006",  # read-only: a standby that is about to take over
        "25P03",  # ended by idle_in_transaction_session_timeout
    }
)
"""What PostgreSQL's driver calls internal errors, although the next attempt may succeed."""

log = structlog.get_logger(__name__)


class StoreUnusable(Exception):
    """This process cannot, or must not, use its store. One line that says why and what to do; nothing was changed."""


def is_out_of_reach(error: SQLAlchemyError) -> bool:
    """Whether `error` is a store that is locked, full, disconnected or without a free connection, and no error in a
    statement or its data: trying again later helps."""
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _PASSING_SQLSTATES


def is_disconnect(error: BaseException | None) -> bool:
    """Whether `error` is a connection that its server ended, or one that could not be had."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, OperationalError) and getattr(error.orig, "sqlstate", "") is None


def lacks_rights(error: SQLAlchemyError) -> bool:
    """Whether PostgreSQL knows the user, and does not let it do what it asked for."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == "42501"


def public_url(url: str | URL) -> str:
    """Where a store is, without user, password and options; of SQLite its file."""
    parsed = make_url(url)
    path = sqlite_path(parsed)
    if path is not None:
        return str(path)
    plain = URL.create(parsed.get_backend_name(), host=parsed.host, port=parsed.port, database=parsed.database)
    return plain.render_as_string()


def store_name(url: str | URL, userdata: Path) -> str:
    """The same for all processes that mean one store, though they may see its volume at different paths."""
    path = sqlite_path(url)
    if path is not None and path.is_relative_to(userdata):
        return f"{path.relative_to(userdata)} in userdata"
    return public_url(url)


def cause_of(error: SQLAlchemyError) -> str:
    """What the driver said, in one line."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def wait_for_server(engine: Engine, variable: str, *, patience_s: float = START_PATIENCE_S) -> None:
    """Returns when the database server answers; at once for a SQLite file, which nobody is about to start.

    StoreUnusable, naming the `variable` that points at it, when it refuses this process, or when it is still out of
    reach after `patience_s` seconds. Each failed attempt is one line in the log.
    """
    if sqlite_path(engine.url) is not None:
        return
    deadline = time.monotonic() + patience_s
    attempt = 0
    while True:
        attempt += 1
        try:
            with engine.connect():
                return
        except OperationalError as error:
            cause = cause_of(error)
            left = deadline - time.monotonic()
            if left <= 0 or any(words in cause for words in REFUSALS):
                raise unusable(engine.url, variable, error) from error
            where = public_url(engine.url)
            log.warning(
                "waiting for the database",
                variable=variable,
                at=where,
                attempt=attempt,
                left_s=round(left),
                cause=cause,
            )
            time.sleep(min(_PAUSE_S, left))


def unusable(url: str | URL, variable: str, error: SQLAlchemyError | OSError) -> StoreUnusable:
    """The line about a store that failed at the start."""
    cause = cause_of(error) if isinstance(error, SQLAlchemyError) else str(error)
    return StoreUnusable(
        f"{variable}: the database at {public_url(url)} cannot be used: {cause}; nothing was changed in it."
        f" See whether it runs and whether {variable} is right"
    )
