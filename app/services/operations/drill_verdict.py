"""The verdict of a drill: the fires that were due, those that the probes wrote down, and the ledger, compared.

Plain data in, plain data out. Times are seconds since the epoch, lateness and recovery are seconds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.services.operations.drill_log import Start

_ACTIVE = ("pending", "running")
_WROTE_ITS_LINE = ("success", "failed")
_SAME_MOMENT_S = 0.001
"""The log's times are floats."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the ledger: `count` moments from `first` to `last` with one outcome."""

    run_id: str
    job_id: str
    first: float
    last: float
    attempt: int
    outcome: str
    node: str | None


@dataclass(frozen=True, slots=True)
class Fault:
    """What was done to the stack: `kind` and `target` as the script names them, from `begin` to `end`."""

    kind: str
    target: str
    begin: float
    end: float


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
    faults: list[FaultFigures] = field(default_factory=list)

    @property
    def proven(self) -> bool:
        """Whether every fire was started at most once, and none vanished."""
        return bool(self.due) and not (self.duplicates or self.absent or self.contradictions or self.unfinished)


def moments(first: float, period: float, until: float) -> list[float]:
    """The moments of a job that fires every `period` seconds from `first` to before `until`."""
    return [first + index * period for index in range(max(0, -int(-(until - first) // period)))]


def judge(
    expected: Mapping[str, Sequence[float]],
    starts: Sequence[Start],
    rows: Sequence[Row],
    faults: Sequence[Fault],
) -> Verdict:
    """Compares the moments due of each job with the probes' own log and with the ledger."""
    due = sum(map(len, expected.values()))
    return Verdict(
        due=due,
        starts=len(starts),
        outcomes=_outcomes(expected, rows),
        duplicates=_duplicates(starts),
        absent=_absent(expected, rows),
        contradictions=_contradictions(starts, rows),
        unfinished=sum(row.outcome in _ACTIVE for row in rows),
        lateness=_lateness(starts),
        faults=[_figures(fault, expected, starts) for fault in faults],
    )


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
    covered: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        covered[row.job_id].append((row.first - _SAME_MOMENT_S, row.last + _SAME_MOMENT_S))
    return [
        f"{job_id} at {moment:.3f} is not in the ledger"
        for job_id, due in sorted(expected.items())
        for moment in due
        if not any(first <= moment <= last for first, last in covered[job_id])
    ]


def _contradictions(starts: Sequence[Start], rows: Sequence[Row]) -> list[str]:
    written = {start.run_id for start in starts}
    on_record = {row.run_id for row in rows}
    return [
        f"{start.job_id} was started as run {start.run_id}, which the ledger does not know"
        for start in starts
        if start.run_id not in on_record
    ] + [
        f"run {row.run_id} of {row.job_id} is {row.outcome} in the ledger, and its probe wrote nothing"
        for row in rows
        if row.outcome in _WROTE_ITS_LINE and row.run_id not in written
    ]


def _outcomes(expected: Mapping[str, Sequence[float]], rows: Sequence[Row]) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for row in rows:
        if row.attempt == 1:
            inside = (moment for moment in expected.get(row.job_id, ()) if row.first - _SAME_MOMENT_S <= moment)
            counted[row.outcome] += sum(moment <= row.last + _SAME_MOMENT_S for moment in inside)
    return dict(sorted(counted.items()))


def _lateness(starts: Sequence[Start]) -> dict[str, float]:
    late = sorted(start.lateness_s for start in starts if start.attempt == 1)
    if not late:
        return {}
    return {
        name: round(late[int((len(late) - 1) * share)], 3) for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1))
    }


def _figures(fault: Fault, expected: Mapping[str, Sequence[float]], starts: Sequence[Start]) -> FaultFigures:
    first: dict[str, Start] = {}
    for start in sorted(starts, key=lambda start: start.time):
        if start.scheduled_for >= fault.begin:
            first.setdefault(start.job_id, start)
    if not first or len(first) < len(expected):
        return FaultFigures(fault, None, None)
    return FaultFigures(
        fault,
        round(max(start.lateness_s for start in first.values()), 3),
        round(max(start.time for start in first.values()) - fault.begin, 3),
    )
