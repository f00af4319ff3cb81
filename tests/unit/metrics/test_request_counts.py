"""Requests of several processes in one answer, whoever of them comes and goes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from prometheus_client import CollectorRegistry

from app.metrics.request_counts import FILE_BYTES, RequestCounts

PROGRAM = """
import sys
from pathlib import Path
from app.metrics.request_counts import RequestCounts
counts = RequestCounts(folder=Path(sys.argv[1]), node="n", program="web")
for line in sys.stdin:
    counts.add(route=line.strip(), method="GET", status="200", seconds=0.001)
    print("counted", flush=True)
"""


class Process:
    """A process that counts the routes it is told."""

    def __init__(self, folder: Path) -> None:
        self.running = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
        )

    def count(self, route: str) -> None:
        assert self.running.stdin is not None
        assert self.running.stdout is not None
        self.running.stdin.write(f"{route}\n")
        self.running.stdin.flush()
        assert self.running.stdout.readline() == "counted\n"

    def kill(self) -> None:
        self.running.send_signal(signal.SIGKILL)
        self.running.communicate()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "metrics"))
    return tmp_path / "metrics"


@pytest.fixture
def processes(folder: Path) -> Iterator[list[Process]]:
    started = [Process(folder) for _ in range(2)]
    yield started
    for process in started:
        with suppress(ProcessLookupError):
            process.kill()


def total(folder: Path, route: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(RequestCounts(folder=folder, node="n", program="web").collector())
    labels = {"node": "n", "program": "web", "route": route, "method": "GET", "status": "200"}
    return registry.get_sample_value("whalefall_http_requests_total", labels)


def test_processes_add_up_and_one_that_is_killed_takes_nothing_with_it(folder: Path, processes: list[Process]) -> None:
    first, second = processes
    for _ in range(3):
        first.count("/a")
        second.count("/a")
    second.count("/b")
    assert total(folder, "/a") == 6
    first.kill()
    assert total(folder, "/a") == 6
    third = Process(folder)
    processes.append(third)
    third.count("/a")
    assert total(folder, "/a") == 7
    assert total(folder, "/b") == 1
    # The place of the first is the third's, so that a worker that dies over and over does not fill the memory.
    assert sorted(file.name for file in folder.glob("*.db")) == [
        *("counter_0.db", "counter_1.db", "histogram_0.db", "histogram_1.db")
    ]


def test_a_process_that_only_forks_takes_no_place(folder: Path) -> None:
    RequestCounts(folder=folder, node="n", program="web")
    assert list(folder.iterdir()) == []


def test_a_forked_process_counts_for_itself(folder: Path) -> None:
    counts = RequestCounts(folder=folder, node="n", program="web")
    counts.add(route="/a", method="GET", status="200", seconds=0.1)
    child = os.fork()
    if child == 0:
        counts.add(route="/a", method="GET", status="200", seconds=0.1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    counts.add(route="/a", method="GET", status="200", seconds=0.1)
    assert total(folder, "/a") == 3
    assert len(list(folder.glob("counter_*.db"))) == 2


def test_room_is_taken_before_it_is_used(folder: Path) -> None:
    counts = RequestCounts(folder=folder, node="n", program="web")
    counts.add(route="/a", method="GET", status="200", seconds=0.1)
    for kind, size in FILE_BYTES.items():
        state = (folder / f"{kind}_0.db").stat()
        assert state.st_size == size
        assert state.st_blocks * 512 >= size


def test_where_no_room_is_left_nothing_is_left_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    counts = RequestCounts(folder=folder, node="n", program="web")
    monkeypatch.setattr(os, "posix_fallocate", full)
    counts.add(route="/a", method="GET", status="200", seconds=0.1)
    assert [file.name for file in folder.iterdir()] == ["0.lock"]
    assert total(folder, "/a") is None


def test_all_routes_fit_into_the_room(folder: Path) -> None:
    counts = RequestCounts(folder=folder, node="n" * 64, program="scheduler")
    for number in range(60):
        for status in ("200", "400", "503"):
            route = f"/api/v1/scheduler/resources/<resource_id>/actions/{number}"
            counts.add(route=route, method="GET", status=status, seconds=0.1)
    assert {kind: (folder / f"{kind}_0.db").stat().st_size for kind in FILE_BYTES} == FILE_BYTES


def test_what_cannot_be_counted_is_served_all_the_same(folder: Path) -> None:
    counts = RequestCounts(folder=folder, node="n", program="web")
    folder.rmdir()
    counts.add(route="/a", method="GET", status="200", seconds=0.1)


def test_requests_by_route_method_and_status(client: FlaskClient) -> None:
    client.get("/api/v1/scheduler/jobs/no-such-job")
    client.get("/nothing/here")
    client.open("/api/v1/health/basic", method="BREW")
    text = client.get("/metrics?collect[]=requests").text
    labels = 'node="unit-test",program="web"'
    route = 'route="/api/v1/scheduler/jobs/<job_id>",status="401"'
    assert f'whalefall_http_requests_total{{method="GET",{labels},{route}}} 1.0' in text
    assert f'whalefall_http_requests_total{{method="GET",{labels},route="none",status="404"}} 1.0' in text
    assert f'{{method="other",{labels},route="none",status="405"}} 1.0' in text
    assert f'whalefall_http_request_duration_seconds_count{{{labels},route="none"}} 2.0' in text
    assert "nothing/here" not in text
