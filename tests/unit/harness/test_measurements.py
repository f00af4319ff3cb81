"""The figures of a fault: what is counted, from when, and how the table shows it."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from e2e.harness.measurements import FOLDER_VARIABLE, Measurement, kept, measure, table
from e2e.harness.oracle import Start, Verdict

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def start(job_id: str, second: float, late: float) -> Start:
    moment = BEGIN + timedelta(seconds=second)
    return Start(f"{job_id}-{second}", job_id, moment, "node", moment.timestamp() + late)


def at(second: float) -> float:
    return (BEGIN + timedelta(seconds=second)).timestamp()


def figures(starts: list[Start], **told: object) -> Measurement:
    verdict = Verdict(expected=len(starts), starts=len(starts), outcomes=Counter(success=len(starts)))
    return measure("killed", "SIGKILL", verdict=verdict, starts=starts, struck=at(10), **told)  # type: ignore[arg-type]


def test_next_fire_is_the_latest_of_every_jobs_first_one_after_the_fault() -> None:
    starts = [start("a", 9.5, 0.7), start("a", 10.5, 0.01), start("a", 11.5, 2.0), start("b", 10.2, 0.4)]
    found = figures(starts)
    assert found.next_fire_late == pytest.approx(0.4)
    assert found.recovery == pytest.approx(0.6)  # b: due 0.2 s after the fault, 0.4 s late
    assert found.outage is None


def test_fires_long_before_the_fault_do_not_count_as_late() -> None:
    found = figures([start("a", 1, 5.0), start("a", 9.5, 0.7), start("a", 10.5, 0.1)])
    assert found.lateness == {"p50": 0.1, "p99": 0.1, "max": 0.7}


def test_recovery_of_an_outage_counts_from_its_end() -> None:
    starts = [start("a", 10.5, 4.0), start("a", 11.5, 3.2), start("b", 14.9, 0.0)]
    found = figures(starts, healed=at(14), outage=True)
    assert found.outage == pytest.approx(4.0)
    assert found.recovery == pytest.approx(0.9)


def test_without_a_start_nothing_is_claimed() -> None:
    found = figures([])
    assert (found.lateness, found.next_fire_late, found.recovery) == ({}, None, None)
    assert " – " in table([found])


def test_figures_are_kept_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures([start("a", 10.5, 1.25)], healed=at(12), outage=True, limit="outage + 3 s")
    found.keep()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "figures"))
    found.keep()
    assert kept(tmp_path / "figures") == [found]
    shown = table([found]).splitlines()[-1]
    assert shown == (
        "| killed | SIGKILL | 1 | 0 | 0 | 1 success | 1.2 s / 1.2 s / 1.2 s | 1.2 s "
        "| – after an outage of 2.0 s | outage + 3 s |"
    )
