"""What becomes of due moments: examples, and a comparison with counting one by one."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.db.clock import to_us
from app.ledger.fates import Decision, Fold, decide

from .conftest import EVERY_SECOND, START

TRIGGER = json.dumps(EVERY_SECOND)
S = 1_000_000
T0 = to_us(START)


def fates(now_s: float, *, grace_s: int = 300, coalesce: bool = True, free: int = 1) -> Decision:
    return decide(trigger=TRIGGER, due=T0, now=T0 + round(now_s * S), grace_s=grace_s, coalesce=coalesce, free=free)


def test_one_moment_on_time_runs() -> None:
    assert fates(0.02) == Decision((Fold("run", T0, T0),), T0 + S)


def test_at_max_instances_it_is_skipped() -> None:
    assert fates(0.02, free=0) == Decision((Fold("skipped", T0, T0),), T0 + S)


def test_older_moments_are_folded_into_the_last() -> None:
    assert fates(3.5) == Decision(
        (Fold("coalesced", T0, T0 + 2 * S, 3), Fold("run", T0 + 3 * S, T0 + 3 * S)), T0 + 4 * S
    )


def test_without_coalescing_every_moment_runs() -> None:
    assert fates(2.5, coalesce=False) == Decision(
        tuple(Fold("run", T0 + n * S, T0 + n * S) for n in range(3)), T0 + 3 * S
    )


def test_moments_beyond_the_grace_time_are_missed() -> None:
    decision = fates(10.5, grace_s=3)
    assert decision.folds == (
        Fold("missed", T0, T0 + 7 * S, 8),
        Fold("coalesced", T0 + 8 * S, T0 + 9 * S, 2),
        Fold("run", T0 + 10 * S, T0 + 10 * S),
    )


def test_a_days_outage_of_a_one_second_job_is_two_folds_and_a_run() -> None:
    decision = fates(timedelta(days=1).total_seconds() + 0.5)
    assert [(fold.fate, fold.count) for fold in decision.folds] == [("missed", 86_101), ("coalesced", 299), ("run", 1)]


def test_a_date_fires_once_and_has_no_next_moment() -> None:
    date = json.dumps({"type": "date", "run_date": START.isoformat(), "timezone": "UTC"})
    on_time = decide(trigger=date, due=T0, now=T0 + S, grace_s=60, coalesce=True, free=1)
    late = decide(trigger=date, due=T0, now=T0 + 61 * S, grace_s=60, coalesce=True, free=1)
    assert on_time == Decision((Fold("run", T0, T0),), None)
    assert late == Decision((Fold("missed", T0, T0),), None)


@settings(max_examples=300)
@given(
    late_s=st.floats(0, 500),
    grace_s=st.integers(1, 400),
    coalesce=st.booleans(),
    free=st.integers(0, 2),
    step=st.sampled_from(["*", "*/7", "3,4,40"]),
)
def test_every_due_moment_has_exactly_one_fate(
    late_s: float, grace_s: int, coalesce: bool, free: int, step: str
) -> None:
    trigger = json.dumps({**EVERY_SECOND, "second": step})
    allowed = {"*": range(60), "*/7": range(0, 60, 7), "3,4,40": (3, 4, 40)}[step]
    now = T0 + round(late_s * S)
    due = next(T0 + n * S for n in range(60) if n in allowed)
    if due > now:
        return
    expected = [T0 + n * S for n in range(502) if n % 60 in allowed and T0 + n * S <= now]
    seen: list[int] = []
    moment: int | None = due
    while moment is not None and moment <= now:
        decision = decide(trigger=trigger, due=moment, now=now, grace_s=grace_s, coalesce=coalesce, free=free)
        for fold in decision.folds:
            covered = [at for at in expected if fold.first <= at <= fold.last]
            assert len(covered) == fold.count
            is_late = [now - at > grace_s * S for at in covered]
            assert all(is_late) if fold.fate == "missed" else not any(is_late)
            seen += covered
        moment = decision.next_moment
    assert seen == expected


@pytest.mark.parametrize("coalesce", [True, False])
def test_nothing_runs_without_a_free_instance(coalesce: bool) -> None:
    assert "run" not in {fold.fate for fold in fates(500, coalesce=coalesce, free=0).folds}
