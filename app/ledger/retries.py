"""Attempts: whether a run that failed or was lost gets another one, and when."""

import random
from typing import Any

from sqlalchemy import and_, exists, not_, or_, select

from app.db.jobstore_tables import Row, jobs, runs
from app.ledger.run_ids import new_run_id

LONGEST_DELAY_S = 3600
"""Doubling ends here, or at the job's own `retry_delay` where that is longer."""
JITTER = 0.2
"""At most this share is added to a delay, so that what failed together does not come back together."""

IS_STOPPED = and_(
    runs.c.kind == "schedule",
    exists(
        select(jobs.c.id).where(
            jobs.c.id == runs.c.job_id, or_(jobs.c.is_paused, not_(jobs.c.is_enabled), not_(jobs.c.is_active))
        )
    ),
)
"""Condition for scheduled runs whose job was paused, disabled or deleted since: they get no further attempt."""


def delay_s(attempt: int, retry_delay: int) -> float:
    """Seconds between the end of `attempt` (1 is the first) and the start of the next one.

    Exponential backoff: `retry_delay` doubles with each attempt.
    """
    longest = max(LONGEST_DELAY_S, retry_delay)
    doubled = min(longest, retry_delay << min(attempt - 1, 20))
    return doubled * (1 + random.uniform(0, JITTER))  # noqa: S311 - spread, not secrecy


def after_failure(row: Row, *, owner: str, now: int) -> dict[str, Any]:
    """The attempt that follows the failed run in `row` of `runs`, after its delay; `now` in microseconds."""
    delay = delay_s(row["attempt"], row["retry_delay"])
    reason = f"attempt {row['attempt'] + 1} of {row['max_attempts']}, {delay:.0f} s after run {row['run_id']} failed"
    return _next_attempt(row, owner=owner, now=now, not_before=now + round(delay * 1_000_000), reason=reason)


def after_loss(row: Row, *, owner: str, now: int) -> dict[str, Any] | None:
    """The attempt that follows the lost run in `row`, at once; None when there is none.

    Only where its job says `retry_on_loss`, because nobody knows how far it came; once where no further attempts are
    allowed, as a task that takes its process with it would do so for ever; never when somebody wanted it cancelled.
    """
    if not row["retry_on_loss"] or row["attempt"] >= max(2, row["max_attempts"]) or row["cancel_requested_at"]:
        return None
    reason = f"run again because run {row['run_id']} was lost"
    return _next_attempt(row, owner=owner, now=now, not_before=None, reason=reason)


def _next_attempt(row: Row, *, owner: str, now: int, not_before: int | None, reason: str) -> dict[str, Any]:
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
