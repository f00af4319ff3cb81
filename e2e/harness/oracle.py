"""The oracle: which fires should have happened, which did, and what the ledger says about them.

Three sources that know nothing of each other are compared:

- the moments that a job's trigger implies, computed here by arithmetic (never by the app's code);
- the outside log, one line a start, written by the task itself to a file the app does not use;
- the ledger, as the history of the API tells it.

A moment is a UTC datetime. Everything here is plain data in, plain data out.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

#: Outcomes that say the task was started.
STARTED = frozenset({"running", "success", "failed", "lost"})
#: Outcomes that are final; a ledger at rest holds no other.
FINAL = frozenset({"success", "failed", "lost", "cancelled", "missed", "coalesced", "skipped"})
#: Final outcomes whose task must have left its line outside. A `lost` run may have died before it wrote.
SEEN_OUTSIDE = frozenset({"success", "failed"})


@dataclass(frozen=True)
class Start:
    """One line of the outside log: `job_id` was started for `scheduled_for`, at `time` (epoch seconds).

    `uptime` is the same moment by the machine's monotonic clock, where the line tells it.
    """

    run_id: str
    job_id: str
    scheduled_for: datetime
    node: str
    time: float
    kind: str = "schedule"
    attempt: int = 1
    uptime: float | None = None


def parse_moment(text: str) -> datetime:
    """An ISO 8601 moment with an offset, in UTC; a naive one is an error."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"a moment without an offset: {text!r}")
    return moment.astimezone(UTC)


def every(seconds: float, first: datetime, last: datetime) -> list[datetime]:
    """The moments of an interval trigger that starts at `first` and ends at `last`, both included."""
    step = timedelta(seconds=seconds)
    return [first + index * step for index in range((last - first) // step + 1)]


def read_log(path: Path, event: str = "start") -> list[Start]:
    """The starts (or the ends: `event="end"`) in the outside log, as written; a missing file holds none."""
    return parse_log(path.read_text(encoding="utf-8"), event) if path.exists() else []


def parse_log(text: str, event: str = "start") -> list[Start]:
    """The same of what is in the log."""
    starts = []
    for line in text.splitlines():
        entry = json.loads(line)
        if entry["event"] == event:
            starts.append(
                Start(
                    run_id=entry["run_id"],
                    job_id=entry["job_id"],
                    scheduled_for=parse_moment(entry["scheduled_for"]),
                    node=entry["node"],
                    time=entry["time"],
                    kind=entry["kind"],
                    attempt=entry["attempt"],
                    uptime=entry.get("uptime"),
                )
            )
    return starts


@dataclass
class Verdict:
    """What the comparison found; each list holds one sentence a finding."""

    expected: int = 0
    starts: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    #: A moment started more often than once.
    duplicates: list[str] = field(default_factory=list)
    #: A moment that was due and of which neither the ledger nor, without a ledger, the log knows.
    absent: list[str] = field(default_factory=list)
    #: The three sources contradict each other in another way.
    contradictions: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.duplicates or self.absent or self.contradictions)

    def __str__(self) -> str:
        counted = ", ".join(f"{outcome} {count}" for outcome, count in sorted(self.outcomes.items()))
        lines = [
            f"expected fires {self.expected}, starts seen outside {self.starts}, outcomes: {counted or 'none'}",
            f"duplicates {len(self.duplicates)}, absent {len(self.absent)}, contradictions {len(self.contradictions)}",
        ]
        for name in ("duplicates", "absent", "contradictions"):
            found = getattr(self, name)
            lines += [f"  {name}: {sentence}" for sentence in found[:20]]
            if len(found) > 20:
                lines.append(f"  {name}: and {len(found) - 20} more")
        return "\n".join(lines)


def judge_log(expected: Mapping[str, Sequence[datetime]], starts: Iterable[Start]) -> Verdict:
    """Compare the outside log with the implied moments alone: for a stack that keeps no ledger."""
    starts = list(starts)
    verdict = Verdict(expected=sum(map(len, expected.values())), starts=len(starts))
    _find_duplicates(starts, verdict)
    started = {(start.job_id, start.scheduled_for) for start in starts}
    for job_id, moments in expected.items():
        verdict.absent += [
            f"{job_id} at {moment.isoformat()} was never started"
            for moment in moments
            if (job_id, moment) not in started
        ]
    _find_unimplied(expected, starts, verdict)
    return verdict


def judge(
    expected: Mapping[str, Sequence[datetime]],
    starts: Iterable[Start],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Verdict:
    """Compare all three sources once every job is at rest.

    `expected` holds the moments of each job by id, `histories` the rows of its history as the API answers
    them. Only scheduled fires are judged; manual runs are left out of all three.
    """
    starts = [start for start in starts if start.kind == "schedule"]
    verdict = Verdict(expected=sum(map(len, expected.values())), starts=len(starts))
    _find_duplicates(starts, verdict)
    _find_unimplied(expected, starts, verdict)

    by_run = {start.run_id: start for start in starts}
    known_runs: set[str] = set()
    for job_id, moments in expected.items():
        rows = [row for row in histories[job_id] if row["kind"] == "schedule"]
        known_runs.update(row["run_id"] for row in rows)
        covered: dict[datetime, list[str]] = defaultdict(list)
        for row in rows:
            _judge_row(job_id, row, moments=moments, by_run=by_run, covered=covered, verdict=verdict)
        for moment in moments:
            held = covered.get(moment, [])
            if not held:
                verdict.absent.append(f"{job_id} at {moment.isoformat()} is not in the ledger")
            elif len(held) > 1:
                verdict.contradictions.append(
                    f"{job_id} at {moment.isoformat()} is in the ledger {len(held)} times: {', '.join(held)}"
                )
    verdict.contradictions += [
        f"{start.job_id} at {start.scheduled_for.isoformat()} was started as run {start.run_id}, "
        "which the ledger does not know"
        for start in starts
        if start.job_id in expected and start.run_id not in known_runs
    ]
    return verdict


def judge_backup(runs: Mapping[str, str], taken_at: datetime, starts: Iterable[Start]) -> list[str]:
    """What a backup tells of the oracle's runs (their outcomes, by run id) against the outside log: a sentence a
    finding, none when it tells what really happened up to its moment."""
    starts = list(starts)
    ended = {run_id for run_id, outcome in runs.items() if outcome in SEEN_OUTSIDE}
    invented = ended - {start.run_id for start in starts}
    forgotten = {start.run_id for start in starts if start.time < taken_at.timestamp()} - runs.keys()
    return [f"run {run_id} ended, and nobody saw it start" for run_id in sorted(invented)] + [
        f"run {run_id} had started, and is not in the backup" for run_id in sorted(forgotten)
    ]


def _judge_row(
    job_id: str,
    row: Mapping[str, Any],
    *,
    moments: Sequence[datetime],
    by_run: Mapping[str, Start],
    covered: dict[datetime, list[str]],
    verdict: Verdict,
) -> None:
    """Judge one row of the ledger, count it, and note in `covered` which moments it accounts for."""
    outcome, run_id = row["outcome"], row["run_id"]
    last = parse_moment(row["scheduled_for"])
    first = parse_moment(row["scheduled_from"]) if row.get("scheduled_from") else last
    count = row.get("count") or 1
    within = [moment for moment in moments if first <= moment <= last]
    where = f"{job_id} at {last.isoformat()} (run {run_id}, {outcome})"
    verdict.outcomes[outcome] += count
    if len(within) != count:
        verdict.contradictions.append(f"{where} counts {count} moments where the trigger implies {len(within)}")
    if row["attempt"] == 1:
        for moment in within:
            covered[moment].append(f"{run_id} {outcome}")

    start = by_run.get(run_id)
    if outcome not in FINAL:
        verdict.contradictions.append(f"{where} never came to an end")
    if start is None and outcome in SEEN_OUTSIDE:
        verdict.contradictions.append(f"{where} left no line in the outside log")
    if start is not None and outcome not in STARTED:
        verdict.contradictions.append(f"{where} was started all the same")
    if start is not None and (start.job_id, start.scheduled_for) != (job_id, last):
        verdict.contradictions.append(f"{where} was started as {start.job_id} at {start.scheduled_for.isoformat()}")


def _find_duplicates(starts: Sequence[Start], verdict: Verdict) -> None:
    """One start a moment and attempt, and one start a run."""
    by_moment: dict[tuple[str, datetime, int], list[Start]] = defaultdict(list)
    by_run: dict[str, list[Start]] = defaultdict(list)
    for start in starts:
        by_moment[(start.job_id, start.scheduled_for, start.attempt)].append(start)
        by_run[start.run_id].append(start)
    for (job_id, moment, attempt), same in sorted(by_moment.items()):
        if len(same) > 1:
            nodes = ", ".join(start.node for start in same)
            verdict.duplicates.append(
                f"{job_id} at {moment.isoformat()}, attempt {attempt}, started {len(same)} times ({nodes})"
            )
    for run_id, same in sorted(by_run.items()):
        if len({(start.job_id, start.scheduled_for, start.attempt) for start in same}) > 1:
            verdict.duplicates.append(f"run {run_id} was started for {len(same)} different fires")


def _find_unimplied(expected: Mapping[str, Sequence[datetime]], starts: Sequence[Start], verdict: Verdict) -> None:
    implied = {(job_id, moment) for job_id, moments in expected.items() for moment in moments}
    verdict.contradictions += [
        f"{start.job_id} was started for {start.scheduled_for.isoformat()}, which its trigger does not imply"
        for start in starts
        if start.job_id in expected and (start.job_id, start.scheduled_for) not in implied
    ]
    verdict.contradictions += [
        f"{start.job_id} at {start.scheduled_for.isoformat()} was started before it was due"
        for start in starts
        if start.job_id in expected and start.time < start.scheduled_for.timestamp()
    ]
