"""The audit log: who changed what, from where."""

from __future__ import annotations

from sqlalchemy import Engine

from app.db.clock import now_us
from app.db.engines import read_transaction, write_transaction
from app.repositories import accounts_repository as accounts

KEPT_DAYS = 365

_DAY = 86_400 * 1_000_000


def record_audit(
    database: Engine,
    *,
    actor: str,
    action: str,
    target: str,
    status: int = 0,
    address: str = "",
    request_id: str = "",
    detail: str | None = None,
) -> None:
    """Write one line; raises what the database raises."""
    with write_transaction(database) as connection:
        accounts.add_audit(
            connection,
            at=now_us(),
            actor=actor,
            action=action,
            target=target[:255],
            status=status,
            address=address,
            request_id=request_id,
            detail=detail,
        )


def purge_audit(database: Engine) -> None:
    """Drop lines older than a year; only reads when there are none."""
    before = now_us() - KEPT_DAYS * _DAY
    with read_transaction(database) as connection:
        if not accounts.has_audit_before(connection, before):
            return
    with write_transaction(database) as connection:
        accounts.purge_audit(connection, before)
