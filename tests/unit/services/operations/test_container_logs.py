"""Lines of several containers: which belong together, in which order, and how they look."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable

import pytest

from app.services.operations import container_logs

Reader = Callable[..., tuple[int, list[str]]]


def written(container: str, second: float, message: str, **values: object) -> str:
    """A line as `docker compose logs --timestamps` shows it."""
    time = f"2026-05-01T00:00:{second:06.3f}"
    program = container.partition("-")[0]
    line = {"time": f"{time}+00:00", "level": "info", "program": program, "message": message, **values}
    return f"{container:<12} | {time}000000Z {json.dumps(line)}\n"


LOG = [
    written("scheduler-1", 3, "report starts", job_id="report", run_id="u1"),
    "\x1b[2K" + written("worker-2", 5, "copied", job_id="report", run_id="u1", files=2),
    written("worker-2", 9, "another", job_id="copy", run_id="u2"),
    written("nginx-1", 2, "POST /run 200", request_id="q1", upstream=""),
    written("nginx-1", 1, "GET /login 200", request_id="q0"),
    written("scheduler-1", 2.5, "run u1 of job report was asked for", request_id="q1", job_id="report", run_id="u1"),
    "worker-2     | 2026-05-01T00:00:06.000000000Z Fatal Python error: u1\n",
    "worker-2 exited with code 1\n",
]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Reader:
    def reader(*arguments: str, log: list[str] = LOG) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("".join(log).encode())))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
        code = container_logs.main(list(arguments))
        buffer = sys.stdout.buffer
        assert isinstance(buffer, io.BytesIO)
        return code, buffer.getvalue().decode().splitlines()

    return reader


def messages(lines: list[str]) -> list[str]:
    return [json.loads(line)["message"] for line in lines]


def test_a_run_is_shown_with_the_request_that_asked_for_it(read: Reader) -> None:
    code, lines = read("--run=u1", "--json")
    assert code == 0
    assert messages(lines) == [
        "POST /run 200",
        "run u1 of job report was asked for",
        "report starts",
        "copied",
        "Fatal Python error: u1",
    ]
    assert [json.loads(line)["container"] for line in lines][2:4] == ["scheduler-1", "worker-2"]


def test_a_request_is_shown_with_the_run_that_it_began(read: Reader) -> None:
    assert messages(read("--request=q1", "--json")[1])[:4] == [
        "POST /run 200",
        "run u1 of job report was asked for",
        "report starts",
        "copied",
    ]


def test_a_job_is_shown_by_its_lines(read: Reader) -> None:
    assert messages(read("--job=copy", "--json")[1]) == ["another"]
    assert "another" not in messages(read("--job=report", "--json")[1])


def test_all_lines_come_in_the_order_of_time(read: Reader) -> None:
    found = messages(read("--json")[1])
    assert len(found) == 7
    assert found[0] == "GET /login 200"
    assert found[-1] == "another"


def test_what_follows_comes_as_it_comes(read: Reader) -> None:
    assert messages(read("--run=u1", "--json", "--follow")[1]) == [
        "report starts",
        "copied",
        "run u1 of job report was asked for",
        "Fatal Python error: u1",
    ]


def test_text_is_for_eyes(read: Reader) -> None:
    log = [*LOG, written("web-1", 7, "failed\u2028x", run_id="u1", exception="Traceback\nValueError: \u001b[0m")]
    _, lines = read("--run=u1", log=log)
    assert "2026-05-01 00:00:05.000  INFO      worker worker-2  copied job_id=report files=2" in lines
    assert "2026-05-01 00:00:06.000  worker-2  Fatal Python error: u1" in lines
    assert lines[-3:] == [
        "2026-05-01 00:00:07.000  INFO      web web-1  failed\\u2028x",
        "    Traceback",
        "    ValueError: \\x1b[0m",
    ]


def test_nothing_found_is_said(read: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    assert read("--run=u9") == (1, [])
    assert capsys.readouterr().err == "no line of run u9 in the logs that are kept\n"
    assert read(log=[]) == (0, [])
