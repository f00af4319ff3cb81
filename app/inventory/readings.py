"""What a connector reads, whatever the kind of database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10
STATEMENT_TIMEOUT_S = 60
"""For one query. One that needs longer meets a server in trouble, and should not add to that."""

READ_TIMEOUT_S = 300
"""For everything that is read over one connection."""


class InstanceError(Exception):
    """An instance could not be read. The text is for people, in one line, without secrets."""


@dataclass(frozen=True)
class Account:
    """One account of an instance.

    host: where it may come from, MySQL's second half of an account's name; empty for other kinds.
    is_locked: it cannot log in (locked, no login right, validity over).
    privileges: JSON values only, lists sorted; the keys depend on the kind (see the connectors).
    """

    name: str
    host: str
    is_locked: bool
    is_superuser: bool
    privileges: Mapping[str, Any]


@dataclass(frozen=True)
class DatabaseSize:
    """The size of one database, in bytes, as its server accounts for it."""

    database: str
    size_bytes: int


@dataclass(frozen=True)
class Reading(Generic[T]):
    """What was read, sorted by name. unread: databases that exist but that the user has no right to read."""

    rows: Sequence[T]
    unread: Sequence[str] = ()


class Connector(Protocol):
    """An open connection to one instance, closed at the end of `with`. Any failure is an InstanceError."""

    has_accounts: bool
    """False for a kind of database that knows no accounts (SQLite)."""

    def accounts(self) -> Reading[Account]:
        """Every account but the server's own; `unread` names databases whose grants could not be read."""
        ...

    def sizes(self) -> Reading[DatabaseSize]:
        """Every database but templates and virtual ones."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
