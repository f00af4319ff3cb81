"""scripts/upgrade.sh and rollback.sh: from the first release with data to this tree, and back."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import partial
from operator import eq
from pathlib import Path

import pytest

from app.version import VERSION
from e2e.harness.client import Client
from e2e.harness.every_second import EverySecond
from e2e.harness.releases import Clone, first_release
from e2e.harness.runbooks import Operator
from e2e.harness.scripts import run_script
from e2e.harness.small_volume import FILL, FILLER
from e2e.harness.sqlite_lock import APP_DATABASE, JOB_STORE
from e2e.harness.stack import Shape
from e2e.harness.waiting import wait_until

#: A data volume that a test can fill, and that stays when no container uses it.
SMALL_VOLUME = """
volumes:
  userdata:
    driver_opts: {{type: none, o: bind, device: {folder}}}
"""
READ_SCHEMA = """
import sqlite3
query = "SELECT version_num FROM jobstore_schema_version"
print(sqlite3.connect("/app/userdata/scheduler.db").execute(query).fetchone()[0])
"""
#: Steps of an upgrade of the one container, as upgrade.sh counts them. One that goes on skips what is done.
MIGRATE = 4
RESUMED_REPLACE = 4
UPGRADED = re.compile(r"^upgraded: (\S+) to (\S+)\nbackup:   (\S+)\nverified: \d+ fires due", re.MULTILINE)


@pytest.fixture(scope="module")
def small_volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The compose file of a data volume of 64 MiB."""
    if os.geteuid() != 0:
        pytest.skip("a volume that can be full needs root")
    folder = tmp_path_factory.mktemp("volume")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=0750,uid=10001,gid=10001", "test", folder], check=True)
    try:
        file = tmp_path_factory.mktemp("overlay") / "small.yml"
        file.write_text(SMALL_VOLUME.format(folder=folder))
        yield file
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, small_volume: Path) -> Iterator[Clone]:
    with first_release(tmp_path_factory.mktemp("upgrade"), "upgrade", overlay=small_volume) as made:
        yield made


def schema(clone: Clone) -> str:
    return clone.execute("python3", "-c", READ_SCHEMA).strip()


def log_in(clone: Clone) -> None:
    Client(clone.base_url).log_in("admin", clone.secret("admin_password"))


@pytest.fixture(scope="module")
def fires(clone: Clone) -> EverySecond:
    return EverySecond(clone)


def run_ids(fires: EverySecond) -> set[str]:
    return {row["run_id"] for rows in fires.histories().values() for row in rows}


def assert_nothing_was_missed(fires: EverySecond) -> None:
    verdict = fires.judge()
    assert set(verdict.outcomes) <= {"success", "coalesced"}, verdict


@pytest.mark.timeout(600)
def test_a_full_disk_is_refused(clone: Clone) -> None:
    """It is full when an upgrade that was interrupted after its backup goes on."""
    clone.take_present_tree()
    planned = clone.script("upgrade.sh", "--local", "--dry-run")
    assert "Would upgrade the stack" in planned.stdout
    assert "1 whalefall" in planned.stdout
    assert not (clone.folder / ".releases").exists()
    runs = clone.versions()
    assert clone.killed_at_step(MIGRATE, "upgrade.sh", "--local", "--yes")
    assert clone.versions() == runs
    clone.execute("python3", "-I", "-c", FILL, FILLER, JOB_STORE, APP_DATABASE)
    try:
        refused = clone.script("upgrade.sh", "--local", "--yes", code=1)
        assert "database or disk is full" in refused.stderr
        assert "the databases are as they were, and 0.1.0 runs on" in refused.stderr
    finally:
        clone.execute("rm", "-f", FILLER)
    assert schema(clone) == "0002"
    assert clone.versions() == runs
    clone.wait_until_ready()


@pytest.mark.timeout(900)
def test_from_the_first_release_with_data_and_back(clone: Clone, fires: EverySecond) -> None:
    operator = Operator(clone, {"v0.3.0": "present", "0.3.0": VERSION})
    fires.wait_for_fires()
    before = run_ids(fires)
    jobs = {job["id"]: job["trigger_args"] for job in clone.bearer().jobs()}
    assert clone.killed_at_step(RESUMED_REPLACE, "upgrade.sh", "--local", "--yes")
    fires.wait_for_fires()
    done = operator.follow("upgrade-and-rollback", "another release")
    old, new, backup = UPGRADED.findall(done.mitigation)[0]
    assert old.startswith("0.1.0-")
    assert clone.versions() == {new} == {clone.setting("WHALEFALL_TAG")}
    migrated = schema(clone)
    assert migrated > "0002"
    clone.execute("flask", "jobs", "verify", backup)
    assert {job["id"]: job["trigger_args"] for job in clone.bearer().jobs()} == jobs
    assert run_ids(fires) > before
    log_in(clone)
    again = clone.script("upgrade.sh", "--local", "--yes")
    assert f"{new} runs already" in again.stderr

    assert clone.killed_at_step(2, "rollback.sh", "--yes")
    done = operator.follow("upgrade-and-rollback", "the release before")
    assert f"back:     from {new} to {old}" in done.mitigation
    assert clone.versions() == {old}
    assert schema(clone) == migrated, "a way back leaves the databases alone"
    assert str(clone.setting("COMPOSE_FILE")).startswith(f".releases/{old}/compose/docker-compose.prod.yml:")
    log_in(clone)
    fires.wait_for_fires()
    assert_nothing_was_missed(fires)


@pytest.mark.timeout(600)
def test_a_release_that_does_not_start_is_taken_back_by_itself(clone: Clone, fires: EverySecond) -> None:
    runs = clone.versions()
    clone.tag_release("0.2.1", {"wsgi.py": ("application = create_app()", "sys.exit(GUNICORN_APP_LOAD_ERROR)")})
    clone.git("checkout", "--quiet", "v0.2.1~1")
    refused = clone.script("upgrade.sh", "v0.2.1", "--yes", code=1)
    assert "is not healthy" in refused.stderr
    assert "runs again" in refused.stderr
    assert clone.git("describe", "--tags", "--exact-match") == "v0.2.1"
    assert clone.versions() == runs
    fires.wait_for_fires()
    nothing = clone.script("rollback.sh", "--yes", code=1)
    assert "no release from before an upgrade is kept here" in nothing.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which release? accepted: VERSION or --local"),
        (["--local", "0.3.0"], "one release at a time"),
        (["0.3"], "the version is '0.3'; accepted: such as 0.3.0"),
        (["latest"], "unknown argument 'latest'"),
        ([""], "unknown argument ''"),
    ],
)
def test_a_wrong_argument_of_an_upgrade_is_refused(arguments: list[str], said: str) -> None:
    outcome = run_script("upgrade.sh", *arguments)
    assert outcome.code == 2
    (line,) = outcome.stderr.splitlines()
    assert said in line


@pytest.mark.parametrize("name", ["upgrade.sh", "rollback.sh"])
def test_without_a_stack_it_says_what_is_missing(clone: Clone, name: str) -> None:
    environment = {**os.environ, "COMPOSE_PROJECT_NAME": "whalefall-never-started"}
    environment.pop("WHALEFALL_TAG", None)
    outcome = run_script(name, *(["--local"] if name == "upgrade.sh" else []), "--yes", environment=environment)
    assert outcome.code == 1
    (line,) = outcome.stderr.splitlines()
    assert "there is no stack here" in line or "no release from before" in line


def test_a_version_that_is_not_here_is_refused(clone: Clone) -> None:
    refused = clone.script("upgrade.sh", "9.9.9", "--yes", code=1)
    assert "this checkout has no tag v9.9.9" in refused.stderr
    older = clone.script("upgrade.sh", "v0.0.9", "--yes", code=1)
    assert "scripts/rollback.sh goes back" in older.stderr


def test_a_tag_in_the_environment_would_overrule_what_is_kept(clone: Clone) -> None:
    refused = clone.script("upgrade.sh", "--local", "--yes", env={"WHALEFALL_TAG": "mine"}, code=1)
    assert "WHALEFALL_TAG is set in the environment" in refused.stderr


@pytest.mark.faults_long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shape", ["split", "ha"])
def test_containers_of_their_own_are_upgraded_and_brought_back(
    shape: Shape, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with first_release(tmp_path_factory.mktemp("upgrade"), f"upgrade-{shape}", shape) as clone:
        clone.take_present_tree()
        services = services_of(clone)
        assert services.keys() >= {"nginx", "web", "scheduler"}
        fires = EverySecond(clone)
        fires.wait_for_fires()
        upgraded = clone.script("upgrade.sh", "--local", "--yes")
        old, new, _ = UPGRADED.findall(upgraded.stdout)[0]
        assert old.startswith("0.1.0-")
        assert (clone.versions(), services_of(clone)) == ({new}, services)
        fires.wait_for_fires()
        clone.script("rollback.sh", "--yes")
        assert (clone.versions(), services_of(clone)) == ({old}, services)
        fires.wait_for_fires()
        assert_nothing_was_missed(fires)


def services_of(clone: Clone) -> Counter[str]:
    """How many containers each service has."""
    return Counter(one.labels["com.docker.compose.service"] for one in clone.containers())


@pytest.mark.faults_long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shape", ["prod", "split", "ha"])
def test_killed_at_every_step_of_the_way_there_and_back(shape: Shape, tmp_path_factory: pytest.TempPathFactory) -> None:
    with first_release(tmp_path_factory.mktemp("every-step"), f"every-step-{shape}", shape) as clone:
        clone.take_present_tree()
        services = services_of(clone)
        fires = EverySecond(clone)
        fires.wait_for_fires()
        for script, arguments in (("upgrade.sh", ["--local", "--yes"]), ("rollback.sh", ["--yes"])):
            done: set[str] = set()
            for told in clone.kill_at_every_step(script, *arguments):
                done.update(told)
                fires.wait_for_fires()
            assert "verifying: a job must fire" in done
            assert len(clone.versions()) == 1
            now = {str(one.id) for one in clone.containers()}
            clone.compose("up", "--detach", "--no-build")
            assert {str(one.id) for one in clone.containers()} == now, "a plain `up` would replace them once more"
            wait_until("as many containers as before", partial(services_of, clone), partial(eq, services), within=10)
        assert_nothing_was_missed(fires)
