"""What a fault did to the fires: figures, kept as JSON, and the table that docs/measured.md shows of them.

    python -m e2e.harness.measurements FOLDER

prints the table of all figures that tests run with FAULTS_REPORT=FOLDER have left there.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from e2e.harness.oracle import Start, Verdict

#: Where tests leave their figures; unset: nowhere.
FOLDER_VARIABLE = "FAULTS_REPORT"

HEADER = (
    "| fault | how | fires due | doubled | absent | outcomes | late p50 / p99 / most | next fire late "
    "| recovery | limit |\n|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Measurement:
    """The fires around one fault. Seconds everywhere.

    `lateness` is of every start due from a second before the fault on: p50, p99, max. `next_fire_late`: each job's
    first fire that was due after the fault and ran, the latest of them. `recovery`: from the fault (from its end,
    where the whole stack had to wait for it: `outage` is then its length) to the moment at which every job had been
    started once more.
    """

    fault: str
    how: str
    due: int
    duplicates: int
    absent: int
    contradictions: int
    outcomes: dict[str, int] = field(default_factory=dict)
    lateness: dict[str, float] = field(default_factory=dict)
    next_fire_late: float | None = None
    recovery: float | None = None
    outage: float | None = None
    limit: str = ""

    def keep(self) -> None:
        """Leaves the figures in the folder that FAULTS_REPORT names."""
        name = os.environ.get(FOLDER_VARIABLE)
        if not name:
            return
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^a-z0-9]+", "-", f"{self.fault} {self.how}".lower()).strip("-")
        (folder / f"{slug}.json").write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def measure(
    fault: str,
    how: str,
    *,
    verdict: Verdict,
    starts: Sequence[Start],
    struck: float,
    healed: float | None = None,
    outage: bool = False,
    limit: str = "",
) -> Measurement:
    """The figures of a fault that struck at `struck` and was over at `healed` (seconds since the epoch).

    `outage`: no node could run anything in between, so recovery counts from its end.
    """
    by_job: dict[str, list[Start]] = {}
    for start in sorted(starts, key=lambda start: start.scheduled_for):
        by_job.setdefault(start.job_id, []).append(start)
    over = healed if outage and healed is not None else struck
    next_late: list[float] = []
    recovered: list[float] = []
    for own in by_job.values():
        after = [start for start in own if start.scheduled_for.timestamp() >= struck]
        if after:
            next_late.append(late(after[0]))
        times = [start.time for start in own if start.time >= over and start.scheduled_for.timestamp() >= struck]
        if times:
            recovered.append(min(times) - over)
    around = sorted(late(start) for start in starts if start.scheduled_for.timestamp() >= struck - 1)
    return Measurement(
        fault=fault,
        how=how,
        due=verdict.expected,
        duplicates=len(verdict.duplicates),
        absent=len(verdict.absent),
        contradictions=len(verdict.contradictions),
        outcomes=dict(sorted(verdict.outcomes.items())),
        lateness={
            name: round(around[int((len(around) - 1) * share)], 3)
            for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        }
        if around
        else {},
        next_fire_late=round(max(next_late), 3) if next_late else None,
        recovery=round(max(recovered), 3) if recovered else None,
        outage=round(healed - struck, 3) if outage and healed is not None else None,
        limit=limit,
    )


def late(start: Start) -> float:
    """Seconds from the due moment to the task's first line."""
    return start.time - start.scheduled_for.timestamp()


def table(measurements: Sequence[Measurement]) -> str:
    """The figures as a Markdown table."""
    return "\n".join([HEADER, *(_row(one) for one in measurements)])


def _row(one: Measurement) -> str:
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in one.outcomes.items())
    spread = " / ".join(_seconds(one.lateness.get(name)) for name in ("p50", "p99", "max"))
    recovery = _seconds(one.recovery)
    if one.outage is not None:
        recovery += f" after an outage of {_seconds(one.outage)}"
    cells: list[Any] = [one.fault, one.how, f"{one.due:,}", one.duplicates, one.absent, outcomes, spread]
    cells += [_seconds(one.next_fire_late), recovery, one.limit]
    return "| " + " | ".join(map(str, cells)) + " |"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def kept(folder: Path) -> list[Measurement]:
    """All figures in a folder, by fault."""
    found = [Measurement(**json.loads(file.read_text(encoding="utf-8"))) for file in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda one: (one.fault.lower(), one.how.lower()))


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python -m e2e.harness.measurements FOLDER   (the folder that FAULTS_REPORT named)")
    print(table(kept(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
