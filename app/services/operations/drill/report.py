"""The report of a drill: report.json for programs, report.html with a picture of every fire for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from app.services.operations.drill.log import Start
from app.services.operations.drill.verdict import NEVER_STARTED, Row, Verdict
from app.version import VERSION

_WIDTH, _LEFT, _LANE, _TOP = 1200, 150, 90, 40  # of the picture, in its own units
_ON_TIME_S, _LATE_S = 1.0, 3.0
_NO_START = "no start"
_LABELLED_FAULTS = 12
"""So many are written out above the picture; of more only the numbers, by which the table knows them."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """One fire in the picture."""

    x: float
    y: float
    tone: str
    title: str


def write_report(
    folder: Path, first: Mapping[str, float], verdict: Verdict, starts: Sequence[Start], rows: Sequence[Row]
) -> None:
    """Writes both files into `folder`; `first` has the probes with their first moments."""
    (folder / "report.json").write_text(
        json.dumps(
            {
                "version": VERSION,
                "drill": folder.name,
                "proven": verdict.proven,
                **asdict(verdict),
                "fires": [asdict(start) for start in starts],
            },
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True).get_template("report.html.jinja")
    picture = _picture(first, verdict, starts, rows)
    html = page.render(drill=folder.name, version=VERSION, verdict=verdict, picture=picture, clock=_clock)
    (folder / "report.html").write_text(html, encoding="utf-8")


def _picture(
    first: Mapping[str, float], verdict: Verdict, starts: Sequence[Start], rows: Sequence[Row]
) -> dict[str, Any]:
    """A lane a node, time from left to right; a fire's height in its lane is its job, its colour how late it was."""
    begin = min(first.values())
    moments = [start.time for start in starts] + [row.last for row in rows] + [f.fault.end for f in verdict.faults]
    span = max(1.0, max(moments, default=begin) - begin)
    nodes = sorted({start.node for start in starts})
    unstarted = [row for row in rows if row.outcome in (*NEVER_STARTED, "cancelled")]
    lanes = [*nodes, _NO_START] if unstarted else nodes
    targets = {figures.fault.node: figures.fault.target for figures in verdict.faults}
    heights = {job_id: (index + 0.5) / len(first) for index, job_id in enumerate(first)}
    lost = {row.run_id for row in rows if row.outcome == "lost"}

    def across(moment: float) -> float:
        return round(_LEFT + (moment - begin) / span * (_WIDTH - _LEFT - 20), 1)

    def down(lane: str, job_id: str) -> float:
        return round(_TOP + (lanes.index(lane) + 0.08 + 0.84 * heights.get(job_id, 0.5)) * _LANE, 1)

    marks = [
        _Mark(
            across(start.time),
            down(start.node, start.job_id),
            "lost" if start.run_id in lost else _tone(start.lateness_s),
            f"{start.job_id} due {_clock(start.scheduled_for)}, started on {start.node} {start.lateness_s:.3f} s late"
            + (", then lost" if start.run_id in lost else ""),
        )
        for start in starts
    ]
    marks += [
        _Mark(
            across(row.last),
            down(_NO_START, row.job_id),
            "unstarted",
            f"{row.job_id}: {row.outcome} {_clock(row.first)} to {_clock(row.last)}",
        )
        for row in unstarted
    ]
    bands = [
        {
            "x": across(figures.fault.begin),
            "width": max(2.0, across(figures.fault.end) - across(figures.fault.begin)),
            "title": f"{figures.fault.kind} {figures.fault.target}",
            "label": f"{number} {figures.fault.kind}" if len(verdict.faults) <= _LABELLED_FAULTS else str(number),
            "lane": lanes.index(figures.fault.node) if figures.fault.node in lanes else None,
        }
        for number, figures in enumerate(verdict.faults, 1)
    ]
    step = next((step for step in (5, 10, 30, 60, 300, 600, 3600) if span / step <= 12), 86_400)
    ticks = [{"x": across(begin + at), "label": _clock(begin + at)} for at in range(0, int(span) + 1, step)]
    return {
        "width": _WIDTH,
        "height": _TOP + len(lanes) * _LANE + 30,
        "left": _LEFT,
        "top": _TOP,
        "lane": _LANE,
        "lanes": [{"name": targets.get(lane, lane), "node": lane} for lane in lanes],
        "marks": marks,
        "bands": bands,
        "ticks": ticks,
    }


def _tone(lateness_s: float) -> str:
    return "on-time" if lateness_s < _ON_TIME_S else "late" if lateness_s < _LATE_S else "very-late"


def _clock(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%H:%M:%S")
