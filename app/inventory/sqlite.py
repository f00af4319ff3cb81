"""Reads SQLite files: no accounts, one database."""

from __future__ import annotations

import sqlite3
from types import TracebackType
from typing import Self

from app.inventory.instances import SqliteInstance
from app.inventory.readings import CONNECT_TIMEOUT_S, Account, DatabaseSize, InstanceError, Reading


class SqliteConnector:
    """A read-only connection to one SQLite file."""

    has_accounts = False

    def __init__(self, instance: SqliteInstance) -> None:
        self._path = instance.path
        if not instance.path.is_file():
            raise InstanceError(f"no such file: {instance.path}")
        try:
            self._connection = sqlite3.connect(
                f"{instance.path.resolve().as_uri()}?mode=ro", uri=True, timeout=CONNECT_TIMEOUT_S
            )
        except sqlite3.Error as error:
            raise InstanceError(f"{instance.path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def accounts(self) -> Reading[Account]:
        """None: whoever can read the file can read all of it."""
        return Reading([])

    def sizes(self) -> Reading[DatabaseSize]:
        """The one database, `main`: its pages, with those that still wait in the WAL."""
        query = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        try:
            # A file that is no database shows so only when its schema is read.
            self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            (size,) = self._connection.execute(query).fetchone()
        except sqlite3.Error as error:
            raise InstanceError(f"{self._path}: {error}") from error
        return Reading([DatabaseSize("main", int(size))])
