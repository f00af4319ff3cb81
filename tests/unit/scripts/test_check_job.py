"""scripts/check_job.py: the exit status that a monitoring system acts on."""

from __future__ import annotations

import json
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from app.settings import PROJECT_ROOT
from e2e.harness.certificates import make_certificate, write_certificate

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def check_job(monkeypatch_module: pytest.MonkeyPatch) -> ModuleType:
    spec = spec_from_file_location("check_job", PROJECT_ROOT / "scripts" / "check_job.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch_module.setitem(sys.modules, "check_job", module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def at(seconds: float) -> str:
    return (NOW + timedelta(seconds=seconds)).isoformat()


def job(**changes: Any) -> dict[str, Any]:
    return {
        **{"id": "job", "next_run_time": at(600), "is_active": True, "is_enabled": True, "is_paused": False},
        **{"problem": None, "updated_at": at(-9000), "updated_by": "1"},
        **changes,
    }


def run(outcome: str, **changes: Any) -> dict[str, Any]:
    started = None if outcome in ("missed", "skipped", "coalesced", "pending") else at(-100)
    return {
        **{"outcome": outcome, "kind": "schedule", "scheduled_for": at(-100), "started_at": started, "error": None},
        **{"reason": None, "lateness_ms": 12.5, "duration_ms": 1500.0, "not_before": None},
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "history", "status", "state"),
    [
        ({}, [], 0, "ok"),
        ({}, [run("success")], 0, "ok"),
        ({}, [run("running"), run("success")], 0, "ok"),
        ({}, [run("coalesced"), run("success")], 0, "ok"),
        ({"next_run_time": None}, [run("success")], 0, "ok"),  # a date job that is done
        ({"next_run_time": at(-30)}, [run("success")], 0, "ok"),
        ({"next_run_time": at(-61)}, [run("success")], 1, "late"),
        ({}, [run("pending", scheduled_for=at(-61)), run("success")], 1, "late"),
        ({}, [run("pending", scheduled_for=at(-900), not_before=at(30)), run("success")], 0, "ok"),
        ({}, [run("success", lateness_ms=61_000)], 1, "late"),
        ({}, [run("success", lateness_ms=61_000, kind="manual")], 0, "ok"),
        ({}, [run("skipped"), run("success")], 1, "late"),
        ({}, [run("cancelled")], 1, "late"),
        ({}, [run("failed", error="Traceback\nValueError: x"), run("success")], 2, "failed"),
        ({}, [run("lost", reason="its process died")], 2, "failed"),
        ({}, [run("missed")], 2, "failed"),
        ({}, [run("running"), run("failed")], 2, "failed"),
        ({"next_run_time": at(-9000)}, [run("failed")], 2, "failed"),
        ({"problem": "column trigger holds no JSON"}, [run("success")], 2, "failed"),
        ({"is_paused": True, "next_run_time": None}, [run("failed")], 3, "paused"),
        ({"is_enabled": False, "next_run_time": None}, [], 3, "paused"),
    ],
)
def test_verdicts(
    check_job: ModuleType, changes: dict[str, Any], history: list[dict[str, Any]], status: int, state: str
) -> None:
    verdict = check_job.judge(job(**changes), history, NOW, late_after_s=60, paused_is=3)
    assert (verdict.status, verdict.state) == (status, state), verdict.message


def test_one_line_with_performance_data(check_job: ModuleType) -> None:
    failed = run("failed", error="Traceback\n  pipe | inside\nValueError: a | b", lateness_ms=12.0)
    verdict = check_job.judge(job(), [failed], NOW, late_after_s=60, paused_is=3)
    line = check_job.line_of(verdict, 60)
    text, _, figures = line.partition(" | ")
    assert text == (
        "CRITICAL - job: failed: failed at 2026-06-01T11:58:20+00:00: ValueError: a / b; next 2026-06-01T12:10:00+00:00"
    )
    assert figures == "lateness=0.012s;60 duration=1.5s"
    assert line.count("|") == 1


def test_what_a_paused_job_is_can_be_chosen(check_job: ModuleType) -> None:
    assert check_job.judge(job(is_paused=True), [], NOW, late_after_s=60, paused_is=0).status == 0


class Answers(BaseHTTPRequestHandler):
    """Answers every request with what the server was told."""

    def do_GET(self) -> None:
        status, headers, body = self.server.answer  # type: ignore[attr-defined]
        self.server.asked.append((self.path, self.headers["Authorization"]))  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    made = HTTPServer(("127.0.0.1", 0), Answers)
    made.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def ask(check_job: ModuleType, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    token = tmp_path / "token"
    token.write_text("the-token\n")

    def check(answer: Any, *arguments: str) -> tuple[int, str]:
        server.answer = answer
        address = f"http://127.0.0.1:{server.server_port}"
        code = check_job.main(["--job-id", "a/b c", "--url", address, "--token-file", str(token), *arguments])
        told = capsys.readouterr()
        assert told.err == ""
        assert len(told.out.splitlines()) == 1
        return code, told.out

    return check


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        ((401, {}, b"{}"), "the token is not the stack's"),
        ((404, {}, b'{"message": "the job does not exist"}'), "answers 404: the job does not exist"),
        ((503, {}, b"<html>"), "answers 503"),
        ((308, {"Location": "https://elsewhere/"}, b""), "leads to https://elsewhere/; name that address with --url"),
        ((200, {}, b"<html>"), "does not answer like this stack"),
        ((200, {}, b"[]"), "does not answer like this stack"),
        ((200, {}, b'{"data": [], "timestamp": "2026-06-01T12:00:00Z"}'), "is not understood"),
        ((200, {}, b'{"data": {}, "timestamp": "yesterday"}'), "is not understood"),
    ],
)
def test_answers_that_tell_nothing(ask: Any, server: Any, answer: Any, part: str) -> None:
    code, told = ask(answer)
    assert code == 3
    assert told.startswith("UNKNOWN - a/b c: ")
    assert part in told
    assert server.asked[0] == ("/api/v1/scheduler/jobs/a%2Fb%20c", "Bearer the-token")
    assert all("elsewhere" not in path for path, _ in server.asked)


def test_json(ask: Any) -> None:
    code, told = ask((401, {}, b"{}"), "--json")
    assert code == 3
    assert json.loads(told)["state"] == "unknown"


def test_nobody_answers(check_job: ModuleType, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = tmp_path / "token"
    token.write_text("t")
    arguments = ["--job-id", "x", "--url", "http://127.0.0.1:1", "--token-file", str(token)]
    assert check_job.main(arguments) == 3
    assert "cannot be asked" in capsys.readouterr().out
    for file, part in ((tmp_path / "missing", "cannot be read"), (tmp_path / "empty", "holds no token")):
        (tmp_path / "empty").write_text("")
        assert check_job.main([*arguments[:-1], str(file)]) == 3
        assert part in capsys.readouterr().out


@pytest.fixture
def https(server: Any, tmp_path: Path) -> Callable[..., tuple[Path, int]]:
    """Puts the server behind a certificate for localhost; its folder, and the port."""

    def begin(valid_for: timedelta = timedelta(days=60)) -> tuple[Path, int]:
        write_certificate(tmp_path / "tls", *make_certificate(valid_for=valid_for))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "tls" / "tls.crt", tmp_path / "tls" / "tls.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        return tmp_path / "tls", server.server_port

    return begin


@pytest.mark.parametrize(
    ("trusted", "part"),
    [
        ("tls/tls.crt", "answers 401"),
        (None, "is not trusted: self-signed certificate; name its CA with --ca-file"),
        ("other/tls.crt", "is not trusted: self-signed certificate; name its CA with --ca-file"),
        ("tls/tls.key", "tls.key cannot be read"),
        ("none.crt", "none.crt cannot be read"),
    ],
)
def test_who_signed_the_certificate(
    ask: Any, server: Any, https: Callable[..., tuple[Path, int]], trusted: str | None, part: str
) -> None:
    folder, port = https()
    write_certificate(folder.parent / "other", *make_certificate())
    named = [] if trusted is None else ["--ca-file", str(folder.parent / trusted)]
    code, told = ask((401, {}, b"{}"), "--url", f"https://localhost:{port}", *named)
    assert code == 3
    assert part in told
    assert len(server.asked) == (part == "answers 401"), "the token is told to nobody who is not trusted"


@pytest.mark.parametrize(
    ("host", "days", "part"),
    [("127.0.0.1", 60, "is not valid for '127.0.0.1'"), ("localhost", -1, "certificate has expired")],
)
def test_what_is_wrong_with_a_certificate(
    ask: Any, https: Callable[..., tuple[Path, int]], host: str, days: int, part: str
) -> None:
    folder, port = https(timedelta(days=days))
    trusted = str(folder / "tls.crt")
    code, told = ask((401, {}, b"{}"), "--url", f"https://{host}:{port}", "--ca-file", trusted)
    assert code == 3
    assert part in told
    assert "--ca-file" not in told, "another CA would not help"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--job-id"],
        ["--job-id", "x", "--url", "ftp://x"],
        ["--job-id", "x", "--late-after", "0"],
        ["--job-id", "x", "--late-after", "soon"],
        ["--job-id", "x", "--paused-is", "fine"],
        ["--job-id", "x", "surplus"],
        ["--job", "x"],
    ],
)
def test_wrong_usage_is_no_alarm(
    check_job: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        check_job.main(arguments)
    assert ended.value.code == 3
    assert len(capsys.readouterr().err.splitlines()) == 1
