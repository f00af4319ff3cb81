"""Counts of all runs that ended, for the metrics: rising numbers, out of a ledger that drops old rows.

What ended among the runs of the last minutes is counted anew at each reading. From time to time what lies further back
is added to the totals in the table `run_totals`, so that a reading costs as much as some minutes of runs, and a purge,
a restart or another process changes nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    and_,
    case,
    delete,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from app.db.engines import database_now_us, read_transaction, write_transaction
from app.db.jobstore_tables import ACTIVE, IS_ACTIVE, run_totals, runs, uncounted_runs
from app.ledger import run_id_floor

LATENESS_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
DURATION_BUCKETS_S = (0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14_400.0)
BEYOND = "+Inf"
"""The bucket of what exceeds the last bound."""

ADDED_EVERY_S = 900
"""How old the newest total may become."""
SETTLED_AFTER_S = 300
"""Runs claimed before are on record for sure: a claim's commit never takes so long."""
MOST_S = 86_400
"""What nobody counted for longer is left out, so that no reading has to count all that is on record."""

_COUNTED_UNTIL = "counted_until"
_FIRES, _LATENESS, _LATENESS_SUM = "fires", "lateness", "lateness_sum"
_DURATION, _DURATION_SUM = "duration", "duration_sum"
_LATE_END = "%it was presumed lost and finished after all"  # app.ledger.record's remark

_OPEN = select(runs.c.run_id).where(IS_ACTIVE)

_Key = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Histogram:
    """Counts by the upper bound (seconds) of their bucket, each for itself, and the sum of all in seconds."""

    buckets: Mapping[str, int]
    sum_s: float


@dataclass(frozen=True)
class RunTotals:
    """fires: moments by (outcome, kind, task), where kind is schedule, manual or retry (an attempt after the first).
    lateness: from due to start, of first attempts of scheduled runs, by executor. duration: by task."""

    fires: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    lateness: Mapping[str, Histogram] = field(default_factory=dict)
    duration: Mapping[str, Histogram] = field(default_factory=dict)


class RunTotalsRepository:
    """The totals of one job store; any process may read them, and whoever finds them old brings them up to date."""

    def __init__(self, engine: Engine, *, clock: Callable[[Connection], int] = database_now_us) -> None:
        """`clock` gives microseconds since the epoch; left out, the one that claims go by."""
        self._engine = engine
        self._now = clock

    def begin(self) -> None:
        """Counts from now on, unless somebody began already: what is on record from before is history."""
        with write_transaction(self._engine) as connection:
            dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
            first = {"name": _COUNTED_UNTIL, "labels": "[]", "value": self._now(connection)}
            connection.execute(dialect.insert(run_totals).values(first).on_conflict_do_nothing())

    def read(self) -> RunTotals:
        """Everything that ended since the counting began."""
        with self._snapshot() as connection:
            now = self._now(connection)
            since = _counted_until(connection)
            values = Counter[_Key]()
            if since is not None:
                values = _stored(connection)
                values.update(_count(connection, max(since, _earliest(now)), None))
        if since is None:
            self.begin()
        elif now - since > ADDED_EVERY_S * 1_000_000:
            self.add_settled()
        return _as_totals(values)

    def add_settled(self) -> bool:
        """Adds what ended of the runs claimed until some minutes ago to the totals; whether there was anything to do
        that nobody else did at the same time."""
        with self._snapshot() as connection:
            now = self._now(connection)
            counted = _counted_until(connection)
            until = now - SETTLED_AFTER_S * 1_000_000
            if counted is None or counted >= until:
                return False
            since = max(counted, _earliest(now))
            values = _count(connection, since, until)
            was_open = set(connection.execute(select(uncounted_runs.c.run_id)).scalars())
            is_open = set(connection.execute(_OPEN.where(runs.c.run_id < run_id_floor(until))).scalars())
        # Counted outside of the transaction that writes: on SQLite that one holds up the scheduler.
        with write_transaction(self._engine) as connection:
            moved = connection.execute(
                update(run_totals)
                .where(run_totals.c.name == _COUNTED_UNTIL, run_totals.c.value == counted)
                .values(value=until)
            )
            if moved.rowcount != 1:  # another process was faster
                return False
            _add(connection, values)
            for gone in _portions(was_open - is_open):
                connection.execute(delete(uncounted_runs).where(uncounted_runs.c.run_id.in_(gone)))
            if is_open - was_open:
                connection.execute(insert(uncounted_runs), [{"run_id": run_id} for run_id in is_open - was_open])
        return True

    def _snapshot(self) -> Any:
        # One moment's view over several statements, as SQLite's read transactions have it anyway.
        if self._engine.dialect.name == "postgresql":
            return read_transaction(self._engine.execution_options(isolation_level="REPEATABLE READ"))
        return read_transaction(self._engine)


def _earliest(now: int) -> int:
    return now - MOST_S * 1_000_000


def _counted_until(connection: Connection) -> int | None:
    found: int | None = connection.execute(
        select(run_totals.c.value).where(run_totals.c.name == _COUNTED_UNTIL)
    ).scalar_one_or_none()
    return found


def _stored(connection: Connection) -> Counter[_Key]:
    query = select(run_totals.c.name, run_totals.c.labels, run_totals.c.value).where(
        run_totals.c.name != _COUNTED_UNTIL
    )
    return Counter({(name, tuple(json.loads(labels))): value for name, labels, value in connection.execute(query)})


def _claimed(since: int, until: int | None) -> ColumnElement[bool]:
    claimed = runs.c.run_id >= run_id_floor(since)
    return claimed if until is None else and_(claimed, runs.c.run_id < run_id_floor(until))


def _count(connection: Connection, since: int, until: int | None) -> Counter[_Key]:
    """Ends of the runs claimed from `since` on and before `until`, and of those that were open when theirs were."""
    values: Counter[_Key] = Counter()
    for wanted in (_claimed(since, until), runs.c.run_id.in_(select(uncounted_runs.c.run_id))):
        for row in connection.execute(_counts(wanted)):
            _take(values, row)
    return values


def _counts(wanted: ColumnElement[bool]) -> Any:
    is_first = and_(runs.c.kind == "schedule", runs.c.attempt == 1)
    # The end of a lost run is only when its loss was noticed.
    has_ended = runs.c.outcome.in_(("success", "failed"))
    measured = (
        select(
            runs.c.outcome,
            case((runs.c.attempt > 1, "retry"), else_=runs.c.kind).label("kind"),
            runs.c.task,
            runs.c.executor,
            # Called lost, and finished after all: both happened.
            and_(runs.c.outcome != "lost", func.coalesce(runs.c.reason, "").like(_LATE_END)).label("was_lost"),
            runs.c.count.label("moments"),
            case((is_first, _between(runs.c.scheduled_for, runs.c.started_at)), else_=None).label("lateness"),
            case((has_ended, _between(runs.c.started_at, runs.c.finished_at)), else_=None).label("duration"),
        )
        .where(wanted, runs.c.outcome.not_in(ACTIVE))
        .subquery("measured")
    )
    each = select(
        measured,
        _bucket(measured.c.lateness, LATENESS_BUCKETS_S).label("lateness_bucket"),
        _bucket(measured.c.duration, DURATION_BUCKETS_S).label("duration_bucket"),
    ).subquery("each")
    names = ("outcome", "kind", "task", "executor", "lateness_bucket", "duration_bucket", "was_lost")
    keys = [each.c[name] for name in names]
    sums = (func.count(), func.sum(each.c.moments), func.sum(each.c.lateness), func.sum(each.c.duration))
    return select(*keys, *sums).group_by(*keys)


def _between(first: ColumnElement[Any], last: ColumnElement[Any]) -> ColumnElement[Any]:
    # Never below zero, which a clock that was set back would give: a sum must not fall.
    return case((last < first, literal(0, BigInteger)), else_=last - first)


def _bucket(measured: ColumnElement[Any], bounds_s: Sequence[float]) -> ColumnElement[Any]:
    """The bucket's upper bound as text; null where nothing was measured."""
    steps = [(measured <= literal(round(bound * 1_000_000), BigInteger), repr(bound)) for bound in bounds_s]
    return case((measured.is_(None), None), *steps, else_=BEYOND)


def _take(values: Counter[_Key], row: Any) -> None:
    outcome, kind, task, executor, lateness_bucket, duration_bucket, was_lost, rows, moments, lateness, duration = row
    values[_FIRES, (outcome, kind, task)] += int(moments)
    if was_lost:
        values[_FIRES, ("lost", kind, task)] += int(moments)
    if lateness_bucket is not None:
        values[_LATENESS, (executor, lateness_bucket)] += rows
        values[_LATENESS_SUM, (executor,)] += int(lateness)
    if duration_bucket is not None:
        values[_DURATION, (task, duration_bucket)] += rows
        values[_DURATION_SUM, (task,)] += int(duration)


def _add(connection: Connection, values: Mapping[_Key, int]) -> None:
    if not values:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(run_totals)
    rows = [
        {"name": name, "labels": json.dumps(labels, ensure_ascii=False), "value": value}
        for (name, labels), value in sorted(values.items())
    ]
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["name", "labels"], set_={"value": run_totals.c.value + statement.excluded.value}
        ),
        rows,
    )


def _portions(ids: Iterable[str], size: int = 500) -> Iterable[list[str]]:
    listed = sorted(ids)
    return (listed[start : start + size] for start in range(0, len(listed), size))


def _as_totals(values: Mapping[_Key, int]) -> RunTotals:
    fires: dict[tuple[str, str, str], int] = {}
    for (name, labels), value in values.items():
        if name == _FIRES:
            outcome, kind, task = labels
            fires[outcome, kind, task] = value
    return RunTotals(
        fires=fires,
        lateness=_histograms(values, _LATENESS, _LATENESS_SUM),
        duration=_histograms(values, _DURATION, _DURATION_SUM),
    )


def _histograms(values: Mapping[_Key, int], buckets: str, sums: str) -> dict[str, Histogram]:
    by_label: dict[str, dict[str, int]] = {}
    for (name, labels), value in values.items():
        if name == buckets:
            by_label.setdefault(labels[0], {})[labels[1]] = value
    return {label: Histogram(found, values.get((sums, (label,)), 0) / 1_000_000) for label, found in by_label.items()}
