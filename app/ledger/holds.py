"""A hold: while it is on record, no scheduler claims what its jobs' triggers ask for.

A store that comes back from a backup is held before any scheduler sees it, so that a person can say what becomes of the
fires that lie between the backup and now. Runs that somebody asks for start as ever.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from app.db.clock import from_us
from app.db.jobstore_tables import Row, holds, jobs, runs
from app.ledger.claim import ADVANCE, CLAIM_COLUMNS, insert_runs, is_due, run_values
from app.ledger.fates import Decision, Fold, fold_moments, next_moment

CatchUp = Literal["skip", "run-latest", "run-all"]
CATCH_UPS: tuple[CatchUp, ...] = get_args(CatchUp)
"""What may become of the moments that fell into a hold: all are missed; the last of each job runs; all of them run."""

RUN_ALL_LIMIT = 10_000
"""Runs that `run-all` may start at once, over all jobs."""

_THE_HOLD = "all"


class TooMuchToCatchUp(Exception):
    """`run-all` would start more than RUN_ALL_LIMIT runs. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Why, by whom and since when nothing is claimed."""

    reason: str
    by: str
    since: datetime


@dataclass(frozen=True, slots=True)
class DueMoments:
    """The moments of one job that are due and not on record: `count` of them, from `first` to `last`."""

    job_id: str
    first: datetime
    last: datetime
    count: int


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """What the end of a hold came to, in moments."""

    started: int = 0
    coalesced: int = 0
    missed: int = 0


def find_hold(connection: Connection) -> Hold | None:
    """The hold on record, if any."""
    row = connection.execute(select(holds)).mappings().one_or_none()
    return None if row is None else Hold(row["reason"], row["created_by"], from_us(row["created_at"]))


def put_hold(connection: Connection, *, reason: str, by: str, now: int) -> Hold:
    """Puts a hold on record, inside the caller's write transaction, unless there is one; gives the one in force."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    values = {"name": _THE_HOLD, "reason": reason, "created_by": by, "created_at": now}
    connection.execute(dialect.insert(holds).values(values).on_conflict_do_nothing())
    return find_hold(connection) or Hold(reason, by, from_us(now))


def due_moments(connection: Connection, *, now: int) -> list[DueMoments]:
    """What is due at `now` (microseconds), by job, and not on record yet."""
    found = []
    for row in _due_rows(connection, now):
        first = _first_not_on_record(connection, row)
        if first is not None and first <= now:
            fold, _following = fold_moments(row["trigger"], "run", first, now)
            found.append(DueMoments(row["id"], from_us(fold.first), from_us(fold.last), fold.count))
    return found


def end_hold(connection: Connection, *, catch_up: CatchUp, now: int) -> CaughtUp | None:
    """Ends the hold and puts every moment that fell into it on record, inside the caller's write transaction.

    Runs to be started belong to nobody, until a scheduler adopts them; their grace time counts from now on. None when
    there is no hold. TooMuchToCatchUp. A job whose trigger cannot be read is left to the next claim, which sets it
    aside.
    """
    hold = find_hold(connection)
    if hold is None:
        return None
    new_rows: list[dict[str, Any]] = []
    advances: list[dict[str, Any]] = []
    caught = {"run": 0, "coalesced": 0, "missed": 0}
    for row in _due_rows(connection, now, lock=True):
        first = _first_not_on_record(connection, row)
        decision = Decision((), first)
        if first is not None and first <= now:
            decision = _DECIDE[catch_up](row["trigger"], first, now)
        for fold in decision.folds:
            caught[fold.fate] += fold.count
            values = run_values(row, fold, owner="", now=now)
            if fold.fate == "run":
                values["misfire_grace_time"] += -(-(now - fold.last) // 1_000_000)
            else:
                values["reason"] = f"fell into a hold ({hold.reason}) that ended with {catch_up}"
            new_rows.append(values)
        advances.append({"b_id": row["id"], "b_claimed": row["next_run_time"], "b_next": decision.next_moment})
        if caught["run"] > RUN_ALL_LIMIT:
            raise TooMuchToCatchUp(
                f"run-all would start more than {RUN_ALL_LIMIT} runs at once; accepted: run-latest, skip"
            )
    insert_runs(connection, new_rows)
    if advances:
        connection.execute(ADVANCE, advances)
    connection.execute(delete(holds))
    return CaughtUp(started=caught["run"], coalesced=caught["coalesced"], missed=caught["missed"])


def _due_rows(connection: Connection, now: int, *, lock: bool = False) -> Sequence[Row]:
    query = select(*CLAIM_COLUMNS).where(is_due(now)).order_by(jobs.c.id)
    rows = connection.execute(query.with_for_update() if lock else query).mappings().all()
    return [row for row in rows if _is_readable(row)]


def _is_readable(row: Row) -> bool:
    try:
        next_moment(row["trigger"], row["next_run_time"])
    except Exception:  # whatever it holds: the next claim says what is wrong with it
        return False
    return True


def _first_not_on_record(connection: Connection, row: Row) -> int | None:
    """The job's next moment after all that is on record: history that was carried over may know more than the job."""
    newest = connection.execute(
        select(func.max(runs.c.scheduled_for)).where(
            runs.c.job_id == row["id"], runs.c.kind == "schedule", runs.c.scheduled_for >= row["next_run_time"]
        )
    ).scalar_one_or_none()
    return row["next_run_time"] if newest is None else next_moment(row["trigger"], newest)


def _skip(trigger: str, first: int, now: int) -> Decision:
    fold, following = fold_moments(trigger, "missed", first, now)
    return Decision((fold,), following)


def _run_latest(trigger: str, first: int, now: int) -> Decision:
    all_of_them, following = fold_moments(trigger, "run", first, now)
    latest = Fold("run", all_of_them.last, all_of_them.last)
    if all_of_them.count == 1:
        return Decision((latest,), following)
    folded, _ = fold_moments(trigger, "coalesced", first, all_of_them.last - 1)
    return Decision((folded, latest), following)


def _run_all(trigger: str, first: int, now: int) -> Decision:
    folds: list[Fold] = []
    moment: int | None = first
    while moment is not None and moment <= now and len(folds) <= RUN_ALL_LIMIT:
        folds.append(Fold("run", moment, moment))
        moment = next_moment(trigger, moment)
    return Decision(tuple(folds), moment)


_DECIDE = {"skip": _skip, "run-latest": _run_latest, "run-all": _run_all}
