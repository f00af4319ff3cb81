"""Repeated requests: a key that a client sends again with the same request makes the repeat harmless.

The key is inserted in the transaction of what was asked for, so that both are on record or neither.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from app.db.jobstore_tables import idempotency_keys
from app.errors import _N, ValidationError

KEPT_S = 86_400
"""How long a key is remembered, in seconds."""

HEADER = "Idempotency-Key"


@dataclass(frozen=True, slots=True)
class RepeatKey:
    """What identifies a request: `scope` (what is asked, by whom), the client's `key`, and the `fingerprint` of what
    the request says."""

    scope: str
    key: str
    fingerprint: str


class RepeatedRequest(Exception):
    """The request was carried out before; `resource` is the id of what came of it. Nothing was changed."""

    def __init__(self, resource: str) -> None:
        super().__init__(resource)
        self.resource = resource


def remember(connection: Connection, repeat: RepeatKey, *, resource: str, now: int) -> None:
    """Puts the key on record for `resource`, in the caller's write transaction.

    RepeatedRequest when it is there already; ValidationError when it was sent with another request.
    """
    connection.execute(delete(idempotency_keys).where(idempotency_keys.c.created_at < _oldest(now)))
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    added = connection.execute(
        dialect.insert(idempotency_keys)
        .values(
            scope=repeat.scope,
            key=repeat.key,
            fingerprint=repeat.fingerprint,
            resource=resource,
            created_at=now,
        )
        .on_conflict_do_nothing()
        .execution_options(preserve_rowcount=True)
    )
    if added.rowcount == 1:
        return
    check(connection, repeat, now=now)


def check(connection: Connection, repeat: RepeatKey, *, now: int) -> None:
    """Before anything is done for a request: whether it was done already.

    RepeatedRequest when the key is on record for it; ValidationError when it was sent with another request. It only
    saves the work and keeps the answer the same: `remember` decides.
    """
    there = connection.execute(
        select(idempotency_keys.c.fingerprint, idempotency_keys.c.resource).where(
            idempotency_keys.c.scope == repeat.scope,
            idempotency_keys.c.key == repeat.key,
            idempotency_keys.c.created_at >= _oldest(now),
        )
    ).one_or_none()
    if there is None:
        return
    if there.fingerprint != repeat.fingerprint:
        raise ValidationError(
            _N("同一个 Idempotency-Key 已用于另一个请求"),
            field=HEADER,
            value=repeat.key,
            accepted=_N("每个新请求使用新的键"),
        )
    raise RepeatedRequest(there.resource)


def _oldest(now: int) -> int:
    return now - KEPT_S * 1_000_000
