"""The log of a drill: one line a start, written by the probes themselves to a file outside the job store.

userdata/drills/20260401-003000/fires.jsonl
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from app.services.operations.failure import OperationFailed

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


def drills_folder(userdata: Path) -> Path:
    """Where the drills lie, a folder each."""
    return userdata / "drills"


def drill_folder(userdata: Path, drill: str) -> Path:
    """Where everything of one drill lies."""
    return drills_folder(userdata) / drill


def fires_file(userdata: Path, drill: str) -> Path:
    """The log of a drill."""
    return drill_folder(userdata, drill) / "fires.jsonl"


def read_starts(file: Path) -> list[Start]:
    """The starts in the log, in the order of their writing; a missing file holds none.

    OperationFailed for a line that is not a probe's.
    """
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [_read_start(file, number, line) for number, line in enumerate(lines, 1)]


def _read_start(file: Path, number: int, line: str) -> Start:
    try:
        start = Start(**json.loads(line))
        if not math.isfinite(start.time + start.scheduled_for):
            raise ValueError("not a time")
    except (ValueError, TypeError) as error:
        raise OperationFailed(f"{file}, line {number}, is not a probe's: {line[:100]!r}") from error
    return start
