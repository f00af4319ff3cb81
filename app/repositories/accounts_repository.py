"""Queries on users, failed logins and the audit log. Times are microseconds since the epoch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from app.db.account_tables import audit_log, failed_logins, users


@dataclass(frozen=True)
class User:
    """A row of `users`."""

    id: int
    username: str
    password_hash: str
    secret_digest: str | None
    session_stamp: str
    role: str
    is_active: bool


_USER_COLUMNS = (
    users.c.id,
    users.c.username,
    users.c.password_hash,
    users.c.secret_digest,
    users.c.session_stamp,
    users.c.role,
    users.c.is_active,
)


def user_by_name(connection: Connection, username: str) -> User | None:
    """The user of this exact name."""
    row = connection.execute(select(*_USER_COLUMNS).where(users.c.username == username)).one_or_none()
    return None if row is None else User(**row._mapping)


def user_by_id(connection: Connection, user_id: int) -> User | None:
    """The user of this id."""
    row = connection.execute(select(*_USER_COLUMNS).where(users.c.id == user_id)).one_or_none()
    return None if row is None else User(**row._mapping)


def usernames(connection: Connection, user_ids: Collection[int]) -> dict[int, str]:
    """The names of these users; those that are not there are left out."""
    rows = connection.execute(select(users.c.id, users.c.username).where(users.c.id.in_(user_ids)))
    return {row.id: row.username for row in rows}


def add_user(connection: Connection, *, now: int, **values: Any) -> None:
    """Add a user with the given columns."""
    connection.execute(insert(users).values(is_active=True, created_at=now, updated_at=now, **values))


def change_user(connection: Connection, user_id: int, *, now: int, **values: Any) -> None:
    """Change the given columns of a user."""
    connection.execute(update(users).where(users.c.id == user_id).values(updated_at=now, **values))


@dataclass(frozen=True)
class FailureCount:
    """How many logins failed lately, and when the first of them did (None for none)."""

    count: int
    first_at: int | None


def failures_of_pair(connection: Connection, address: str, account: str, since: int) -> FailureCount:
    """Failed logins to this account from this address."""
    return _failures(connection, failed_logins.c.address == address, failed_logins.c.account == account, since=since)


def failures_of_address(connection: Connection, address: str, since: int) -> FailureCount:
    """Failed logins from this address, to any account."""
    return _failures(connection, failed_logins.c.address == address, since=since)


def failures_of_account(connection: Connection, account: str, since: int) -> FailureCount:
    """Failed logins to this account, from any address."""
    return _failures(connection, failed_logins.c.account == account, since=since)


def _failures(connection: Connection, *conditions: Any, since: int) -> FailureCount:
    row = connection.execute(
        select(func.count(), func.min(failed_logins.c.failed_at)).where(failed_logins.c.failed_at > since, *conditions)
    ).one()
    return FailureCount(row[0], row[1])


def add_failure(connection: Connection, address: str, account: str, now: int) -> None:
    """Record a failed login."""
    connection.execute(insert(failed_logins).values(address=address, account=account, failed_at=now))


def forget_failures(connection: Connection, address: str, account: str) -> None:
    """Drop the failures of this address with this account."""
    connection.execute(
        delete(failed_logins).where(failed_logins.c.address == address, failed_logins.c.account == account)
    )


def forget_failures_until(connection: Connection, until: int) -> None:
    """Drop everybody's failures up to this time."""
    connection.execute(delete(failed_logins).where(failed_logins.c.failed_at <= until))


def add_audit(connection: Connection, **values: Any) -> None:
    """Write one line of the audit log."""
    connection.execute(insert(audit_log).values(**values))


def has_audit_before(connection: Connection, before: int) -> bool:
    """Whether the audit log holds lines older than this."""
    oldest = connection.execute(select(func.min(audit_log.c.at))).scalar_one()
    return oldest is not None and oldest < before


def purge_audit(connection: Connection, before: int) -> None:
    """Drop the lines older than this."""
    connection.execute(delete(audit_log).where(audit_log.c.at < before))
