"""The oracle sees what is planted: a duplicate, an absent fire, a ledger that lies."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from e2e.harness.oracle import Start, Verdict, every, judge, judge_backup, judge_log, parse_moment, read_log

FIRST = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
MOMENTS = every(1, FIRST, FIRST + timedelta(seconds=4))
EXPECTED = {"tick": MOMENTS}


def start(index: int, **changes: Any) -> Start:
    moment = MOMENTS[index]
    plain = Start(f"run{index}", "tick", moment, "node-a", moment.timestamp() + 0.01)
    return replace(plain, **changes)


def row(index: int, outcome: str = "success", **changes: Any) -> dict[str, Any]:
    plain = {
        "run_id": f"run{index}",
        "job_id": "tick",
        "kind": "schedule",
        "scheduled_for": MOMENTS[index].isoformat(),
        "outcome": outcome,
        "attempt": 1,
    }
    return plain | changes


def all_starts() -> list[Start]:
    return [start(index) for index in range(5)]


def all_rows() -> list[dict[str, Any]]:
    return [row(index) for index in range(5)]


def judged(starts: list[Start], rows: list[dict[str, Any]]) -> Verdict:
    return judge(EXPECTED, starts, {"tick": rows})


def test_interval_moments_hold_both_ends() -> None:
    assert len(MOMENTS) == 5
    assert MOMENTS[0] == FIRST
    assert MOMENTS[-1] == FIRST + timedelta(seconds=4)
    assert every(2, FIRST, FIRST + timedelta(seconds=3)) == [FIRST, FIRST + timedelta(seconds=2)]


def test_agreement_is_clean_and_counted() -> None:
    verdict = judged(all_starts(), all_rows())
    assert verdict.clean, verdict
    assert verdict.outcomes == {"success": 5}
    assert (verdict.expected, verdict.starts) == (5, 5)


def test_planted_duplicate_is_reported() -> None:
    twice = start(2, run_id="other", node="node-b")
    verdict = judged([*all_starts(), twice], all_rows())
    assert len(verdict.duplicates) == 1
    assert "node-a, node-b" in verdict.duplicates[0]
    assert any("which the ledger does not know" in found for found in verdict.contradictions)


def test_same_run_started_twice_is_a_duplicate() -> None:
    assert len(judged([*all_starts(), start(2)], all_rows()).duplicates) == 1


def test_one_run_for_two_fires_is_a_duplicate() -> None:
    starts = [start(0), start(1, run_id="run0"), start(2), start(3), start(4)]
    verdict = judged(starts, all_rows())
    assert any("different fires" in found for found in verdict.duplicates)


def test_another_attempt_is_no_duplicate() -> None:
    again = start(2, run_id="again", attempt=2)
    rows = [*all_rows(), row(2, run_id="again", attempt=2)]
    rows[2]["outcome"] = "lost"
    verdict = judged([*all_starts(), again], rows)
    assert verdict.clean, verdict
    assert verdict.outcomes == {"success": 5, "lost": 1}


def test_planted_absent_fire_is_reported() -> None:
    starts, rows = all_starts(), all_rows()
    del starts[3], rows[3]
    verdict = judged(starts, rows)
    assert verdict.absent == [f"tick at {MOMENTS[3].isoformat()} is not in the ledger"]
    assert not verdict.duplicates


def test_success_without_a_line_outside_is_reported() -> None:
    verdict = judged(all_starts()[:-1], all_rows())
    assert ["left no line" in found for found in verdict.contradictions] == [True]


def test_lost_run_may_have_died_before_its_line() -> None:
    rows = all_rows()
    rows[4] = row(4, "lost")
    assert judged(all_starts()[:-1], rows).clean
    assert judged(all_starts(), rows).clean


@pytest.mark.parametrize("outcome", ["missed", "coalesced", "skipped", "cancelled"])
def test_start_of_a_fire_that_the_ledger_passed_over_is_reported(outcome: str) -> None:
    rows = all_rows()
    rows[1] = row(1, outcome)
    assert not judged(all_starts(), rows).clean
    without = [found for found in all_starts() if found.run_id != "run1"]
    assert judged(without, rows).clean


@pytest.mark.parametrize("outcome", ["pending", "running"])
def test_run_without_an_end_is_reported(outcome: str) -> None:
    rows = all_rows()
    rows[0] = row(0, outcome)
    assert any("never came to an end" in found for found in judged(all_starts(), rows).contradictions)


def test_one_row_may_account_for_many_moments() -> None:
    folded = row(3, "coalesced", scheduled_from=MOMENTS[1].isoformat(), count=3)
    verdict = judged([start(0), start(4)], [row(0), folded, row(4)])
    assert verdict.clean, verdict
    assert verdict.outcomes == {"success": 2, "coalesced": 3}


def test_miscounted_row_is_reported() -> None:
    folded = row(3, "coalesced", scheduled_from=MOMENTS[1].isoformat(), count=2)
    verdict = judged([start(0), start(4)], [row(0), folded, row(4)])
    assert any("counts 2 moments" in found for found in verdict.contradictions)


def test_moment_recorded_twice_is_reported() -> None:
    verdict = judged(all_starts(), [*all_rows(), row(2, "skipped", run_id="other")])
    assert any("is in the ledger 2 times" in found for found in verdict.contradictions)


def test_start_that_no_trigger_implies_is_reported() -> None:
    stray = start(4, run_id="stray", scheduled_for=MOMENTS[4] + timedelta(seconds=1))
    verdict = judged([*all_starts(), stray], all_rows())
    assert any("does not imply" in found for found in verdict.contradictions)


def test_early_start_is_reported() -> None:
    starts = all_starts()
    starts[0] = start(0, time=FIRST.timestamp() - 0.2)
    assert any("before it was due" in found for found in judged(starts, all_rows()).contradictions)


def test_manual_runs_are_left_out() -> None:
    manual = start(2, run_id="manual", kind="manual")
    assert judged([*all_starts(), manual], [*all_rows(), row(2, run_id="manual", kind="manual")]).clean


def test_log_alone_shows_duplicates_and_absents() -> None:
    assert judge_log(EXPECTED, all_starts()).clean
    verdict = judge_log(EXPECTED, [*all_starts()[:-1], start(0, run_id="other")])
    assert (len(verdict.duplicates), len(verdict.absent)) == (1, 1)


def test_a_backup_holds_what_had_started_and_nothing_else() -> None:
    """Its moment lies between the third start and the fourth; the third has not ended."""
    taken_at, starts = FIRST + timedelta(seconds=2.5), all_starts()
    held = {"run0": "success", "run1": "failed", "run2": "running", "waits": "pending", "late": "missed"}
    assert judge_backup(held, taken_at, starts) == []
    assert judge_backup(held | {"run3": "success"}, taken_at, starts) == []
    assert judge_backup(held | {"other": "success"}, taken_at, starts) == ["run other ended, and nobody saw it start"]
    del held["run2"]
    assert judge_backup(held, taken_at, starts) == ["run run2 had started, and is not in the backup"]


def test_verdict_names_every_count() -> None:
    text = str(judged([*all_starts(), start(0)], all_rows()))
    assert "expected fires 5, starts seen outside 6, outcomes: success 5" in text
    assert "duplicates 1, absent 0, contradictions 0" in text


def test_log_is_read_back(tmp_path: Path) -> None:
    log = tmp_path / "fires.jsonl"
    assert read_log(log) == []
    line = {
        "event": "start", "run_id": "r", "job_id": "tick", "scheduled_for": "2026-03-01T20:00:00+08:00",
        "kind": "schedule", "attempt": 1, "node": "node-a", "pid": 7, "time": 1.5,
    }  # fmt: skip
    log.write_text(json.dumps(line) + "\n" + json.dumps(line | {"event": "end"}) + "\n")
    assert read_log(log) == [Start("r", "tick", FIRST, "node-a", 1.5)]


def test_naive_moment_is_refused() -> None:
    with pytest.raises(ValueError, match="without an offset"):
        parse_moment("2026-03-01T12:00:00")
