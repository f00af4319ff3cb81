"""Runbooks of several machines: the move from the one container to the shape `ha`, what can happen there, and back."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest

from e2e.harness.client import SCHEDULER
from e2e.harness.runbooks import Operator, blocks_of
from e2e.harness.site import Site, site, tag_images
from e2e.harness.stack import ROOT
from e2e.harness.waiting import wait_until

EVERY_SECOND = {"trigger_type": "interval", "seconds": 1}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """First the one container; the first test moves it to the shape `ha`, the last one back."""
    with site(tmp_path_factory.mktemp("runbooks"), "runbooks-ha") as made:
        tag_images(made.project, "ha")
        yield made
    # Back in the shape `prod`, Compose knows nothing of the broker's volume.
    for volume in docker.from_env().volumes.list(filters={"label": f"com.docker.compose.project={made.project}"}):
        volume.remove()


@pytest.fixture
def operator(here: Site) -> Operator:
    return Operator(here)


def test_move(here: Site, operator: Operator) -> None:
    done = operator.follow("move-to-postgres", "move")
    assert here.shape == "ha"
    assert "Nothing was changed." in done.diagnosis
    assert "backup_jobstore" in done.verification


def test_readme(here: Site, operator: Operator) -> None:
    """What the README says of the shape: it is there already, it grows, it is replaced."""
    commands = [block for block in blocks_of(ROOT / "README.md") if block.situation == "shape ha"]
    assert len(commands) >= 3
    for block in commands:
        operator.run(block, "README.md")
        here.wait_until_ready()
    assert len(here.containers("scheduler")) == 3
    here.compose("up", "--detach", "--no-build", "--wait")
    assert len(here.containers("scheduler")) == 2


def test_broker_down(here: Site, operator: Operator) -> None:
    client = here.bearer()
    client.create_job("on_workers", "oracle_fire", EVERY_SECOND, executor="celery")
    here.compose("kill", "valkey")
    pending(here)
    operator.follow("broker-down", "broker")


def test_no_worker(here: Site, operator: Operator) -> None:
    here.compose("stop", "--timeout", "1", "worker")
    pending(here)
    done = operator.follow("broker-down", "worker")
    assert "Exited" in done.diagnosis
    here.bearer().delete_job("on_workers")


def pending(here: Site) -> None:
    """Wait until runs pile up for the workers."""

    def waiting() -> int:
        return int(here.bearer().data("GET", f"{SCHEDULER}/status")["queue"]["pending"])

    wait_until("runs that wait", waiting, within=60)


def alive(here: Site) -> int:
    return int(here.bearer().data("GET", f"{SCHEDULER}/status")["counters"]["nodes"]["scheduler"])


def test_scheduler_lost(here: Site, operator: Operator) -> None:
    here.containers("scheduler")[0].kill()
    wait_until("one to be missed", lambda: alive(here), lambda count: count == 1, within=60)
    done = operator.follow("add-or-lose-a-scheduler", "lost")
    assert "exit 137" in done.diagnosis


def test_scheduler_wanted(here: Site, operator: Operator) -> None:
    operator.follow("add-or-lose-a-scheduler", "wanted")
    assert alive(here) == 3


def test_going_back(here: Site, operator: Operator) -> None:
    operator.follow("move-to-postgres", "go back")
    assert here.shape == "prod"
    assert (here.folder / "since-the-move.sql").stat().st_size > 10_000
