"""The form of a line: what begins it, what bounds it, and the ids that are taken out of a message."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from typing import Any

import pytest

from app.log_lines import JSONLines, TextLines, formatter_in, refuse

TEXT_LINE = re.compile(r"^\[web\] \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d WARNING a\.b (?P<text>.*)$")
DOCKER_CUTS_AFTER = 16 * 1024


def record(message: object, *args: object, error: BaseException | None = None, **values: object) -> logging.LogRecord:
    made = logging.LogRecord("a.b", logging.WARNING, "", 0, message, args, None)
    if error is not None:
        made.exc_info = (type(error), error, error.__traceback__)
    vars(made).update(values)
    return made


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    line = JSONLines("web", "n1").format(made)
    assert line.splitlines() == [line]
    line.encode("utf-8")
    read = json.loads(line)
    assert isinstance(read, dict)
    return read


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException:
        return error


@pytest.mark.parametrize("break_", ["\n", "\r\n", "\x0b", "\x1b", "\u2028", "\x85", "\udcff", "\U000e0001", '"', "\\"])
def test_a_value_cannot_fake_a_record(break_: str) -> None:
    read = as_json(record(f"任务{break_}{{}}", path=f"/x{break_}"))
    assert (read["message"], read["path"]) == (f"任务{break_}{{}}", f"/x{break_}")


@pytest.mark.parametrize(
    ("message", "args", "ids"),
    [
        ("run %s of job %s is lost: its node %s is gone", ("u1", "j1", "n9"), {"run_id": "u1", "job_id": "j1"}),
        ("%d runs, 100%% of job %s", (3, "j1"), {"job_id": "j1"}),
        ("default job %s: its id is taken, not that of job %s", ("j1", "j2"), {"job_id": "j1"}),
        ("took over %d pending runs", (3,), {}),
        ("rerun %s", ("u1",), {}),
        ("run u1 of job j1", (), {}),
    ],
)
def test_ids_that_a_message_names_are_fields(message: str, args: tuple[object, ...], ids: dict[str, str]) -> None:
    read = as_json(record(message, *args))
    assert {name: read[name] for name in ("run_id", "job_id") if name in read} == ids


def test_what_a_record_is_given_wins_no_name_of_its_own() -> None:
    read = as_json(record("x", level="mine", time="noon", nested={"a": [1]}, run_id=7, odd=object))
    assert (read["level"], read["level_"], read["time_"]) == ("warning", "mine", "noon")
    assert (read["nested"], read["run_id"]) == ({"a": [1]}, 7)
    assert "class" in read["odd"]


def test_a_traceback_is_a_field() -> None:
    read = as_json(record("failed", error=raised(ValueError("first\nsecond"))))
    assert read["message"] == "failed"
    assert read["exception"].startswith("Traceback")
    assert read["exception"].endswith("ValueError: first\nsecond")


def test_a_line_stays_whole_in_docker() -> None:
    long = "x" * 50_000
    made = record("%s", long, error=raised(ValueError(long)), path=long, many=list(range(9000)))
    assert len(JSONLines("web", "n1").format(made)) < DOCKER_CUTS_AFTER
    read = as_json(made)
    assert "characters left out" in read["message"]
    assert read["exception"].startswith("Traceback"), "the beginning is kept"
    assert read["exception"].endswith("xxx"), "and the end"


def test_text_is_one_readable_line() -> None:
    line = TextLines("web", "n1").format(record("job %s\nadded", "j1", path="/a b", count=3))
    match = TEXT_LINE.match(line)
    assert match, line
    assert match["text"] == "job j1\\nadded path='/a b' count=3"


def test_every_line_of_a_traceback_in_text_has_the_prefix() -> None:
    first, *others = TextLines("web", "n1").format(record("x", error=raised(ValueError("one\ntwo")))).splitlines()
    assert TEXT_LINE.match(first)
    assert all(line.startswith("[web] | ") for line in others)
    assert others[-1] == "[web] | two"


@pytest.mark.parametrize(("value", "is_text"), [("", False), ("json", False), (" TEXT ", True), ("xml", False)])
def test_the_environment_chooses(value: str, is_text: bool) -> None:
    line = formatter_in({"LOG_FORMAT": value, "NODE_NAME": "n7"}, "web").format(record("x"))
    assert line.startswith("[web] ") is is_text
    if not is_text:
        assert json.loads(line)["node"] == "n7"


def test_a_refusal_is_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        refuse({}, "web", "WEB_CONCURRENCY is 'x'; accepted: a whole number", status=4)
    assert ended.value.code == 4
    read = json.loads(capsys.readouterr().out)
    assert (read["level"], read["program"], read["message"].split()[0]) == ("critical", "web", "WEB_CONCURRENCY")


def test_nothing_of_the_app_is_loaded_with_it() -> None:
    """Gunicorn's masters and Supervisor stay small."""
    loaded = "sorted(m for m in sys.modules if m.split('.')[0] in ('app', 'flask', 'structlog'))"
    code = f"import sys, app.log_lines; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['app', 'app.log_lines']"
