"""The outbox table as its senders see it: rows are leased, sent, and deleted or given another time.

A lease pushes `next_try_at` ahead, so that senders of several nodes share the work; a node that dies in the middle
leaves rows that are due again when their lease ends. Rows to one address keep their order: as long as one of them is
leased or could not be delivered, the others wait. One that the receiver refused holds up nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Engine, Select, delete, func, or_, select, text, update

from app.db.engines import database_now_us, read_transaction, write_transaction
from app.db.jobstore_tables import outbox

Kind = Literal["alert", "ping"]

BATCH = 20
LEASE_S = 40.0
"""Longer than a batch takes (`sender.BATCH_S`) and one more request that is never answered."""
KEEP_S: dict[Kind, float] = {"alert": 7 * 86400.0, "ping": 3600.0}
"""A message that could not be delivered for so long is given up. A ping that late would tell of a past that the
receiver has long judged."""
MOST_ROWS = 10_000
"""Of each kind; beyond them the oldest are given up. A receiver that is down must not fill the disk."""
REFUSED = "refused: "
"""What `last_error` begins with where the receiver answered that it does not take this message."""

_SECOND = 1_000_000
_LEASING = 0x7768616C65
"""PostgreSQL's advisory lock of whoever is leasing: without it two nodes would take neighbouring rows of one address
side by side, because neither sees the other's lease yet."""


@dataclass(frozen=True, slots=True)
class Message:
    """A leased row. `payload` is JSON as text; `attempts` counts those that failed; `leased_until` is microseconds
    since the epoch and tells this lease from a later one."""

    id: str
    url: str | None
    payload: str
    attempts: int
    leased_until: int


@dataclass(frozen=True, slots=True)
class Retry:
    """A message that is tried again in `wait_s` seconds; `error` of the try that failed, None where none was made."""

    message: Message
    wait_s: float
    error: str | None = None


@dataclass(slots=True)
class Settlement:
    """What became of leased messages: gone (delivered or dropped), tried again later, untouched."""

    gone: list[str] = field(default_factory=list)
    retries: list[Retry] = field(default_factory=list)
    untouched: list[Message] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.gone or self.retries or self.untouched)


@dataclass(frozen=True, slots=True)
class GivenUp:
    """How many messages of a kind were given up, and the last error of the newest that had one."""

    kind: Kind
    count: int
    error: str | None


def lease(engine: Engine, kind: Kind) -> list[Message]:
    """The oldest messages that may be sent now, leased for LEASE_S seconds; empty where there is nothing to do."""
    with read_transaction(engine) as connection:  # looks once a second: no write lock while there is nothing
        if connection.execute(_sendable(kind, database_now_us(connection)).limit(1)).first() is None:
            return []
    with write_transaction(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LEASING})
        now = database_now_us(connection)
        until = now + round(LEASE_S * _SECOND)
        rows = connection.execute(_sendable(kind, now).with_for_update(skip_locked=True)).mappings().all()
        if rows:
            ids = [row["id"] for row in rows]
            connection.execute(update(outbox).where(outbox.c.id.in_(ids)).values(next_try_at=until))
    return [Message(leased_until=until, **row) for row in rows]


def settle(engine: Engine, settlement: Settlement) -> None:
    """Deletes what is gone and gives the rest its next time; one transaction. Safe to repeat."""
    with write_transaction(engine) as connection:
        now = database_now_us(connection)
        if settlement.gone:
            connection.execute(delete(outbox).where(outbox.c.id.in_(settlement.gone)))
        for retry in settlement.retries:
            values: dict[str, Any] = {"next_try_at": now + round(retry.wait_s * _SECOND)}
            if retry.error is not None:
                values |= {"attempts": outbox.c.attempts + 1, "last_error": retry.error}
            connection.execute(_still_leased(retry.message).values(**values))
        for message in settlement.untouched:
            connection.execute(_still_leased(message).values(next_try_at=now))


def give_up_old(engine: Engine) -> list[GivenUp]:
    """Deletes messages that are too old or too many; what was given up, by kind."""
    with read_transaction(engine) as connection:
        now = database_now_us(connection)
        if not any(connection.execute(select(outbox.c.id).where(old).limit(1)).first() for old in _all_old(now)):
            return []
    with write_transaction(engine) as connection:
        now = database_now_us(connection)
        return [given_up for kind in KEEP_S for given_up in _give_up(connection, kind, now)]


def try_all_again(engine: Engine, kind: Kind) -> None:
    """Makes every waiting message due now: whoever starts may have been given another address."""
    with write_transaction(engine) as connection:
        now = database_now_us(connection)
        # No lease reaches so far, so none that is being sent right now is touched.
        waiting = outbox.c.next_try_at > now + round(LEASE_S * _SECOND)
        connection.execute(update(outbox).where(outbox.c.kind == kind, waiting).values(next_try_at=now))


def _sendable(kind: Kind, now: int) -> Select[Any]:
    address = func.coalesce(outbox.c.url, "")
    other = outbox.alias()
    held = select(func.coalesce(other.c.url, "")).where(
        other.c.kind == kind,
        other.c.next_try_at > now,
        or_(other.c.last_error.is_(None), ~other.c.last_error.startswith(REFUSED)),
    )
    return (
        select(outbox.c.id, outbox.c.url, outbox.c.payload, outbox.c.attempts)
        .where(outbox.c.kind == kind, outbox.c.next_try_at <= now, address.not_in(held))
        .order_by(outbox.c.id)
        .limit(BATCH)
    )


def _still_leased(message: Message) -> Any:
    return update(outbox).where(outbox.c.id == message.id, outbox.c.next_try_at == message.leased_until)


def _all_old(now: int) -> Iterable[ColumnElement[bool]]:
    return (_old(kind, now) for kind in KEEP_S)


def _old(kind: Kind, now: int) -> ColumnElement[bool]:
    newest = outbox.alias()
    first_too_many = (
        select(newest.c.id).where(newest.c.kind == kind).order_by(newest.c.id.desc()).offset(MOST_ROWS).limit(1)
    )
    too_old = outbox.c.created_at < now - round(KEEP_S[kind] * _SECOND)
    return (outbox.c.kind == kind) & or_(too_old, outbox.c.id <= first_too_many.scalar_subquery())


def _give_up(connection: Connection, kind: Kind, now: int) -> Collection[GivenUp]:
    old = _old(kind, now)
    error = connection.execute(
        select(outbox.c.last_error).where(old, outbox.c.last_error.is_not(None)).order_by(outbox.c.id.desc()).limit(1)
    ).scalar_one_or_none()
    count = connection.execute(delete(outbox).where(old)).rowcount
    return [GivenUp(kind, count, error)] if count else []
