"""The disk is full, the memory is full: what cannot be done is not begun, is told, and goes on by itself afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from e2e.harness.client import SCHEDULER
from e2e.harness.nodes import running_nodes
from e2e.harness.oracle import FINAL
from e2e.harness.probes import Probes, judged_probes, let_pass
from e2e.harness.small_volume import full_volume, small_stack
from e2e.harness.sqlite_lock import APP_DATABASE, JOB_STORE
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

LIMIT_S = 3.0
FAR_AWAY = {"trigger_type": "date", "run_date": "2099-01-01T00:00:00"}
MEMORY = "640m"

#: Runs in the container: FILE...
CHECK = """
import sqlite3, sys
for file in sys.argv[1:]:
    print(sqlite3.connect(file, timeout=20).execute("PRAGMA integrity_check").fetchone()[0])
"""


@pytest.fixture(scope="module")
def cramped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with 24 MiB of disk and little memory."""
    with small_stack(tmp_path_factory.mktemp("small"), mib=24, MEMORY_LIMIT=MEMORY) as stack:
        yield stack


@pytest.fixture(scope="module")
def own_probes(cramped: Stack) -> Iterator[Probes]:
    with judged_probes(cramped) as running:
        yield running


def health(stack: Stack, path: str) -> tuple[int, dict[str, Any]]:
    answer = stack.anonymous().get(path, timeout=30)
    return answer.status_code, answer.json()


@pytest.mark.timeout(240)
def test_disk_full(cramped: Stack, own_probes: Probes) -> None:
    how = "a volume of 24 MiB, filled to the last block"
    with own_probes.watch("disk full", how, outage=True, limit="3 s after there is room") as watch:
        with full_volume(cramped):
            watch.strike()
            ready = partial(health, cramped, f"{SCHEDULER}/health/ready")
            _, told = wait_until("health is red", ready, lambda found: found[0] == 503, within=60)
            assert "disk is full" in str(told), told
            wait_until(
                "the web's too", partial(health, cramped, "/api/v1/health/ready"), lambda f: f[0] == 503, within=30
            )
            assert health(cramped, "/api/v1/health/basic")[0] == 200
            # Nothing is claimed, so nothing starts.
            before = len(cramped.starts())
            let_pass(3)
            assert len(cramped.starts()) == before
            refused = cramped.bearer().post(f"{SCHEDULER}/jobs/backup_jobstore/actions/pause")
            assert refused.status_code == 503, refused.text
            assert refused.headers["Retry-After"]
        watch.heal()
        cramped.wait_until_ready()
    watch.check()
    assert watch.recovery <= LIMIT_S, watch.measurement
    assert cramped.execute("python3", "-I", "-c", CHECK, JOB_STORE, APP_DATABASE).split() == ["ok", "ok"]


@pytest.mark.timeout(240)
def test_out_of_memory(cramped: Stack, own_probes: Probes) -> None:
    """As a kill: the greedy run is lost, the web answers all the while."""
    client = cramped.bearer()
    client.create_job("greedy", "oracle_hoard", FAR_AWAY)
    slowest = 0.0
    with own_probes.watch("out of memory", f"a greedy task, {MEMORY}", outage=True, limit="3 s, web answers") as watch:
        known = running_nodes(cramped)
        watch.strike()
        client.run_now("greedy")
        anyone = cramped.anonymous()

        def replaced() -> set[str]:
            nonlocal slowest
            began = time.monotonic()
            answer = anyone.get("/api/v1/health/basic", timeout=10)
            slowest = max(slowest, time.monotonic() - began)
            assert answer.status_code == 200, answer.text
            return running_nodes(cramped) - known

        wait_until("another scheduler process", replaced, within=90)
        watch.heal()
        cramped.wait_until_ready()
    watch.check()
    print(f"the web's slowest answer: {slowest:.2f} s")
    assert watch.recovery <= LIMIT_S, watch.measurement
    runs = wait_until("its end", lambda: client.history("greedy"), lambda rows: rows[0]["outcome"] in FINAL, within=30)
    assert [run["outcome"] for run in runs] == ["lost"]
    cramped.container().reload()
    assert cramped.container().attrs["RestartCount"] == 0, "not the task was killed but the container"
    client.delete_job("greedy")
