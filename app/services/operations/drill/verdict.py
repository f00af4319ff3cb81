"""The verdict of a drill: the fires that were due, those that the probes wrote down, and the ledger, compared.

Plain data in, plain data out. Times are seconds since the epoch, lateness and recovery are seconds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.services.operations.drill.log import Start

_ACTIVE = ("pending", "running")
_WROTE_ITS_LINE = ("success", "failed")
NEVER_STARTED = ("missed", "coalesced", "skipped")
_SAME_MOMENT_S = 0.001
"""The log's times are floats."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the ledger: `count` moments from `first` to `last` with one outcome."""

    run_id: str
    job_id: str
    first: float
    last: float
    count: int
    attempt: int
    outcome: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What was done to the stack: `kind` and `target` as the script names them, from `begin` to `end`.

    `node`: the name that the scheduler or worker in the target goes by; empty when it is neither."""

    kind: str
    target: str
    begin: float
    end: float
    node: str = ""


@dataclass(frozen=True, slots=True)
class FaultFigures:
    """What a fault did. next_fire_late: of each job the first fire due after it began that ran; the latest of them.
    recovery: from its beginning until every job had been started for a moment after it; None: not within the drill."""

    fault: Fault
    next_fire_late: float | None
    recovery: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the comparison found; each finding is a sentence."""

    due: int
    starts: int
    outcomes: dict[str, int]
    duplicates: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    unfinished: int = 0
    lateness: dict[str, float] = field(default_factory=dict)
    """In seconds, of the first attempts: p50, p99, max."""
    faults: list[FaultFigures] = field(default_factory=list)

    @property
    def proven(self) -> bool:
        """Whether every fire was started at most once, and none vanished. A drill in which nothing was due, or nothing
        started, proves nothing."""
        flawless = not (self.duplicates or self.absent or self.contradictions or self.unfinished)
        return flawless and self.due > 0 and self.starts > 0


def moments(first: float, period: float, until: float) -> list[float]:
    """The moments of a job that fires every `period` seconds from `first` to before `until`."""
    return [first + index * period for index in range(max(0, -int(-(until - first) // period)))]


def judge(
    expected: Mapping[str, Sequence[float]],
    starts: Sequence[Start],
    rows: Sequence[Row],
    faults: Sequence[Fault],
) -> Verdict:
    """Compares the moments due of each job, oldest first, with the probes' own log and with the ledger."""
    starts = sorted(starts, key=lambda start: start.time)
    return Verdict(
        due=sum(map(len, expected.values())),
        starts=len(starts),
        outcomes=_outcomes(rows),
        duplicates=_duplicates(starts),
        absent=_absent(expected, rows),
        contradictions=_contradictions(expected, starts, rows),
        unfinished=sum(row.outcome in _ACTIVE for row in rows),
        lateness=_lateness(starts),
        faults=[_figures(fault, expected, starts) for fault in faults],
    )


def _within(row: Row, due: Sequence[float]) -> range:
    """Which of the moments due the row accounts for, by their places."""
    return range(bisect_left(due, row.first - _SAME_MOMENT_S), bisect_right(due, row.last + _SAME_MOMENT_S))


def _is_due(moment: float, due: Sequence[float]) -> bool:
    return bisect_left(due, moment - _SAME_MOMENT_S) < bisect_right(due, moment + _SAME_MOMENT_S)


def _duplicates(starts: Sequence[Start]) -> list[str]:
    by_fire: dict[tuple[str, float, int], list[Start]] = defaultdict(list)
    for start in starts:
        by_fire[start.job_id, round(start.scheduled_for, 3), start.attempt].append(start)
    return [
        f"{job_id} was started {len(same)} times for {moment:.3f}, attempt {attempt}, on "
        + ", ".join(sorted({start.node for start in same}))
        for (job_id, moment, attempt), same in sorted(by_fire.items())
        if len(same) > 1
    ]


def _absent(expected: Mapping[str, Sequence[float]], rows: Sequence[Row]) -> list[str]:
    covered: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        covered[row.job_id].update(_within(row, expected.get(row.job_id, ())))
    return [
        f"{job_id} at {moment:.3f} is not in the ledger"
        for job_id, due in sorted(expected.items())
        for place, moment in enumerate(due)
        if place not in covered[job_id]
    ]


def _contradictions(expected: Mapping[str, Sequence[float]], starts: Sequence[Start], rows: Sequence[Row]) -> list[str]:
    """What the three sources say that cannot all be true."""
    by_run = {row.run_id: row for row in rows}
    written = {start.run_id for start in starts}
    found = []
    for start in starts:
        row = by_run.get(start.run_id)
        if row is None:
            found.append(f"{start.job_id} was started as run {start.run_id}, which the ledger does not know")
        elif row.outcome in NEVER_STARTED:
            found.append(f"run {start.run_id} of {start.job_id} is {row.outcome} in the ledger, and was started")
        if not _is_due(start.scheduled_for, expected.get(start.job_id, ())):
            found.append(f"{start.job_id} was started for {start.scheduled_for:.3f}, when it was not due")
        if start.time < start.scheduled_for - _SAME_MOMENT_S:
            found.append(f"{start.job_id} was started before {start.scheduled_for:.3f}, at {start.time:.3f}")
    told: dict[tuple[str, int, int], str] = {}
    for row in rows:
        if row.outcome in _WROTE_ITS_LINE and row.run_id not in written:
            found.append(
                f"run {row.run_id} of {row.job_id} is {row.outcome} in the ledger, and its probe wrote nothing"
            )
        places = _within(row, expected.get(row.job_id, ()))
        if len(places) != row.count:
            found.append(f"run {row.run_id} of {row.job_id} counts {row.count} moments where {len(places)} were due")
        for place in places:
            other = told.setdefault((row.job_id, place, row.attempt), row.run_id)
            if other != row.run_id:
                moment = expected[row.job_id][place]
                found.append(f"{row.job_id} at {moment:.3f} is in the ledger twice: runs {other} and {row.run_id}")
    return found


def _outcomes(rows: Sequence[Row]) -> dict[str, int]:
    """How many moments had which outcome; second attempts are counted as `retried`."""
    counted: Counter[str] = Counter()
    for row in rows:
        counted[row.outcome if row.attempt == 1 else "retried"] += row.count
    return dict(sorted(counted.items()))


def _lateness(starts: Sequence[Start]) -> dict[str, float]:
    late = sorted(start.lateness_s for start in starts if start.attempt == 1)
    if not late:
        return {}
    return {
        name: round(late[int((len(late) - 1) * share)], 3) for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1))
    }


def _figures(fault: Fault, expected: Mapping[str, Sequence[float]], starts: Sequence[Start]) -> FaultFigures:
    """`starts` in the order of their times."""
    begin = bisect_left(starts, fault.begin, key=lambda start: start.time)
    # Per job: its earliest moment after the fault that was started, and how soon anything of it was started.
    next_fire: dict[str, Start] = {}
    again: dict[str, float] = {}
    for start in starts[begin:]:
        if start.scheduled_for >= fault.begin:
            again.setdefault(start.job_id, start.time)
            known = next_fire.setdefault(start.job_id, start)
            if start.scheduled_for < known.scheduled_for:
                next_fire[start.job_id] = start
    if not expected or len(again) < len(expected):
        return FaultFigures(fault, None, None)
    return FaultFigures(
        fault,
        round(max(start.lateness_s for start in next_fire.values()), 3),
        round(max(again.values()) - fault.begin, 3),
    )
