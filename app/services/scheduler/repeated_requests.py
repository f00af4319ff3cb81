"""A request that is sent again with its key: found before its input is checked.

What was accepted a minute ago may be refused now (a moment that has passed, a job that is deleted), and a repeat must
be answered as the first was.
"""

from __future__ import annotations

from sqlalchemy import Engine

from app.db.engines import database_now_us, read_transaction
from app.ledger.repeats import RepeatKey, check


def refuse_repeat(jobstore: Engine, repeat: RepeatKey | None) -> None:
    """RepeatedRequest when the request was carried out before; ValidationError when its key came with another one."""
    if repeat is None:
        return
    with read_transaction(jobstore) as connection:
        check(connection, repeat, now=database_now_us(connection))
