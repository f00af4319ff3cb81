"""Real stores whose every transaction is taken in steps: SQLite files and PostgreSQL.

SQLite lets one writer in at a time and nobody sees into its transaction, so its steps are the beginning, the commit,
and the moment after. PostgreSQL lets all in at once: there every statement is a step, and a step may be blocked.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Engine, MetaData, UniqueConstraint, delete, event
from sqlalchemy.exc import DBAPIError

from app.db.engines import create_engine_for, write_transaction
from app.db.jobstore_tables import runs
from app.db.metadata import jobstore_metadata
from app.db.migrate import ensure_schema
from tests.model.steps import Actor, Stepper


class Store:
    """The store under test. `committed` is told of an actor's commit right after it came through."""

    def __init__(self, engine: Engine, stepper: Stepper, broken: type[Exception]) -> None:
        self.engine, self.stepper, self.broken = engine, stepper, broken
        self.outages = (DBAPIError, broken)
        """What the code under test must live with; any other error in it is a bug."""
        self.committed: Callable[[Actor], None] = lambda _actor: None
        self._take_in_steps()

    def clear(self) -> None:
        """Empties every table."""
        with write_transaction(self.engine) as connection:
            for table in jobstore_metadata.sorted_tables:
                connection.execute(delete(table))

    def make_tables(self, *, unique_fires: bool = True) -> None:
        """The schema of this release; a mutant's has no unique key on the fires."""
        ensure_schema(self.engine, "jobstore")
        if unique_fires:
            return
        free = MetaData()
        table = runs.to_metadata(free)
        for constraint in [one for one in table.constraints if isinstance(one, UniqueConstraint)]:
            table.constraints.remove(constraint)
        with write_transaction(self.engine) as connection:
            table.drop(connection)
            table.create(connection)

    def close(self) -> None:
        """Closes every connection."""
        self.engine.dispose()

    def evict(self, actor: Actor) -> None:
        """Ends the actor's open transaction from outside, where the database can do that."""

    def before_statement(self, statement: str, cursor: Any) -> None:
        """A point before each statement that is a step here."""
        raise NotImplementedError

    def after_statement(self, statement: str) -> None:
        """Notes what a statement that was executed holds."""

    def after_transaction(self) -> None:
        """Notes that the actor's transaction has ended."""

    def fail(self, what: str) -> Exception:
        """The driver's error of a database that is away."""
        return self.broken(f"made by the search: {what}")

    def _take_in_steps(self) -> None:
        dialect: Any = self.engine.dialect

        def stepped(execute: Callable[..., Any]) -> Callable[..., Any]:
            def step(cursor: Any, statement: str, *rest: Any, **named: Any) -> Any:
                self.before_statement(statement, cursor)
                result = execute(cursor, statement, *rest, **named)
                self.after_statement(statement)
                return result

            return step

        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            setattr(dialect, name, stepped(getattr(dialect, name)))
        commit = dialect.do_commit

        def do_commit(connection: Any) -> None:
            if self.stepper.point("commit") == "error":
                raise self.fail("the commit did not come through")
            commit(connection)
            actor = self.stepper.actor
            self.after_transaction()
            if actor is not None:
                self.committed(actor)
                actor.backend = None
            if self.stepper.point("committed") == "error":
                raise self.fail("the commit came through, its answer did not")

        def ending(end: Callable[[Any], None]) -> Callable[[Any], None]:
            def step(connection: Any) -> None:
                end(connection)
                self.after_transaction()
                if (actor := self.stepper.actor) is not None:
                    actor.backend = None

            return step

        dialect.do_commit = do_commit
        for name in ("do_rollback", "do_close", "do_terminate"):
            setattr(dialect, name, ending(getattr(dialect, name)))


class SQLiteStore(Store):
    """A database file. A write transaction is one step for all others, because SQLite makes it one."""

    def __init__(self, path: Path) -> None:
        # No timeout: the search decides whether a second writer waits or finds the database locked.
        engine = create_engine_for(f"sqlite:///{path}", busy_timeout_s=0)
        super().__init__(engine, Stepper(), sqlite3.OperationalError)
        self.writer: Actor | None = None
        event.listen(engine, "connect", _do_not_sync)

    def before_statement(self, statement: str, cursor: Any) -> None:
        if not statement.startswith("BEGIN"):
            return
        writes = statement == "BEGIN IMMEDIATE"
        order = self.stepper.point("begin" if writes else "read", ready=lambda: not writes or self.writer is None)
        if order == "error":
            raise self.fail("no transaction could be begun")

    def after_statement(self, statement: str) -> None:
        if statement == "BEGIN IMMEDIATE" and (actor := self.stepper.actor) is not None:
            self.writer, actor.began = actor, self.stepper.steps

    def after_transaction(self) -> None:
        if self.stepper.actor is not None and self.writer is self.stepper.actor:
            self.writer = None


def _do_not_sync(connection: sqlite3.Connection, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF")  # power cuts are not in this model, and a sync is its slowest part


class PostgreSQLStore(Store):
    """A PostgreSQL database: transactions are open side by side, and a statement may wait for another's locks."""

    def __init__(self, url: str) -> None:
        self._monitor = psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True)
        # The search holds transactions open for as long as it likes. A deadlock is told soon.
        limits = "idle_in_transaction_session_timeout=0 lock_timeout=0 deadlock_timeout=100 synchronous_commit=off"
        options = "%20".join(f"-c%20{limit.replace('=', '%3D')}" for limit in limits.split())
        engine = create_engine_for(f"{url}?options={options}")
        super().__init__(engine, Stepper(self._waits), psycopg.OperationalError)

    def before_statement(self, statement: str, cursor: Any) -> None:
        actor = self.stepper.actor
        if actor is None:
            return
        words = statement.split()
        order = self.stepper.point(f"{words[0].lower()} in {'a' if actor.backend else 'a new'} transaction")
        if order == "error":
            raise self.fail(f"{words[0]} was not answered")
        if actor.backend is None:
            actor.backend, actor.began = cursor.connection.info.backend_pid, self.stepper.steps

    def evict(self, actor: Actor) -> None:
        if actor.backend is not None:
            self._monitor.execute("SELECT pg_terminate_backend(%s)", (actor.backend,))
            actor.backend = None

    def close(self) -> None:
        super().close()
        self._monitor.close()

    def _waits(self, actor: Actor) -> bool:
        found = self._monitor.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", (actor.backend,)).fetchone()
        return bool(found and found[0])
