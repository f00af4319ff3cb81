"""Attempts: whether a run that failed or was lost gets another one, and when."""

import random
from typing import Any

from app.db.jobstore_tables import Row
from app.ledger.run_ids import new_run_id

LONGEST_DELAY_S = 3600
"""Doubling ends here, or at the job's own `retry_delay` where that is longer."""
JITTER = 0.2
"""At most this share is added to a delay, so that what failed together does not come back together."""


def delay_s(attempt: int, retry_delay: int) -> float:
    """Seconds between the end of `attempt` (1 is the first) and the start of the next one.

    Exponential backoff: `retry_delay` doubles with each attempt.
    """
    longest = max(LONGEST_DELAY_S, retry_delay)
    doubled = min(longest, retry_delay * 2 ** min(attempt - 1, 20))
    return doubled * (1 + random.uniform(0, JITTER))  # noqa: S311 - spread, not secrecy


def may_fail_again(*, attempt: int, max_attempts: int) -> bool:
    """Whether a run that failed has an attempt left."""
    return attempt < max_attempts


def may_be_lost_again(row: Row) -> bool:
    """Whether a lost run (a row of `runs`) is run again: only where its job says so, because nobody knows how far it
    came; once where no attempts are allowed, as a task that takes its process with it would do so for ever."""
    return bool(row["retry_on_loss"]) and row["attempt"] < max(2, row["max_attempts"])


def next_attempt(row: Row, *, owner: str, now: int, not_before: int | None, reason: str) -> dict[str, Any]:
    """The row of the attempt that follows the one in `row`; `now` and `not_before` in microseconds."""
    again = dict(row)
    again.update(
        run_id=new_run_id(now),
        first_run_id=row["first_run_id"] or row["run_id"],
        attempt=row["attempt"] + 1,
        outcome="pending",
        owner=owner,
        epoch=1,
        not_before=not_before,
        reason=reason,
        error=None,
        node=None,
        claimed_at=now,
        started_at=None,
        finished_at=None,
        cancel_requested_at=None,
        cancel_requested_by=None,
    )
    return again
