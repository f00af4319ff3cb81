"""The verdict of a drill: every kind of finding is found, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from app.services.operations.drill.log import Start
from app.services.operations.drill.verdict import Fault, Row, Verdict, judge, moments

BEGIN = 1_800_000_000.0
JOBS = {"a": BEGIN, "b": BEGIN + 0.5}
EXPECTED = {job_id: moments(first, 1.0, BEGIN + 20) for job_id, first in JOBS.items()}
Given = tuple[list[Start], list[Row]]


def run_id(job_id: str, moment: float) -> str:
    return f"{job_id}{moment:.1f}"


def flawless() -> Given:
    """20 fires of two jobs, each started 0.01 s late on the node of its job, each a success."""
    starts, rows = [], []
    for job_id, due in EXPECTED.items():
        for moment in due:
            starts.append(Start(run_id(job_id, moment), job_id, moment, 1, f"node-{job_id}", moment + 0.01))
            rows.append(Row(run_id(job_id, moment), job_id, moment, moment, 1, 1, "success"))
    return starts, rows


def verdict_of(given: Given, *faults: Fault) -> Verdict:
    return judge(EXPECTED, *given, faults)


def findings(verdict: Verdict) -> dict[str, Any]:
    return {
        name: found
        for name in ("duplicates", "absent", "contradictions", "unfinished")
        if (found := getattr(verdict, name))
    }


def test_moments_end_before_the_stop() -> None:
    assert moments(BEGIN, 1.0, BEGIN + 2) == [BEGIN, BEGIN + 1]
    assert moments(BEGIN, 1.0, BEGIN + 2.001) == [BEGIN, BEGIN + 1, BEGIN + 2]
    assert moments(BEGIN, 1.0, BEGIN) == []
    assert moments(BEGIN, 1.0, BEGIN - 5) == []


def test_a_flawless_drill_is_proven() -> None:
    verdict = verdict_of(flawless())
    assert verdict.proven
    assert findings(verdict) == {}
    assert (verdict.due, verdict.starts, verdict.outcomes) == (40, 40, {"success": 40})
    assert verdict.lateness == {"p50": 0.01, "p99": 0.01, "max": 0.01}


def test_nothing_due_is_not_proven() -> None:
    assert not judge({"a": []}, [], [], []).proven
    assert not judge({}, [], [], []).proven


def test_nothing_started_is_not_proven() -> None:
    rows = [Row(job_id, job_id, due[0], due[-1], len(due), 1, "missed") for job_id, due in EXPECTED.items()]
    verdict = verdict_of(([], rows))
    assert findings(verdict) == {}
    assert verdict.outcomes == {"missed": 40}
    assert not verdict.proven


def test_folded_rows_account_for_all_their_moments() -> None:
    starts, rows = flawless()
    folded = {run_id("a", EXPECTED["a"][index]) for index in (3, 4, 5, 6)}
    starts = [start for start in starts if start.run_id not in folded]
    rows = [row for row in rows if row.run_id not in folded]
    rows.append(Row("fold", "a", EXPECTED["a"][3], EXPECTED["a"][6], 4, 1, "coalesced"))
    verdict = verdict_of((starts, rows))
    assert verdict.proven
    assert verdict.outcomes == {"coalesced": 4, "success": 36}


def test_a_lost_run_may_or_may_not_have_written_its_line() -> None:
    starts, rows = flawless()
    rows[0], rows[1] = replace(rows[0], outcome="lost"), replace(rows[1], outcome="lost")
    assert verdict_of((starts[1:], rows)).proven


def test_a_second_attempt_is_no_second_start() -> None:
    starts, rows = flawless()
    rows[0] = replace(rows[0], outcome="lost")
    again = replace(starts[0], run_id="again", attempt=2, time=starts[0].time + 31)
    verdict = verdict_of(([*starts, again], [*rows, replace(rows[0], run_id="again", attempt=2, outcome="success")]))
    assert verdict.proven
    assert verdict.outcomes == {"lost": 1, "retried": 1, "success": 39}
    assert verdict.lateness["max"] == 0.01, "of the first attempts"


Spoil = Callable[[Given], Given]


def doubled_start(given: Given) -> Given:
    return [*given[0], replace(given[0][3], node="node-b", time=given[0][3].time + 0.2)], given[1]


def doubled_start_of_another_run(given: Given) -> Given:
    other = replace(given[0][3], run_id="other")
    return [*given[0], other], [*given[1], replace(given[1][3], run_id="other")]


def doubled_second_attempt(given: Given) -> Given:
    again = replace(given[0][3], run_id="again", attempt=2)
    return [*given[0], again, again], [*given[1], replace(given[1][3], run_id="again", attempt=2)]


def absent_moment(given: Given) -> Given:
    return given[0][1:], given[1][1:]


def absent_last_moment(given: Given) -> Given:
    return given[0][:-1], given[1][:-1]


def only_a_second_attempt(given: Given) -> Given:
    return given[0], [replace(given[1][0], run_id="again", attempt=2), *given[1][1:]]


def unknown_start(given: Given) -> Given:
    return given[0], [replace(given[1][0], run_id="another"), *given[1][1:]]


def success_without_a_line(given: Given) -> Given:
    return given[0][1:], given[1]


def failure_without_a_line(given: Given) -> Given:
    return given[0][1:], [replace(given[1][0], outcome="failed"), *given[1][1:]]


def started_though_missed(given: Given) -> Given:
    return given[0], [replace(given[1][0], outcome="missed"), *given[1][1:]]


def miscounted_fold(given: Given) -> Given:
    return given[0], [replace(given[1][0], outcome="success", count=3), *given[1][1:]]


def moment_that_was_not_due(given: Given) -> Given:
    moment = BEGIN + 7.25
    return [*given[0], Start("x", "a", moment, 1, "n", moment)], [
        *given[1],
        Row("x", "a", moment, moment, 1, 1, "lost"),
    ]


def job_of_another_drill(given: Given) -> Given:
    return [*given[0], Start("x", "z", BEGIN, 1, "n", BEGIN)], given[1]


def started_too_early(given: Given) -> Given:
    return [replace(given[0][0], time=given[0][0].scheduled_for - 0.4), *given[0][1:]], given[1]


def two_rows_of_one_moment(given: Given) -> Given:
    return given[0], [*given[1], replace(given[1][0], run_id="other", outcome="missed")]


def unfinished(given: Given) -> Given:
    return given[0], [replace(given[1][0], outcome="running"), replace(given[1][1], outcome="pending"), *given[1][2:]]


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (doubled_start, "duplicates", "a was started 2 times for 1800000003.000, attempt 1, on node-a, node-b"),
        (doubled_start_of_another_run, "duplicates", "a was started 2 times"),
        (doubled_second_attempt, "duplicates", "attempt 2"),
        (absent_moment, "absent", "a at 1800000000.000 is not in the ledger"),
        (absent_last_moment, "absent", "b at 1800000019.500 is not in the ledger"),
        (only_a_second_attempt, "contradictions", "which the ledger does not know"),
        (unknown_start, "contradictions", "a was started as run a1800000000.0, which the ledger does not know"),
        (success_without_a_line, "contradictions", "is success in the ledger, and its probe wrote nothing"),
        (failure_without_a_line, "contradictions", "is failed in the ledger, and its probe wrote nothing"),
        (started_though_missed, "contradictions", "is missed in the ledger, and was started"),
        (miscounted_fold, "contradictions", "counts 3 moments where 1 were due"),
        (moment_that_was_not_due, "contradictions", "a was started for 1800000007.250, when it was not due"),
        (job_of_another_drill, "contradictions", "z was started as run x"),
        (started_too_early, "contradictions", "a was started before 1800000000.000, at 1799999999.600"),
        (two_rows_of_one_moment, "contradictions", "a at 1800000000.000 is in the ledger twice"),
        (unfinished, "unfinished", ""),
    ],
)
def test_every_kind_of_finding_is_found(spoil: Spoil, kind: str, words: str) -> None:
    verdict = verdict_of(spoil(flawless()))
    assert not verdict.proven
    found = findings(verdict)
    assert kind in found
    if words:
        assert any(words in sentence for sentence in found[kind]), found
    else:
        assert found == {"unfinished": 2}


def test_figures_of_a_fault() -> None:
    starts, rows = flawless()
    fault = Fault("kill", "scheduler-1", BEGIN + 5.2, BEGIN + 10)
    # The next of b is on time, that of a comes 2 s late, after its follower; what was due before does not count.
    starts = [
        replace(start, time=start.time + 2)
        if start.job_id == "a" and BEGIN + 4.9 <= start.scheduled_for < BEGIN + 7
        else start
        for start in starts
    ]
    [figures] = verdict_of((starts, rows), fault).faults
    assert (figures.next_fire_late, figures.recovery) == (2.01, pytest.approx(7.01 - 5.2))


def test_a_fault_with_too_few_fires_after_it_has_no_figures() -> None:
    [figures] = verdict_of(flawless(), Fault("kill", "scheduler-1", BEGIN + 19.2, BEGIN + 25)).faults
    assert (figures.next_fire_late, figures.recovery) == (None, None), "only b fires after it"


def test_it_is_quick_enough_for_the_largest_drill() -> None:
    """Every comparison with every other would take minutes."""
    due = {str(job): moments(BEGIN + job / 28, 1.0, BEGIN + 3600) for job in range(28)}
    starts = [Start(f"{j}-{m}", j, m, 1, "n", m) for j, at in due.items() for m in at]
    rows = [
        Row(start.run_id, start.job_id, start.scheduled_for, start.scheduled_for, 1, 1, "success") for start in starts
    ]
    verdict = judge(due, starts, rows, [Fault("kill", "s", BEGIN + 30 * n, BEGIN + 30 * n + 5) for n in range(100)])
    assert verdict.proven
    assert verdict.due == 28 * 3600
