"""A task holds its scheduler's interpreter lock in one long C call: its node is silent, and not dead."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise

import pytest

from e2e.harness.faults import extra_scheduler
from e2e.harness.oracle import FINAL
from e2e.harness.probes import Probes
from e2e.harness.sqlite_lock import is_locked
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

LIMIT_S = 3.0
CALL_S = 10.0
JOB = "holds-the-lock"


def longest_withheld(locked: list[tuple[float, bool]]) -> float:
    """The longest time, in seconds, in which each look found SQLite locked; looks are (moment, locked)."""
    longest, since = 0.0, None
    for moment, is_held in locked:
        since = (since or moment) if is_held else None
        longest = max(longest, moment - since if since else 0.0)
    return longest


@pytest.mark.timeout(240)
def test_its_runs_are_not_lost_and_the_other_scheduler_fires_on_time(one_stack: Stack, probes: Probes) -> None:
    client = one_stack.bearer()
    how = f"one C call of {CALL_S:g} s in a thread, one of two schedulers on SQLite"
    with (
        probes.watch("a task holds the interpreter lock", how, limit="3 s, nothing lost") as watch,
        extra_scheduler(one_stack, {}) as other,
    ):
        soon = datetime.fromtimestamp(time.time() + 2, tz=UTC)
        # It ends with a call of that length: the shorter ones before it, which find out its size, take half as long.
        burn = {"seconds": CALL_S, "call_seconds": CALL_S}
        client.create_job(JOB, "oracle_burn", {"trigger_type": "date", "run_date": soon.isoformat()}, kwargs=burn)
        began = wait_until("the task's start", partial(one_stack.logged, JOB), within=30, every=0.05)
        watch.strike()
        locked: list[tuple[float, bool]] = []

        def end() -> float | None:
            locked.append((time.time(), is_locked(one_stack)))
            return one_stack.logged(JOB, "end")

        ended = wait_until("the task's end", end, within=60)
        watch.heal()
        other.stop(timeout=60)  # in order: it loses nothing
    watch.check()
    assert began is not None
    assert ended is not None
    (start,) = [start for start in one_stack.starts() if start.job_id == JOB]
    by_it = sorted(one.time for one in watch.starts if one.node == start.node and began <= one.time <= ended)
    silent = max(later - earlier for earlier, later in pairwise([began, *by_it, ended]))
    withheld = longest_withheld(locked)
    print(f"{start.node} was silent for {silent:.1f} s, and held SQLite's lock for {withheld:.1f} s of it")
    assert silent >= CALL_S * 0.8, "the interpreter lock was not held"
    assert watch.verdict.outcomes["lost"] == 0, watch.verdict
    # Caught in the middle of a transaction, its node holds SQLite's lock too, and nobody can evict it: then all wait.
    limit = LIMIT_S if withheld < 1 else ended - began + LIMIT_S
    assert max(watch.lateness(not_by=start.node)) <= limit, watch.measurement
    runs = wait_until(
        "its run has ended", lambda: client.history(JOB), lambda rows: rows[0]["outcome"] in FINAL, within=20
    )
    assert [run["outcome"] for run in runs] == ["success"], runs
    client.delete_job(JOB)
