"""scripts/doctor.sh finds what is wrong with a stack, also when it is down or damaged, and its archive holds no secret.

The first stack goes from sound to ruined; each test leaves it as the next one takes it up.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.harness.doctor import SCRIPT, Findings, doctor, findings, found_by, wait_until_gone
from e2e.harness.faults import extra_scheduler
from e2e.harness.isolated_engine import isolated_engine
from e2e.harness.scripts import Outcome, run_script
from e2e.harness.small_volume import FILLER, full_volume, small_stack
from e2e.harness.sqlite_lock import HOLD, JOB_STORE, is_locked
from e2e.harness.stack import ROOT, SERVICE, Stack, running_stack
from e2e.harness.waiting import wait_until

NEVER = {"trigger_type": "date", "run_date": "2199-01-01T00:00:00Z"}
EVERY_NEW_YEAR = {"trigger_type": "cron", "cron_expression": "0 0 1 1 *", "timezone": "UTC"}
#: Where a secret may stand, and what is planted there.
PLANTED = {
    "kwargs": "planted-in-kwargs-4711",
    "nested": "planted/in nested&kwargs",
    "database": "planted-in-databases-yaml",
    "webhook": "planted-in-the-webhook",
    "ping": "planted-in-the-ping",
    "job_ping": "planted-in-the-jobs-ping",
    "broker": "planted-in-the-broker-url",
    "error": "planted-in-an-error",
    "url": "planted-in-a-url-of-an-error",
}

#: Runs in the container: JOB KWARGS; a job's parameters as an older release, or another tool, may have left them.
SET_KWARGS = f"""
import sqlite3, sys
store = sqlite3.connect("{JOB_STORE}", timeout=20)
store.execute("UPDATE jobs SET kwargs = ? WHERE id = ?", (sys.argv[2], sys.argv[1]))
store.commit()
"""
#: Runs in the container: JOB COLUMN VALUE.
SET_COLUMN = f"""
import sqlite3, sys
store = sqlite3.connect("{JOB_STORE}", timeout=20)
store.execute(f"UPDATE jobs SET {{sys.argv[2]}} = ? WHERE id = ?", (sys.argv[3], sys.argv[1]))
store.commit()
"""
WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
LEAVE_A_MEGABYTE = f"""
free=$(df --output=avail -k /app/userdata | tail -n 1)
head -c "$(((free - 1024) * 1024))" /dev/zero > {FILLER}
"""
SPOIL = f"""
import pathlib
file = pathlib.Path("{JOB_STORE}")
content = bytearray(file.read_bytes())
middle = len(content) // 2 // 4096 * 4096
content[middle : middle + 4 * 4096] = b"\\xaa" * (4 * 4096)
file.write_bytes(content)
"""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory) as stack:
        stack.bearer().create_job("never", "oracle_fire", NEVER)
        yield stack


# -- the one container, step by step ------------------------------------------------------------------------------


def test_nothing_is_wrong_with_a_sound_stack(one: Stack) -> None:
    assert findings(one) == {}
    told = doctor(one)
    assert told.code == 0
    assert "ERROR" not in told.stdout + told.stderr


def test_why_jobs_do_not_fire_or_seem_to_fire_twice(one: Stack) -> None:
    client = one.bearer()
    for name in ("alike-1", "alike-2"):
        client.create_job(name, "oracle_fire", EVERY_NEW_YEAR)
    message = f"login failed: password={PLANTED['error']} at postgresql://me:{PLANTED['url']}@db/x"
    client.create_job("fails", "oracle_fail", NEVER, kwargs={"message": message})
    client.create_job("gone", "oracle_fire", NEVER)
    client.create_job("unreadable", "oracle_fire", EVERY_NEW_YEAR)
    client.create_job("busy", "oracle_sleep", {"trigger_type": "interval", "seconds": 1}, kwargs={"seconds": 4})
    client.data("POST", "/api/v1/scheduler/jobs/sync_accounts/actions/pause")
    client.run_now("fails")
    one.execute("python3", "-c", SET_COLUMN, "gone", "task", "nobody_knows_it")
    one.execute("python3", "-c", SET_COLUMN, "unreadable", "trigger", "{half of it")
    # Read at its next moment, which is now.
    one.execute("python3", "-c", SET_COLUMN, "unreadable", "next_run_time", str(time.time_ns() // 1000))
    wait_until("an end of the run", lambda: client.history("fails")[0]["outcome"], lambda o: o == "failed", within=20)
    wait_until(
        "a skipped moment",
        lambda: {row["outcome"] for row in client.history("busy")},
        lambda outcomes: "skipped" in outcomes,
        within=20,
    )
    wait_until("the row set aside", lambda: "job-unreadable" in findings(one), within=20)
    client.delete_job("busy")
    found = findings(one)
    assert set(found) == {"jobs-alike", "runs-failed", "runs-missed", "task-unknown", "job-unreadable", "jobs-paused"}
    assert found["jobs-alike"]["what"] == "alike-1, alike-2"
    assert "fails (1 failed)" in found["runs-failed"]["what"]
    assert found["runs-missed"]["command"] == "scripts/explain.sh busy"
    assert "nobody_knows_it" in found["task-unknown"]["what"]
    assert found["job-unreadable"]["what"].startswith("unreadable: ")
    assert "sync_accounts (paused)" in found["jobs-paused"]["what"]
    for job in ("alike-2", "gone"):
        client.delete_job(job)
    client.data("PUT", "/api/v1/scheduler/jobs/unreadable", json=NEVER | {"run_date": "2198-01-01T00:00:00Z"})
    client.data("POST", "/api/v1/scheduler/jobs/sync_accounts/actions/resume")
    assert set(findings(one)) == {"runs-failed", "runs-missed"}, "those stay on record for a day"


def test_jobs_that_are_held(one: Stack) -> None:
    one.execute("flask", "jobs", "hold", "--reason", "a look at it")
    try:
        assert "a look at it" in findings(one)["jobs-held"]["what"]
    finally:
        one.execute("flask", "jobs", "release-hold", "--catch-up", "skip")
    assert "jobs-held" not in findings(one)


def test_a_locked_store(one: Stack) -> None:
    one.container().exec_run(["python3", "-I", "-c", HOLD, "300", JOB_STORE], detach=True)
    wait_until("the lock", lambda: is_locked(one), within=30)
    found = findings(one)
    assert f"{JOB_STORE}: database is locked" in found["store-locked"]["what"]
    assert found["store-locked"]["command"] == f"docker ps --filter volume={one.name}_userdata"
    holder = re.search(r"held by process (\d+) \(python3", found["store-locked"]["what"])
    assert holder, found["store-locked"]
    one.execute("sh", "-c", f"kill {holder[1]}")
    wait_until_gone(one, "store-locked")


def test_a_frozen_container(one: Stack) -> None:
    one.container().pause()
    try:
        found = findings(one)["container-paused"]
        assert found["command"] == f"docker unpause {one.name}-{SERVICE}-1"
    finally:
        one.container().unpause()
    one.wait_until_ready()
    wait_until_gone(one, "container-paused")


@pytest.mark.faults_long
def test_somebody_else_on_the_store(one: Stack) -> None:
    with extra_scheduler(one, {}) as other:
        found = findings(one)
    assert other.name in found["volume-shared"]["what"]
    assert str(other.id)[:12] in found["unknown-node"]["what"]
    assert "volume-shared" not in wait_until_gone(one, "unknown-node")


def test_a_secret_that_was_changed_by_hand(one: Stack) -> None:
    file = one.folder / "secrets" / "admin_password"
    aside = file.rename(file.with_suffix(".aside"))
    try:
        file.write_text("another one")
        (file.parent / "api_token.next").write_text("left over")
        found = findings(one)
        file.unlink()
        assert str(file) in found["secret-changed"]["what"]
        assert found["rotation-unfinished"]["command"] == "scripts/rotate_secrets.sh --yes api_token"
        assert str(file) in findings(one)["secret-missing"]["what"]
    finally:
        aside.rename(file)
        (file.parent / "api_token.next").unlink()
    assert not {"secret-changed", "secret-missing", "rotation-unfinished"} & findings(one).keys()


def test_the_scheduler_is_switched_off_and_the_broker_away_and_the_archive_holds_no_secret(
    one: Stack, tmp_path: Path
) -> None:
    client = one.bearer()
    parameters = {"password": PLANTED["kwargs"], "to": [{"api-key": PLANTED["nested"]}]}
    one.execute("python3", "-c", SET_KWARGS, "never", json.dumps(parameters))
    one.execute("python3", "-c", SET_COLUMN, "never", "ping_url", f"https://ping.invalid/{PLANTED['job_ping']}")
    instances = {"name": "erp", "kind": "postgresql", "host": "db.invalid", "user": "reader"}
    document = {"instances": [instances | {"password": PLANTED["database"]}]}
    one.execute("python3", "-c", WRITE, "/app/userdata/databases.yaml", json.dumps(document))
    changed = {
        "ENABLE_SCHEDULER": "on",
        "ALERT_WEBHOOK_URL": f"https://hooks.invalid/{PLANTED['webhook']}",
        "SCHEDULER_PING_URL": f"https://ping.invalid/?token={PLANTED['ping']}",
        "CELERY_BROKER_URL": f"redis://:{PLANTED['broker']}@broker.invalid:6379/0",
    }
    bundle = tmp_path / "support.tar.gz"
    with settings_changed(one, changed):
        wait_until("the web", lambda: client.get("/api/v1/health/live").status_code, lambda s: s == 200, within=60)
        # A log that repeats them without a word about what they are, as a caller's mistake or a task may. Those in
        # errors are known to nobody, and found by what stands before them.
        for value in (value for place, value in PLANTED.items() if place not in ("error", "url")):
            client.get("/login", params={"next": value})
            client.get(f"/{value}")
        outcome = doctor(one, "--json", "--bundle", str(bundle))
        found = found_by(outcome)
        assert {"scheduler-disabled", "api-409", "no-scheduler", "broker-unreachable"} <= set(found), outcome
        assert found["scheduler-disabled"]["what"].startswith("ENABLE_SCHEDULER is 'on'")
        for secret in (*PLANTED.values(), *one.secrets.values()):
            assert secret not in outcome.stdout + outcome.stderr
        held = contents(bundle)
        assert bundle.stat().st_mode & 0o777 == 0o600
        assert_complete(held, one)
        assert_without_secrets(held, [*PLANTED.values(), *one.secrets.values()])


def assert_complete(held: Mapping[str, str], stack: Stack) -> None:
    """What somebody far away needs is in it, and still readable."""
    names = {name.removeprefix("whalefall-support/") for name in held}
    log = f"host/logs/{stack.name}-{SERVICE}-1.log"
    wanted = {"versions.txt", "host.txt", "compose.yml", "containers.txt", "inspect.json", "doctor.json"}
    assert names >= {f"host/{name}" for name in wanted} | {log}
    assert names >= {
        f"app/{name}" for name in ("settings.txt", "status.json", "jobs.json", "alarms.json", "stores.json")
    }
    assert "/login?next=***" in held[f"whalefall-support/{log}"]
    assert '"never"' in held["whalefall-support/app/jobs.json"]
    assert "RuntimeError: login failed" in held["whalefall-support/app/alarms.json"]
    assert "scheduler-disabled" in held["whalefall-support/host/doctor.json"]
    assert "app/problems.txt" not in names


def assert_without_secrets(held: Mapping[str, str], secrets: list[str]) -> None:
    for name, text in held.items():
        for secret in secrets:
            for form in (secret, json.dumps(secret)[1:-1], secret.replace(" ", "%20"), secret.replace(" ", "+")):
                where = text.find(form)
                assert where < 0, f"{form} is in {name}: ...{text[max(0, where - 100) : where + 100]}"
                assert form not in name


def contents(bundle: Path) -> dict[str, str]:
    with tarfile.open(bundle) as archive:
        return {
            member.name: io.BytesIO(file.read()).getvalue().decode()
            for member in archive
            if (file := archive.extractfile(member)) is not None
        }


@contextmanager
def settings_changed(stack: Stack, changed: Mapping[str, str]) -> Iterator[None]:
    """The stack with other settings in here, brought up but not waited for."""
    before = dict(stack.environment)
    stack.environment |= changed
    try:
        stack.up()
        yield
    finally:
        stack.environment = before
        stack.up()


@pytest.mark.faults_long
def test_a_setting_that_the_app_refuses(one: Stack) -> None:
    with settings_changed(one, {"LOG_LEVEL": "LOUD"}):
        wait_until(
            "the container to start over",
            lambda: one.container().attrs["RestartCount"],
            lambda count: count >= 2,
            within=90,
        )
        found = findings(one)
        assert "LOG_LEVEL is 'LOUD'" in found["settings-refused"]["what"]
        assert "starts over and over" in found["container-restarting"]["what"]
    one.wait_until_ready()
    assert "settings-refused" not in wait_until_gone(one, "container-restarting")


@pytest.mark.faults_long
def test_a_program_that_does_not_run(one: Stack) -> None:
    one.execute("supervisorctl", "stop", "whalefall_scheduler")
    try:
        health = wait_until(
            "an unhealthy container",
            lambda: one.container().attrs["State"]["Health"]["Status"],
            lambda health: health == "unhealthy",
            within=60,
        )
        assert health
        found = findings(one)
    finally:
        one.execute("supervisorctl", "start", "whalefall_scheduler")
    told = {"container-unhealthy", "api-unreachable", "no-scheduler"}
    assert told <= set(found)
    one.wait_until_ready()
    assert not told & wait_until_gone(one, "container-unhealthy").keys()


@pytest.mark.faults_long
def test_a_container_that_ran_out_of_memory(one: Stack) -> None:
    one.container().update(mem_limit="400m", memswap_limit="400m")
    code, _ = one.container().exec_run(["python3", "-c", "held = bytearray(2 << 30)"])
    assert code == 137
    assert "for want of memory" in findings(one)["out-of-memory"]["what"]
    one.compose("up", "--detach", "--no-build", "--force-recreate")
    one.wait_until_ready()
    assert "out-of-memory" not in findings(one)


def test_a_stack_that_is_stopped_and_whose_port_is_taken(one: Stack) -> None:
    one.compose("stop", timeout=120)
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("0.0.0.0", one.port))
        holder.listen()
        found = findings(one)
    assert f"port {one.port} is taken by another program" in found["port-taken"]["what"]
    assert found["container-stopped"]["command"] == f"docker compose up --detach {SERVICE}"
    assert "was heard" in found["no-scheduler"]["what"]
    assert "port-taken" not in findings(one)
    asked = found["runs-failed"]["command"].removeprefix("docker compose ").split()
    assert "login failed" in one.compose(*asked), "its command works beside a stack that is stopped"


def test_a_damaged_store_and_one_that_is_gone(one: Stack, tmp_path: Path) -> None:
    """Still stopped: the doctor works beside it, changes nothing, and still writes its archive."""
    one.compose("run", "--rm", "-T", "--no-deps", SERVICE, "python3", "-c", SPOIL)
    bundle = tmp_path / "support.tar.gz"
    outcome = doctor(one, "--json", "--bundle", str(bundle))
    found = found_by(outcome)
    assert JOB_STORE in found["store-damaged"]["what"]
    assert found["store-damaged"]["command"] == "scripts/restore_jobstore.sh latest"
    held = contents(bundle)
    assert "the job store was not read" in held["whalefall-support/app/problems.txt"]
    assert_without_secrets(held, list(one.secrets.values()))

    one.compose("run", "--rm", "-T", "--no-deps", SERVICE, "mv", JOB_STORE, f"{JOB_STORE}.gone")
    assert f"the job store is not at {JOB_STORE}" in findings(one)["store-missing"]["what"]
    left = one.compose("run", "--rm", "-T", "--no-deps", SERVICE, "sh", "-c", "ls /app/userdata")
    assert "scheduler.db\n" not in left, "the doctor made a store"


def test_a_stack_that_was_taken_down(one: Stack) -> None:
    one.compose("down")
    assert "has no containers" in findings(one)["stack-absent"]["what"]


# -- what needs no stack ------------------------------------------------------------------------------------------


def test_no_engine_and_one_that_does_not_answer(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for folder in (Path("/usr/bin"), Path("/bin")):
        for tool in folder.iterdir():
            if not tool.name.startswith("docker") and not (tools / tool.name).exists():
                (tools / tool.name).symlink_to(tool)
    assert shutil.which("docker", path=str(tools)) is None
    without = run_script(SCRIPT, "--json", environment={"PATH": str(tools), "HOME": str(tmp_path)})
    assert set(found_by(without)) == {"engine-missing"}
    deaf = run_script(SCRIPT, "--json", environment={**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"})
    assert set(found_by(deaf)) == {"engine-down"}


def test_the_disk_of_the_engine_itself(tmp_path_factory: pytest.TempPathFactory) -> None:
    # A short name: the engine's sockets lie below it.
    with isolated_engine(tmp_path_factory.mktemp("disk"), disk_mib=2000) as engine:

        def found() -> Findings:
            done = engine.run(str(ROOT / "scripts" / SCRIPT), "--json")
            return found_by(Outcome(done.returncode, done.stdout, done.stderr), but=())

        about_disk = {"host-disk-low", "host-disk-full"}
        assert not about_disk & found().keys()
        for mib, finding, severity in ((800, "host-disk-low", "warning"), (150, "host-disk-full", "error")):
            engine.resize_disk(mib)
            told = found()
            assert about_disk & told.keys() == {finding}
            assert told[finding]["severity"] == severity
            assert re.fullmatch(rf"{engine.state}/data has \d+ MB left", told[finding]["what"]), told[finding]
            engine.output("sh", "-ec", told[finding]["command"].replace("prune", "prune --force"))
        engine.resize_disk(2000)
        assert not about_disk & found().keys()


def test_settings_that_compose_cannot_read(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("services: [\n")
    ours = {**os.environ, "COMPOSE_PROJECT_NAME": "whalefall-never-started", "HTTP_PORT": "0"}
    found = found_by(run_script(SCRIPT, "--json", environment={**ours, "COMPOSE_FILE": str(wrong)}))
    assert {"settings-invalid", "port-invalid", "stack-absent"} <= set(found)


def test_images_that_were_never_built() -> None:
    """They are not built, or looked for elsewhere, by somebody who only looks."""
    ours = {**os.environ, "COMPOSE_PROJECT_NAME": "whalefall-never-started", "WHALEFALL_TAG": "never-built"}
    found = found_by(run_script(SCRIPT, "--json", environment={**ours, "COMPOSE_FILE": ""}))
    assert {"app-unreachable", "stack-absent"} <= set(found)
    assert "whalefall/allinone:never-built is not here" in found["app-unreachable"]["what"]


@pytest.mark.parametrize("value", ["", "/nowhere/at/all.tgz", "/tmp", "--json"])
def test_an_archive_that_cannot_be_written(value: str) -> None:
    outcome = run_script(SCRIPT, "--bundle", value)
    assert outcome.code == 2, outcome
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("doctor.sh: --bundle ")
    assert len(outcome.stderr.splitlines()) == 1


@pytest.mark.faults_long
def test_a_full_volume(tmp_path: Path) -> None:
    with small_stack(tmp_path, mib=24) as stack:
        assert "disk-full" not in findings(stack)
        with full_volume(stack):
            full = findings(stack)["disk-full"]
            assert "no room is left" in full["what"]
            assert FILLER in stack.execute(*full["command"].split()[4:]), "its command leads to what takes the room"
        stack.execute("sh", "-c", LEAVE_A_MEGABYTE)
        low = findings(stack)
        assert "MiB left" in low["disk-low"]["what"]
        assert "disk-full" not in low
        stack.execute("rm", FILLER)
        assert "disk-low" not in findings(stack)
