"""Several edits of the ledger in one transaction: all of them, or none."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from app.ledger.claim import claim
from app.ledger.ledger import Ledger


@contextmanager
def together(ledger: Ledger) -> Iterator[Ledger]:
    """Edits made through the yielded ledger share one transaction, which an exception rolls back whole.

    Its reads do not see the edits; they are for deciding before the first one.
    """
    with ledger._edit() as (connection, now):
        yield _InOneTransaction(ledger, connection, now)


class _InOneTransaction(Ledger):
    def __init__(self, outer: Ledger, connection: Connection, now: int) -> None:
        super().__init__(outer.engine)
        self.attach(outer._owner, lambda: None)  # the outer ledger wakes the loop, after the commit
        self._connection = connection
        self._now = now

    @contextmanager
    def _edit(self, job_id: str | None = None) -> Iterator[tuple[Connection, int]]:
        if job_id is not None:
            claim(self._connection, owner=self._owner, now=self._now, only=job_id)
        yield self._connection, self._now
