"""The log of a drill: one line a start, written by the probes themselves to a file outside the job store.

userdata/drills/20260401-003000/fires.jsonl
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

DRILL_PATTERN = r"^[0-9]{8}-[0-9]{6}$"


@dataclass(frozen=True, slots=True)
class Start:
    """A start of a probe as it wrote it down itself; times are seconds since the epoch."""

    run_id: str
    job_id: str
    scheduled_for: float
    attempt: int
    node: str
    time: float

    @property
    def lateness_s(self) -> float:
        """From the moment that it was due to its start, in seconds."""
        return max(0.0, self.time - self.scheduled_for)


def drill_folder(userdata: Path, drill: str) -> Path:
    """Where everything of one drill lies."""
    return userdata / "drills" / drill


def fires_file(userdata: Path, drill: str) -> Path:
    """The log of a drill."""
    return drill_folder(userdata, drill) / "fires.jsonl"


def read_starts(file: Path) -> list[Start]:
    """The starts in the log, in the order of their writing; a missing file holds none."""
    if not file.exists():
        return []
    return [Start(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
