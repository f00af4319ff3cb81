"""The report of a drill: a program can read all of it back, a person sees every fire and every fault."""

from __future__ import annotations

import json
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

from app.services.operations.drill.log import Start
from app.services.operations.drill.report import write_report
from app.services.operations.drill.verdict import Fault, Row, Verdict, judge, moments

BEGIN = 1_800_000_000.0
DRILL = "20270115-080000"
FIRST = {"a": BEGIN, "b": BEGIN + 0.5}
VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """The elements of a page by name, with their attributes; and its text. Fails when tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of_class(self, tag: str, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == tag and attributes.get("class") == name]


def written(
    tmp_path: Path, *faults: Fault, starts: list[Start] | None = None, rows: list[Row] | None = None
) -> tuple[Verdict, dict[str, object], Page]:
    """20 s of two jobs, on a node each: a flawless drill, unless told otherwise; the verdict and both files."""
    expected = {job_id: moments(first, 1.0, BEGIN + 20) for job_id, first in FIRST.items()}
    if starts is None:
        starts = [Start(f"{j}{m}", j, m, 1, f"node-{j}", m + 0.01) for j, due in expected.items() for m in due]
    if rows is None:
        rows = [Row(s.run_id, s.job_id, s.scheduled_for, s.scheduled_for, 1, s.attempt, "success") for s in starts]
    folder = tmp_path / DRILL
    folder.mkdir()
    verdict = judge(expected, starts, rows, faults)
    write_report(folder, FIRST, verdict, starts, rows)
    document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return verdict, document, Page((folder / "report.html").read_text(encoding="utf-8"))


def test_json_reads_back(tmp_path: Path) -> None:
    fault = Fault("kill", "scheduler-1", BEGIN + 5, BEGIN + 10, "node-a")
    verdict, document, _ = written(tmp_path, fault)
    assert document["proven"] is True
    assert document["drill"] == DRILL
    fires = document.pop("fires")
    assert isinstance(fires, list)
    assert len(fires) == 40
    assert Start(**fires[0]).job_id == "a"
    assert {name: document[name] for name in asdict(verdict)} == json.loads(json.dumps(asdict(verdict)))


def test_html_has_every_fire_and_every_fault(tmp_path: Path) -> None:
    faults = [
        Fault("kill", "scheduler-1", BEGIN + 3, BEGIN + 5, "node-a"),
        Fault("database", "postgres-1", BEGIN + 10, BEGIN + 10),
    ]
    _, _, page = written(tmp_path, *faults)
    assert len(page.of_class("circle", "on-time")) == 40
    assert len(page.of_class("rect", "band")) == 2
    assert len(page.of_class("rect", "struck")) == 1, "the database is no lane"
    for words in ("1 kill", "2 database", "scheduler-1", "postgres-1", "proven", "node-b"):
        assert words in page.text
    assert "not proven" not in page.text
    assert all(float(mark["width"] or 0) > 0 for mark in page.of_class("rect", "band")), "a moment is seen as well"
    inside = [float(mark["cx"] or -1) for mark in page.of_class("circle", "on-time")]
    assert min(inside) >= 0
    assert max(inside) <= 1200


def test_colours_tell_how_a_fire_went(tmp_path: Path) -> None:
    def start(index: int, late: float) -> Start:
        return Start(f"r{index}", "a", BEGIN + index, 1, "node-a", BEGIN + index + late)

    starts = [start(0, 0.9), start(1, 1.1), start(2, 3.1), start(3, 0.0)]
    rows = [Row(f"r{index}", "a", BEGIN + index, BEGIN + index, 1, 1, "success") for index in range(3)]
    rows.append(Row("r3", "a", BEGIN + 3, BEGIN + 3, 1, 1, "lost"))
    rows.append(Row("r4", "a", BEGIN + 4, BEGIN + 9, 6, 1, "coalesced"))
    _, _, page = written(tmp_path, starts=starts, rows=rows)
    tones = [len(page.of_class("circle", tone)) for tone in ("on-time", "late", "very-late", "lost", "unstarted")]
    assert tones == [1, 1, 1, 1, 1]
    assert "no start" in page.text


def test_findings_are_written_out(tmp_path: Path) -> None:
    starts = [Start("r", "a", BEGIN, 1, node, BEGIN + 0.1) for node in ("node-a", "node-b")]
    _, document, page = written(tmp_path, starts=starts, rows=[Row("r", "a", BEGIN, BEGIN, 1, 1, "success")])
    assert document["proven"] is False
    assert "not proven" in page.text
    assert "a was started 2 times for 1800000000.000, attempt 1, on node-a, node-b" in page.text
    assert "b at 1800000000.500 is not in the ledger" in page.text


def test_many_findings_are_cut_short(tmp_path: Path) -> None:
    starts = [Start(f"r{index}", "z", BEGIN + index, 1, "n", BEGIN + index) for index in range(150)]
    _, _, page = written(tmp_path, starts=starts, rows=[])
    assert "more: report.json has all" in page.text


def test_names_are_no_markup(tmp_path: Path) -> None:
    node = "<script>alert(1)</script>"
    starts = [Start("r", "a", BEGIN, 1, node, BEGIN), Start("s", "a", BEGIN, 1, node, BEGIN)]
    fault = Fault("kill", '"><img src=x onerror=alert(1)>', BEGIN + 1, BEGIN + 2, node)
    _, _, page = written(tmp_path, fault, starts=starts, rows=[])
    assert {"script", "img"} & {tag for tag, _ in page.elements} == set()
    assert node in page.text


@pytest.mark.parametrize("seconds", [0.0, 1e3, 1e8])
def test_it_has_a_picture_however_long_it_took(tmp_path: Path, seconds: float) -> None:
    _, _, page = written(tmp_path, Fault("kill", "scheduler-1", BEGIN + seconds, BEGIN + seconds))
    assert len(page.of_class("circle", "on-time")) == 40


def test_many_faults_are_numbered(tmp_path: Path) -> None:
    _, _, page = written(tmp_path, *(Fault("kill", "s", BEGIN + n, BEGIN + n) for n in range(15)))
    assert len(page.of_class("text", "band-label")) == 15
    assert "15 kill" not in page.text


def test_a_drill_in_which_nothing_happened_has_a_report_too(tmp_path: Path) -> None:
    _, document, page = written(tmp_path, starts=[], rows=[])
    assert document["starts"] == 0
    assert "not proven" in page.text
