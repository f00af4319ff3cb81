"""JSON lines from every program, one run through all of them, and a bound for every log."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from e2e.harness.client import SCHEDULER
from e2e.harness.scripts import Outcome, environment_of, run_on, run_script
from e2e.harness.stack import ROOT, Stack, running_stack
from e2e.harness.waiting import wait_until

SHAPES = ("prod", "split", "ha")
NEVER = {"trigger_type": "cron", "cron_expression": "0 0 29 2 *"}
TEXT_LINE = re.compile(r"2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  (INFO|WARNING|ERROR) +(nginx|web|scheduler) \S+  .+")


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of its own: it is stopped and hurt."""
    with running_stack(tmp_path_factory) as stack:
        yield stack


def lines_of(stack: Stack) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stack.container().logs().decode().splitlines()]


def shown(stack: Stack, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run_on(stack, "logs.sh", "--json", *arguments).stdout.splitlines()]


def test_one_run_is_shown_through_all_programs(logged: Stack) -> None:
    client = logged.bearer()
    client.create_job("told", "oracle_fail", NEVER, kwargs={"message": "on purpose\n{"})
    client.create_job("other", "oracle_fire", NEVER)
    client.run_now("other")
    answer = client.post(f"{SCHEDULER}/jobs/told/actions/run", headers={"X-Request-ID": "ask-for-it"})
    run_id = answer.json()["data"]["run_id"]

    lines = wait_until(
        "the end of the run",
        lambda: shown(logged, "--run", run_id),
        lambda found: any("ended after" in line["message"] for line in found),
        within=30,
    )
    node = logged.container().attrs["Config"]["Hostname"]
    assert {line["node"] for line in lines} == {node}
    # nginx writes its line when the answer is out, by which time the run may have begun.
    asked = next(line for line in lines if line["program"] == "nginx")
    assert (asked["request_id"], asked["status"], asked["served_by"]) == ("ask-for-it", 200, "whalefall_scheduler")
    said = [line for line in lines if line["program"] == "scheduler"]
    assert [re.sub(r" .*", "", line["message"]) for line in said] == ["run", "oracle_fail", "run", "oracle_fail"]
    assert {(line["job_id"], line["run_id"]) for line in said} == {("told", run_id)}
    assert said[0]["request_id"] == "ask-for-it"
    assert said[2]["exception"].endswith("RuntimeError: on purpose\n{")
    assert said[3]["message"].endswith(": failed")
    assert {line["container"] for line in lines} == {"whalefall-1"}

    assert run_id in {line.get("run_id") for line in shown(logged, "--request", "ask-for-it")}
    of_job = shown(logged, "--job", "told", "--since", "10m")
    assert {line.get("job_id", "told") for line in of_job} == {"told"}
    text = run_on(logged, "logs.sh", "--run", run_id).stdout.splitlines()
    assert sum(bool(TEXT_LINE.fullmatch(line)) for line in text) == len(lines)
    assert "    RuntimeError: on purpose" in text


def test_every_line_is_json_whatever_happens(logged: Stack) -> None:
    """Bad requests, a killed worker, a program that is stopped, and the end of it all."""
    anyone = logged.anonymous()
    for path in ("/%00", '/"\\', "/api/v1/%ff%0a", "/" + "x" * 5000):
        anyone.get(path)
    logged.bearer().get(f"{SCHEDULER}/jobs/nobody", headers={"User-Agent": 'x"}\t{\\'})
    logged.signal(signal.SIGKILL, "web", "worker")
    logged.execute("supervisorctl", "restart", "whalefall_web")
    logged.wait_until_ready()
    logged.compose("stop")
    try:
        found = lines_of(logged)
        for line in found:
            assert list(line)[:5] == ["time", "level", "program", "node", "message"], line
            assert datetime.fromisoformat(line["time"]).utcoffset() is not None
            assert line["level"] in {"debug", "info", "warning", "error", "critical"}
        assert {line["program"] for line in found} == {"supervisor", "nginx", "web", "scheduler"}
        assert any("SIGKILL" in line["message"] for line in found if line["program"] == "web")

        assert shown(logged, "--since", "1h")[-1]["program"] == "supervisor", "also of a stack that is stopped"
        assert len(shown(logged)) == min(200, len(found)), "the last lines alone, where nothing was asked for"
    finally:
        logged.compose("start")
        logged.wait_until_ready()


def test_what_comes_is_followed(logged: Stack) -> None:
    following = subprocess.Popen(
        [ROOT / "scripts/logs.sh", "--follow", "--request", "follow-me"],
        env=environment_of(logged), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, first = following.stdout, list[str]()
        assert output is not None

        def asked() -> bool:
            logged.anonymous().get("/login", headers={"X-Request-ID": "follow-me"})
            return bool(first)

        reading = threading.Thread(target=lambda: first.append(output.readline()))
        reading.start()
        wait_until("a line", asked, within=30, every=0.5)
        assert TEXT_LINE.match(first[0]), first
        assert "request_id" not in first[0], "what was asked for is known"
    finally:
        os.killpg(following.pid, signal.SIGTERM)
        following.wait(timeout=30)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--run",), ("--run", ""), ("--run", "a", "--job", "b"), ("--since", "yesterday"), ("--since", "2d"), ("x",),
        ("--run", "a\nb"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(arguments: tuple[str, ...]) -> None:
    outcome = run_script("logs.sh", *arguments)
    assert (outcome.code, outcome.stdout, len(outcome.stderr.splitlines())) == (2, "", 1), outcome


def test_what_is_not_there_is_said(logged: Stack) -> None:
    outcome: Outcome = run_script("logs.sh", "--run", "no-such-run", environment=environment_of(logged))
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "no line of run no-such-run" in outcome.stderr


def test_text_where_it_is_asked_for(logged: Stack) -> None:
    image = logged.container().image.id
    for command, begins in (
        (["start-nginx.sh"], "[nginx] error: TRUSTED_PROXIES holds 'x'"),
        (["gunicorn", "--config", "gunicorn/gunicorn-prod.conf.py", "wsgi:application"], "[web] "),
    ):
        done = subprocess.run(
            ["docker", "run", "--rm", "--network", "none", "--tmpfs", "/run/whalefall:uid=10001,gid=10001",
             "--env", "LOG_FORMAT=text", "--env", "TRUSTED_PROXIES=x", image, *command],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode != 0
        assert done.stdout.startswith(begins), done


def compositions() -> list[tuple[str, ...]]:
    """The compose files of each shape, alone and with each overlay that fits it."""
    names = [path.name for path in (ROOT / "compose").glob("docker-compose.*.yml")]
    overlays = [name for name in names if name.split(".")[1] not in SHAPES]
    found: list[tuple[str, ...]] = []
    for shape in SHAPES:
        base = f"docker-compose.{shape}.yml"
        found.append((base,))
        for overlay in sorted(overlays):
            if overlay.split(".")[1].startswith("e2e"):
                continue
            if overlay.startswith("docker-compose.https") and ("nginx" in overlay) is (shape == "prod"):
                continue
            found.append((base, overlay))
    return found


@pytest.mark.parametrize("files", compositions(), ids="+".join)
def test_no_log_can_fill_the_disk(files: tuple[str, ...]) -> None:
    options = [word for file in files for word in ("--file", f"compose/{file}")]
    done = subprocess.run(
        ["docker", "compose", "--env-file", "/dev/null", *options, "--profile", "*", "config", "--format", "json"],
        cwd=ROOT, env={**os.environ, "TLS_DIR": "/tls"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, service in json.loads(done.stdout)["services"].items():
        assert service.get("logging") == {
            "driver": "json-file",
            "options": {"max-size": "10m", "max-file": "5"},
        }, name
