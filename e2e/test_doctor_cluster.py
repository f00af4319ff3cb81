"""What scripts/doctor.sh finds where there are several of everything: nodes that differ, a row that somebody holds, a
token that only some know, and stores and workers that are away.

The tests share a stack; each leaves it sound, but for the last, which takes it apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from e2e.harness.doctor import findings, wait_until_found, wait_until_gone
from e2e.harness.faults import (
    DATABASE_SERVICE,
    SCHEDULER_SERVICE,
    build_tools,
    extra_scheduler,
    node_of,
    query,
    step_clock,
    steppable_clock,
)
from e2e.harness.scripts import run_on
from e2e.harness.stack import ROOT, Stack, running_stack
from e2e.harness.waiting import wait_until

NEVER = {"trigger_type": "date", "run_date": "2199-01-01T00:00:00Z"}
HOUR_S = 3600
#: The statements of a person who looks at a job in a shell of the database, and forgets to end the transaction.
HOLD_ROW = ("BEGIN", "SELECT id FROM jobs WHERE id = 'held-row' FOR UPDATE", "SELECT pg_sleep(300)")

END_IT = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = '{HOLD_ROW[-1]}'"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory, shape="ha", scale={"scheduler": 2, "web": 1, "worker": 1}) as stack:
        wait_until("nothing to be wrong", lambda: findings(stack) == {}, within=60)
        yield stack


def test_a_node_with_another_build_and_a_wrong_clock(cluster: Stack, tmp_path: Path) -> None:
    build_tools()
    other = tmp_path / "version.py"
    other.write_text((ROOT / "app" / "version.py").read_text() + "# built elsewhere\n")
    other.chmod(0o644)
    with steppable_clock(cluster) as (environment, mounts):
        mounts |= {"/app/app/version.py": str(other)}
        with extra_scheduler(cluster, environment, mounts=mounts) as wrong:
            differ = wait_until_found(cluster, "versions-differ")
            assert node_of(wrong) in differ["what"]
            assert differ["command"] == "scripts/rolling_restart.sh"
            step_clock(cluster, wrong, HOUR_S)
            off = wait_until_found(cluster, "clock-off")
            assert f"node {node_of(wrong)} " in off["what"]
            assert "+3600" in off["what"] or "+3599" in off["what"], off
            step_clock(cluster, wrong, 0)
            assert "versions-differ" in wait_until_gone(cluster, "clock-off")
    wait_until("the node's silence", lambda: findings(cluster), lambda found: found == {}, within=30)


def test_a_job_whose_row_somebody_holds(cluster: Stack) -> None:
    """The schedulers live, pass it by, and fire all others."""
    client = cluster.bearer()
    due = (datetime.now().astimezone() + timedelta(seconds=5)).isoformat()
    client.create_job("held-row", "oracle_fire", {"trigger_type": "date", "run_date": due})
    shell = ["psql", "--username", "whalefall", "--dbname", "whalefall"]
    statements = [word for statement in HOLD_ROW for word in ("--command", statement)]
    cluster.container(DATABASE_SERVICE).exec_run([*shell, *statements], detach=True)
    found = wait_until_found(cluster, "jobs-overdue", within=60)
    assert found["what"] == "due and not claimed: held-row"
    script, job = found["command"].removeprefix("scripts/").split()
    print(run_on(cluster, script, job).stdout)
    query(cluster, END_IT)
    wait_until_gone(cluster, "jobs-overdue")
    wait_until("its run", lambda: cluster.logged("held-row"), within=20)


def test_a_token_that_only_one_container_knows(cluster: Stack) -> None:
    """An editor replaces the file, and somebody starts one scheduler again: that one alone has the new token."""
    file = cluster.folder / "secrets" / "api_token"
    new = file.with_suffix(".new")
    new.write_text("what somebody typed into it")
    new.chmod(0o444)
    new.replace(file)
    cluster.container(SCHEDULER_SERVICE).restart()
    cluster.secrets["api_token"] = file.read_text()
    # nginx asks one of the two at random.
    found = wait_until_found(cluster, "token-refused", within=60)
    assert found["what"] == "GET /api/v1/scheduler/jobs?limit=1 answers 401"
    assert str(file) in wait_until_found(cluster, "secret-changed")["what"]
    cluster.compose(*found["command"].split()[2:], "--no-build")
    cluster.wait_until_ready()
    wait_until("nothing to be wrong", lambda: findings(cluster) == {}, within=60)


@pytest.mark.faults_long
def test_without_its_stores_and_workers(cluster: Stack) -> None:
    cluster.bearer().create_job("fleet", "oracle_fire", NEVER, executor="celery")
    for worker in cluster.containers_of("worker"):
        worker.remove(force=True)
    wait_until_found(cluster, "no-worker", within=60)
    absent = findings(cluster)["service-absent"]
    assert absent["command"] == "docker compose up --detach worker"
    cluster.compose(*absent["command"].split()[2:], "--no-build")
    wait_until_gone(cluster, "no-worker", within=60)
    cluster.container("valkey").stop()
    assert "valkey" in findings(cluster)["broker-unreachable"]["command"]
    cluster.container("postgres").stop(timeout=60)
    found = findings(cluster)
    assert {"store-unreachable", "container-stopped"} <= set(found)
    assert found["store-unreachable"]["command"].startswith("docker compose ps postgres")
    for service in ("postgres", "valkey"):
        cluster.compose("up", "--detach", "--no-build", service)
    wait_until("nothing to be wrong", lambda: findings(cluster) == {}, within=90)
