"""A fire starts at most once and never vanishes, whatever happens to the scheduler meanwhile.

Twenty one-second jobs run while the scheduler gets HUP, TTIN and SIGKILL and a second scheduler is started
on the same volume; the outside log, the trigger's moments and the ledger must agree. The same oracle, pointed
at a naive stack, must report its duplicates: so it can see.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from e2e.harness.oracle import every, judge_log, read_log
from e2e.harness.stack import ROOT, SERVICE, Stack
from e2e.harness.waiting import wait_for_clock, wait_until

JOBS = [f"tick-{number:02}" for number in range(20)]
SECONDS = 75
#: The worker dies so many seconds after a fire was due: before, amid and after claim, start and finish.
KILLED_AFTER = (0.005, 0.02, 0.06)
NAIVE_SECONDS = 15


def window(seconds: int, ahead: int) -> tuple[datetime, datetime]:
    """From a full second `ahead` seconds from now, `seconds` long."""
    first = datetime.fromtimestamp(int(time.time()) + ahead, tz=UTC)
    return first, first + timedelta(seconds=seconds)


def latest_lines(stack: Stack, node: str) -> int:
    return sum(node in start.node for start in stack.starts())


def start_second_scheduler(stack: Stack) -> Container:
    """By mistake: the whole stack once more on the same volumes."""
    stack.compose("run", "--detach", "--no-deps", "--name", f"{stack.name}-second", SERVICE)
    second: Container = stack.docker.containers.get(f"{stack.name}-second")
    node = second.attrs["Config"]["Hostname"]
    wait_until("starts on the second scheduler", lambda: latest_lines(stack, node), within=45)
    return second


@pytest.mark.timeout(360)
def test_every_fire_starts_once(private_stack: Callable[..., Stack]) -> None:
    stack = private_stack()
    client = stack.bearer()
    first, last = window(SECONDS, ahead=8)
    for job_id in JOBS:
        client.create_job(
            job_id,
            "oracle_fire",
            {
                "trigger_type": "interval",
                "seconds": 1,
                "start_date": first.isoformat(),
                "end_date": last.isoformat(),
            },
        )
    assert time.time() < first.timestamp(), "creating the jobs took longer than the head start"

    begin = first.timestamp()
    wait_for_clock(begin + 6)
    before = stack.gunicorn("scheduler", "worker")
    stack.signal(signal.SIGHUP)
    wait_until(
        "another worker after HUP",
        lambda: {process.pid for process in stack.gunicorn("scheduler", "worker")},
        lambda pids: pids and not pids & {process.pid for process in before},
        within=45,
    )
    wait_for_clock(begin + 16)
    stack.signal(signal.SIGTTIN)
    for second, delay in enumerate(KILLED_AFTER):
        stack.signal(signal.SIGKILL, role="worker", at=begin + 20 + 5 * second + delay)
    wait_for_clock(begin + 36)
    second_scheduler = start_second_scheduler(stack)
    wait_for_clock(begin + 49)
    stack.signal(signal.SIGKILL, role="master", at=begin + 50.01)
    wait_for_clock(begin + 62)
    second_scheduler.kill()

    verdict = stack.judge_at_rest({job_id: every(1, first, last) for job_id in JOBS}, within=120)
    print(f"\n{verdict}")
    assert verdict.clean, verdict
    # A run with nothing but losses would be clean too.
    assert verdict.outcomes["success"] >= 0.5 * verdict.expected, verdict
    # While another scheduler lives, the death of one delays nobody for long.
    between = [start for start in stack.starts() if begin + 50 <= start.scheduled_for.timestamp() < begin + 61]
    lateness = [start.time - start.scheduled_for.timestamp() for start in between]
    print(f"with one of two schedulers killed: {len(lateness)} starts, at most {max(lateness):.3f} s late")
    assert max(lateness) <= 3
    stack.wait_until_ready()


@pytest.fixture
def naive_log(stack: Stack, tmp_path: Path) -> Iterator[tuple[Path, datetime, datetime]]:
    """The outside log of the naive stack, which runs in a container of the very same image."""
    first, last = window(NAIVE_SECONDS, ahead=8)
    folder = tmp_path / "oracle"
    folder.mkdir()
    folder.chmod(0o777)
    environment = {
        "NAIVE_STORE": "sqlite:////tmp/naive.db",
        "NAIVE_LOG": "/oracle/fires.jsonl",
        "NAIVE_JOBS": str(len(JOBS)),
        "NAIVE_FIRST": first.isoformat(),
        "NAIVE_LAST": last.isoformat(),
    }
    arguments = ["--workers", "2", "--chdir", "/naive", "--worker-tmp-dir", "/dev/shm", "--no-control-socket"]
    container = docker.from_env().containers.run(
        stack.container().image.id,
        entrypoint=["gunicorn", *arguments, "naive_app:create_app()"],
        command=[],
        environment=environment,
        volumes={
            str(ROOT / "e2e" / "naive"): {"bind": "/naive", "mode": "ro"},
            str(folder): {"bind": "/oracle", "mode": "rw"},
        },
        detach=True,
    )
    try:
        wait_for_clock(last.timestamp() + 2)
        print(container.logs(tail=50).decode())
        yield folder / "fires.jsonl", first, last
    finally:
        container.remove(force=True, v=True)


@pytest.mark.timeout(120)
def test_oracle_sees_the_duplicates_of_a_naive_stack(naive_log: tuple[Path, datetime, datetime]) -> None:
    log, first, last = naive_log
    moments = every(1, first, last)
    verdict = judge_log(dict.fromkeys(JOBS, moments), read_log(log))
    print(f"\n{verdict}")
    assert verdict.starts > len(JOBS), "the naive stack did not run"
    assert len(verdict.duplicates) > 0, verdict
