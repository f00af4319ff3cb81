"""Claim before run: in one transaction the due moments get their rows, and the jobs their next run time."""

import logging
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, exists, func, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.db.jobstore_tables import IS_ACTIVE, Row, holds, jobs, runs
from app.ledger import failpoints
from app.ledger.fates import Decision, Fold, decide, fold_moments
from app.ledger.jobs import read_object, what_is_unreadable
from app.ledger.outbox import Event, announce
from app.ledger.run_ids import new_run_id
from app.ledger.runs import TICKET_COLUMNS, Ticket

logger = logging.getLogger(__name__)

JOBS_PER_LOOK = 5000
"""Bounds one transaction; what is beyond it is due at the next look, which follows at once."""

IDS_PER_QUERY = 10_000
"""A statement of PostgreSQL takes 65,535 parameters."""

LEFT_TO_OTHERS_US = 500_000
"""So long (microseconds) a node that has no place free leaves what is due to the others; then anybody takes it."""

_REASONS = {
    "missed": "later than the grace time of {grace} s when the scheduler looked",
    "coalesced": "folded into a later moment that was due as well",
    "skipped": "max_instances ({instances}) was reached",
}

CLAIM_COLUMNS = [
    *(jobs.c.id, jobs.c.task, jobs.c.trigger, jobs.c.kwargs, jobs.c.next_run_time, jobs.c.misfire_grace_time),
    *(jobs.c.coalesce, jobs.c.max_instances, jobs.c.priority, jobs.c.executor, jobs.c.retry_on_loss),
    *(jobs.c.max_attempts, jobs.c.retry_delay, jobs.c.soft_time_limit, jobs.c.time_limit),
]
"""What a claim reads of a job."""
_COPIED = (
    *("task", "priority", "executor", "max_instances", "misfire_grace_time", "retry_on_loss", "max_attempts"),
    *("retry_delay", "soft_time_limit", "time_limit"),
)
"""What a run takes over from its job, as it stands at the claim."""

ADVANCE = (
    update(jobs)
    .where(jobs.c.id == bindparam("b_id"), jobs.c.next_run_time == bindparam("b_claimed"))
    .values(next_run_time=bindparam("b_next"))
)
"""Moves jobs on from the moment that was claimed: b_id, b_claimed, b_next."""


@dataclass(slots=True)
class Claimed:
    """What one look took: the runs to start, and the folds by outcome, for counters and events.

    `withheld`: something was due, and none of it could be taken.
    """

    tickets: list[Ticket] = field(default_factory=list)
    folded: list[tuple[str, Fold]] = field(default_factory=list)  # (job id, fold)
    more_due: bool = False
    withheld: bool = False


def is_due(now: int | ColumnElement[int]) -> ColumnElement[bool]:
    """Condition for jobs with a moment due at `now`."""
    return and_(jobs.c.next_run_time <= now, jobs.c.problem.is_(None))


def is_held() -> ColumnElement[bool]:
    """Condition: a hold is on record (app/ledger/holds.py)."""
    return exists(select(holds.c.name))


def due_jobs(
    now: int, *, only: str | None = None, limit: int = JOBS_PER_LOOK, executor: str | None = None
) -> Select[Any]:
    """The jobs with a moment due at `now`, the most urgent first; rows that another node claims are passed over."""
    query = select(*CLAIM_COLUMNS).where(is_due(now))
    if only is not None:
        # An edit waits for a claim that is under way; without the lock both would insert the same moments.
        return query.where(jobs.c.id == only).with_for_update()
    query = query.where(~is_held())
    if executor is not None:
        query = query.where(jobs.c.executor == executor)
    return (
        query.order_by(jobs.c.priority.desc(), jobs.c.next_run_time, jobs.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)  # PostgreSQL; SQLite's write lock is held already and it ignores this
    )


def _due_with_room(connection: Connection, now: int, room: Mapping[str, int]) -> tuple[list[Row], bool]:
    """Of each executor as many due jobs as it has places, and all that has been left to other nodes for a while;
    whether there may be more of them.

    One query for each: the places of one executor are none of another's.
    """
    queries = [
        due_jobs(now, executor=executor, limit=min(places, JOBS_PER_LOOK))
        for executor, places in room.items()
        if places > 0
    ]
    found: dict[str, Row] = {}
    more = False
    for query in (*queries, due_jobs(now - LEFT_TO_OTHERS_US - 1)):
        rows = connection.execute(query).mappings().all()
        more |= len(rows) == JOBS_PER_LOOK
        found.update((row["id"], row) for row in rows)
    return list(found.values()), more


def claim(
    connection: Connection,
    *,
    owner: str,
    now: int,
    only: str | None = None,
    room: Mapping[str, int] | None = None,
    alerts: bool = False,
) -> Claimed:
    """Claims every moment due at `now` (microseconds) for the node `owner`, inside the caller's write transaction.

    `only` limits it to one job: what an edit does before it changes the trigger. `room` (free places by executor)
    limits it to about as many as there are places, for a node that is not alone; None takes all. `alerts`: missed
    moments are announced. Nothing may be started before the transaction is committed. A job whose row cannot be
    read is set aside, with its content untouched.
    """
    rows: Sequence[Row]
    if room is None or only is not None:
        rows = connection.execute(due_jobs(now, only=only)).mappings().all()
        more_due = len(rows) == JOBS_PER_LOOK
    else:
        rows, more_due = _due_with_room(connection, now, room)
    if not rows:
        return Claimed()
    active = active_counts(connection)
    held = only is not None and connection.execute(select(is_held())).scalar_one()
    claimed = Claimed(more_due=more_due)
    new_rows: list[dict[str, Any]] = []
    advances: list[dict[str, Any]] = []
    for row in rows:
        job_id = row["id"]
        try:
            read_object(row, "kwargs")
            free = row["max_instances"] - active.get(job_id, 0)
            decision = _settled_while_held(row, now) if held else _decided(row, now, free)
        except Exception as error:  # whatever the row holds, the other jobs must fire
            _set_aside(connection, job_id, error)
            continue
        claimed.more_due |= decision.next_moment is not None and decision.next_moment <= now
        for fold in decision.folds:
            values = run_values(row, fold, owner=owner, now=now)
            if held:
                values["reason"] = "the job was changed while all jobs were held"
            new_rows.append(values)
            if fold.fate != "run":
                claimed.folded.append((job_id, fold))
        advances.append({"b_id": job_id, "b_claimed": row["next_run_time"], "b_next": decision.next_moment})
    claimed.tickets = insert_runs(connection, new_rows)
    failpoints.reach("claim.inserted")
    if advances:
        connection.execute(ADVANCE, advances)
    announce(connection, [_missed_event(row) for row in new_rows if row["outcome"] == "missed"], alerts=alerts, now=now)
    return claimed


def _decided(row: Row, now: int, free: int) -> Decision:
    return decide(
        trigger=row["trigger"],
        due=row["next_run_time"],
        now=now,
        grace_s=row["misfire_grace_time"],
        coalesce=row["coalesce"],
        free=free,
    )


def _settled_while_held(row: Row, now: int) -> Decision:
    """An edit takes a job's due moments along; while all is held, none of them may start."""
    fold, following = fold_moments(row["trigger"], "missed", row["next_run_time"], now)
    return Decision((fold,), following)


def active_counts(connection: Connection, job_id: str | None = None) -> dict[str, int]:
    """How many runs of each job are pending or running, on all nodes together."""
    # An expression, so that the planner takes the small index of active runs; for the column itself it walks the
    # one that leads with it, and with that all runs that there ever were.
    job = func.coalesce(runs.c.job_id, literal("", literal_execute=True))
    query = select(job, func.count()).where(IS_ACTIVE).group_by(job)
    if job_id is not None:
        query = query.where(job == job_id)
    return {job: count for job, count in connection.execute(query)}  # noqa: C416 - a Row is no pair to mypy


def find_crowded(connection: Connection, tickets: Sequence[Ticket]) -> set[str]:
    """The run ids among `tickets` that must wait, because their job has `max_instances` going, wherever.

    A claim leaves more runs pending than there are instances only where a job does not coalesce; these go one after
    the other, in the order of their ids. Every node sees the same order, so that no lock is needed: a run counts
    all that are running or come before it.
    """
    active = active_counts(connection)
    crowded_jobs = {t.job_id for t in tickets if active.get(t.job_id, 0) > t.max_instances}
    if not crowded_jobs:
        return set()
    job = func.coalesce(runs.c.job_id, literal("", literal_execute=True))
    query = select(job, runs.c.run_id, runs.c.outcome).where(IS_ACTIVE, job.in_(crowded_jobs))
    running: dict[str, set[str]] = {job_id: set() for job_id in crowded_jobs}
    waiting: dict[str, list[str]] = {job_id: [] for job_id in crowded_jobs}
    for job_id, run_id, outcome in connection.execute(query):
        if outcome == "running":
            running[job_id].add(run_id)
        else:
            waiting[job_id].append(run_id)
    for run_ids in waiting.values():
        run_ids.sort()  # not in the query: for its order a planner would walk all runs that there ever were
    return {
        ticket.run_id
        for ticket in tickets
        # One that is running on record, by a commit of unknown fate, has its instance: it would wait for those that
        # wait for it.
        if ticket.job_id in crowded_jobs
        and ticket.run_id not in running[ticket.job_id]
        and ticket.max_instances <= len(running[ticket.job_id]) + bisect_left(waiting[ticket.job_id], ticket.run_id)
    }


def insert_runs(connection: Connection, rows: Sequence[dict[str, Any]]) -> list[Ticket]:
    """Inserts run rows and gives the tickets of those that are pending.

    A moment that is on record already (a clock that was set back, an edit that brings an old moment again) is
    left as it is and gets no ticket: a fire starts at most once.
    """
    if not rows:
        return []
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(runs).on_conflict_do_nothing()
    result = connection.execution_options(preserve_rowcount=True).execute(statement, list(rows))
    pending = [row for row in rows if row["outcome"] == "pending"]
    if result.rowcount != len(rows):
        ids = [row["run_id"] for row in pending]
        there: set[str] = set()
        for begin in range(0, len(ids), IDS_PER_QUERY):
            some = runs.c.run_id.in_(ids[begin : begin + IDS_PER_QUERY])
            there.update(connection.execute(select(runs.c.run_id).where(some)).scalars())
        for row in pending:
            if row["run_id"] not in there:
                logger.warning(
                    "job %s: its moment %s is on record already and does not start again",
                    row["job_id"],
                    row["scheduled_for"],
                )
        pending = [row for row in pending if row["run_id"] in there]
    return [Ticket(**{name: row[name] for name in TICKET_COLUMNS}) for row in pending]


def run_values(row: Row, fold: Fold, *, owner: str, now: int) -> dict[str, Any]:
    """The run row of a fold of the job's moments; `row` has CLAIM_COLUMNS."""
    runs_now = fold.fate == "run"
    reason = None
    if not runs_now:
        reason = _REASONS[fold.fate].format(grace=row["misfire_grace_time"], instances=row["max_instances"])
    return {
        "run_id": new_run_id(now),
        "job_id": row["id"],
        "kind": "schedule",
        "scheduled_for": fold.last,
        "scheduled_from": None if fold.count == 1 else fold.first,
        "count": fold.count,
        "attempt": 1,
        "outcome": "pending" if runs_now else fold.fate,
        "reason": reason,
        "owner": owner if runs_now else "",
        "epoch": 1,
        "kwargs": row["kwargs"],
        "created_by": "schedule",
        "claimed_at": now,
        "first_run_id": None,
        "not_before": None,
        **copied(row),
    }


def copied(row: Row) -> dict[str, Any]:
    """What a run takes over from the row of its job."""
    return {name: row[name] for name in _COPIED}


def _missed_event(run: Mapping[str, Any]) -> Event:
    return Event(
        kind="missed",
        job_id=run["job_id"],
        run_id=run["run_id"],
        task=run["task"],
        scheduled_for=run["scheduled_for"],
        count=run["count"],
        reason=run["reason"],
    )


def _set_aside(connection: Connection, job_id: str, error: Exception) -> None:
    reason = what_is_unreadable(error)
    logger.error("job %s cannot be read and is set aside until it is changed: %s", job_id, reason)
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(problem=reason[:2000]))
