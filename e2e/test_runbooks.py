"""Runbooks of one machine, followed block by block in a stack that is in just the situation they are for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from e2e.harness.checkout import Checkout
from e2e.harness.client import SCHEDULER
from e2e.harness.runbooks import Operator
from e2e.harness.site import Site, bare_site, site
from e2e.harness.small_volume import FILL
from e2e.harness.sqlite_lock import APP_DATABASE, JOB_STORE
from e2e.harness.stack import free_port
from e2e.harness.waiting import wait_for_clock, wait_until

READY = "/api/v1/health/ready"
DAILY = {"trigger_type": "cron", "cron_expression": "0 3 * * *"}
EVERY_TWO_SECONDS = {"trigger_type": "interval", "seconds": 2}
#: The task of the pages' examples: it copies, and then may fail.
COPY_REPORT = """
from app.tasks import task

@task("copy_report", description="Copies the report")
def copy_report(fails: bool = False, *, run):
    print("copied")
    if fails and run.attempt == 1:
        raise RuntimeError("the target says it is there already")
"""
#: A person's shell in a transaction that nobody ended.
FORGOTTEN_TRANSACTION = """
import sqlite3, time
connection = sqlite3.connect("/app/userdata/scheduler.db", isolation_level=None, timeout=20)
connection.execute("BEGIN IMMEDIATE")
time.sleep(3600)
"""
SPOIL = """
import pathlib
file = pathlib.Path("/app/userdata/scheduler.db")
content = bytearray(file.read_bytes())
content[4096:] = bytes(len(content) - 4096)
file.write_bytes(content)
"""
FORGET_JOBS = """
import sqlite3
with sqlite3.connect("/app/userdata/scheduler.db", timeout=20) as connection:
    connection.execute("DELETE FROM jobs")
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The one container. Each page leaves it as it should be: healthy."""
    with site(tmp_path_factory.mktemp("runbooks"), "runbooks", tasks={"copy_report": COPY_REPORT}) as made:
        yield made


@pytest.fixture
def operator(here: Site) -> Operator:
    return Operator(here.checkout)


def has(one: Any) -> Callable[[Collection[Any]], bool]:
    return lambda found: one in found


def is_(one: Any) -> Callable[[Any], bool]:
    return lambda found: found == one


def outcomes(here: Site, job_id: str) -> list[str]:
    """The outcomes of a job's newest rows, newest first."""
    return [row["outcome"] for row in here.bearer().data("GET", f"{SCHEDULER}/jobs/{job_id}/history")]


def test_scheduler_switched_off(here: Site, operator: Operator) -> None:
    here.keep(ENABLE_SCHEDULER="false")
    here.up(ready=False)
    wait_until("the web to answer", lambda: here.status_of("/api/v1/health/basic"), is_(200), within=30)
    assert here.bearer().get(f"{SCHEDULER}/status").status_code == 409
    done = operator.follow("scheduler-api-409")
    assert "whalefall_scheduler              STOPPED" in done.diagnosis


def test_two_jobs_with_one_task(here: Site, operator: Operator) -> None:
    client = here.bearer()
    for job_id in ("copy_report", "copy_report_again"):
        client.create_job(job_id, "copy_report", DAILY)
    client.run_now("copy_report")
    done = operator.follow("jobs-run-twice", "two jobs")
    assert '"id": "copy_report_again", "task": "copy_report"' in done.diagnosis


def test_attempts_repeat_a_task(here: Site, operator: Operator) -> None:
    client = here.bearer()
    wanted = EVERY_TWO_SECONDS | {"kwargs": {"fails": True}, "max_attempts": 2, "retry_delay": 1}
    client.data("PUT", f"{SCHEDULER}/jobs/copy_report", json=wanted)
    wait_until("a second attempt", lambda: [row["attempt"] for row in client.history("copy_report")], has(2), within=30)
    operator.follow("jobs-run-twice", "attempts")
    client.delete_job("copy_report")


class TestJobDidNotFire:
    """One job, and one reason after the other."""

    JOB = f"{SCHEDULER}/jobs/nightly_report"

    @pytest.fixture(scope="class", autouse=True)
    @staticmethod
    def nightly_report(here: Site) -> Iterator[None]:
        here.bearer().create_job("nightly_report", "copy_report", DAILY)
        yield
        here.bearer().delete_job("nightly_report")

    def test_paused(self, here: Site, operator: Operator) -> None:
        here.bearer().data("POST", f"{self.JOB}/actions/pause")
        done = operator.follow("job-did-not-fire", "paused")
        assert "paused" in done.diagnosis

    def test_disabled(self, here: Site, operator: Operator) -> None:
        here.bearer().data("POST", f"{self.JOB}/action", json={"action": "disable"})
        done = operator.follow("job-did-not-fire", "disabled")
        assert "disabled" in done.diagnosis

    def test_held(self, here: Site, operator: Operator) -> None:
        here.execute("flask", "jobs", "hold", "--reason", "looking at the store")
        done = operator.follow("job-did-not-fire", "held")
        assert "looking at the store" in done.diagnosis

    def test_scheduler_stopped(self, here: Site, operator: Operator) -> None:
        here.execute("supervisorctl", "stop", "whalefall_scheduler")
        wait_until("health to be red", lambda: here.status_of(READY), is_(503), within=60)
        done = operator.follow("job-did-not-fire", "stopped")
        assert "whalefall_scheduler              STOPPED" in done.diagnosis

    def test_missed(self, here: Site, operator: Operator) -> None:
        """The machine sleeps over the moment."""
        moment = datetime.now(ZoneInfo("Asia/Shanghai")) + timedelta(seconds=3)
        once_a_day = {"trigger_type": "cron", "cron_expression": f"{moment:%S %M %H} * * *"}
        here.bearer().data("PUT", self.JOB, json=once_a_day | {"misfire_grace_time": 1})
        container = here.container()
        container.pause()
        wait_for_clock(moment.timestamp() + 3)
        container.unpause()
        wait_until("the missed moment", lambda: outcomes(here, "nightly_report")[0], is_("missed"), within=30)
        done = operator.follow("job-did-not-fire", "missed")
        assert "missed" in done.diagnosis


def test_places_taken(here: Site, operator: Operator) -> None:
    here.keep(SCHEDULER_THREADS="1", DRAIN_SECONDS="1")
    here.up()
    client = here.bearer()
    client.create_job("long", "oracle_sleep", DAILY, kwargs={"seconds": 600})
    client.run_now("long")
    wait_until("the long run", lambda: outcomes(here, "long"), is_(["running"]), within=30)
    client.run_now("purge_run_history")

    def free_places() -> list[int]:
        nodes = client.data("GET", f"{SCHEDULER}/status")["nodes"]
        return [node["stats"]["free"]["default"] for node in nodes if node["is_alive"]]

    wait_until("the node to tell of it", free_places, is_([0]), within=30)
    done = operator.follow("jobs-fire-late", "places taken")
    assert '"default":0' in done.diagnosis
    wait_until("the run that waited", lambda: outcomes(here, "purge_run_history")[0], is_("success"), within=30)
    client.delete_job("long")


def test_forgotten_transaction(here: Site, operator: Operator) -> None:
    here.checkout.compose("run", "--detach", "--no-deps", "whalefall", "python3", "-I", "-c", FORGOTTEN_TRANSACTION)
    wait_until("health to be red", lambda: here.status_of(READY), is_(503), within=60)
    done = operator.follow("database-is-locked")
    assert "BEGIN IMMEDIATE" in done.diagnosis, "the process that holds the lock was not found"


def test_clock_change(here: Site, operator: Operator) -> None:
    client = here.bearer()
    berlin = {"trigger_type": "cron", "cron_expression": "30 2 * * *", "timezone": "Europe/Berlin"}
    client.create_job("nightly", "purge_run_history", berlin)
    done = operator.follow("clock-change-nights")
    assert "moved" in done.diagnosis
    assert "comes twice" in done.diagnosis
    client.delete_job("nightly")


def test_a_second_project(here: Site, operator: Operator) -> None:
    """A copy brought up beside the stack, under another name."""
    second = f"{here.checkout.project}-2"
    begun = here.checkout.run(
        *("docker", "compose", "--project-name", second, "up", "--detach", "--no-build", "--wait"),
        env={"HTTP_PORT": str(free_port())},
    )
    try:
        assert begun.returncode == 0, begun.stderr
        done = Operator(here.checkout, {"whalefall2": second}).follow("two-deployments")
        assert f"{second} whalefall whalefall/allinone" in done.diagnosis
    finally:
        here.checkout.run("docker", "compose", "--project-name", second, "down", "--volumes", "--timeout", "5", env={})


def test_store_without_jobs(here: Site, operator: Operator) -> None:
    here.bearer().create_job("weekly_report", "copy_report", DAILY)
    here.execute("flask", "jobs", "export")
    here.execute("python3", "-I", "-c", FORGET_JOBS)
    operator.follow("jobstore-without-jobs")


def test_jobs_are_reset(here: Site, operator: Operator) -> None:
    here.bearer().data("POST", f"{SCHEDULER}/jobs/sync_accounts/actions/pause")
    done = operator.follow("reset-jobstore", "jobs")
    assert "sync_accounts" in done.diagnosis


def test_store_is_reset(here: Site, operator: Operator) -> None:
    here.bearer().data("POST", f"{SCHEDULER}/jobs/sync_accounts/actions/pause")
    operator.follow("reset-jobstore", "store")


class TestBackupAndRestore:
    """One after the other: a backup, the way back to it, and the way back from there."""

    def test_no_backup(self, here: Site, operator: Operator) -> None:
        here.bearer().create_job("report", "copy_report", DAILY)
        here.execute("sh", "-c", "rm -rf userdata/backups/*")
        operator.follow("backup-and-restore", "no backup")

    def test_an_older_state(self, here: Site, operator: Operator) -> None:
        """The job was deleted after the backup, for good."""
        here.execute("python3", "-I", "-c", FORGET_JOBS)
        done = operator.follow("backup-and-restore", "an older state")
        assert "report" in done.verification

    def test_the_wrong_one(self, here: Site, operator: Operator) -> None:
        """The backup is from before the job was made."""
        here.bearer().delete_job("report")
        here.execute("flask", "jobs", "backup")
        here.bearer().data("POST", f"{SCHEDULER}/jobs/report/actions/restore")
        run_once(here, "restore_jobstore.sh", "latest", "--yes", "--catch-up=skip")
        operator.follow("backup-and-restore", "the wrong one")
        here.bearer().delete_job("report")


def run_once(here: Site, script: str, *arguments: str) -> None:
    done = here.checkout.run(f"scripts/{script}", *arguments, env={})
    assert done.returncode == 0, done.stderr


def test_damaged_store_with_a_backup(here: Site, operator: Operator) -> None:
    here.bearer().create_job("kept", "copy_report", DAILY)
    here.execute("flask", "jobs", "backup")
    spoil(here)
    operator.follow("jobstore-damaged", "with a backup")
    assert here.bearer().job("kept")["id"] == "kept"


def test_damaged_store_without_a_backup(here: Site, operator: Operator) -> None:
    spoil(here)
    operator.follow("jobstore-damaged", "without a backup")


def spoil(here: Site) -> None:
    here.checkout.compose("stop")
    here.beside("python3", "-I", "-c", SPOIL)
    here.up(ready=False)
    wait_until("the start is refused", lambda: here.container().logs(tail=100), has(b"damaged"), within=90)


def test_password_file_that_was_changed(here: Site, operator: Operator) -> None:
    file = here.checkout.folder / ".secrets" / "admin_password"
    file.chmod(0o644)
    file.write_text("what somebody thought it was\n")
    operator.follow("forgotten-admin-password")


def test_certificate_that_has_expired(here: Site, operator: Operator) -> None:
    folder = here.checkout.folder / ".secrets" / "tls"
    folder.mkdir()
    expire(folder)
    port = str(free_port())
    here.keep(
        COMPOSE_FILE="compose/docker-compose.prod.yml:compose/docker-compose.https.yml",
        TLS_DIR=str(folder),
        HTTPS_PORT=port,
    )
    here.up()
    done = Operator(here.checkout, {"localhost:8443": f"localhost:{port}"}).follow("certificate-expired")
    assert "expired" in done.diagnosis
    here.keep(COMPOSE_FILE="compose/docker-compose.prod.yml")
    here.up()


def expire(folder: Path) -> None:
    """A certificate that ended yesterday."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=90))
        .not_valid_after(now - timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    (folder / "tls.crt").write_bytes(certificate.public_bytes(pem))
    (folder / "tls.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    for file in folder.iterdir():
        file.chmod(0o644)


#: A volume in memory, so small that a test can fill it.
SMALL_VOLUME = """
volumes:
  userdata:
    driver: local
    driver_opts:
      type: tmpfs
      device: tmpfs
      o: size=24m,mode=0750,uid=10001,gid=10001
"""


def test_disk_full(tmp_path: Path) -> None:
    def lay_over(made: Site) -> None:
        (made.checkout.folder / "compose" / "small.yml").write_text(SMALL_VOLUME)
        made.keep(COMPOSE_FILE="compose/docker-compose.prod.yml:compose/small.yml")

    with site(tmp_path / "small", "runbooks-full", prepare=lay_over) as small:
        aside = "/app/userdata/backups/aside-20260101T000000Z"
        small.execute("mkdir", "-p", aside)
        small.execute("python3", "-I", "-c", FILL, f"{aside}/scheduler.db", JOB_STORE, APP_DATABASE)
        wait_until("health to be red", lambda: small.status_of(READY), is_(503), within=60)
        done = Operator(small.checkout).follow("disk-full")
        assert "100%" in done.diagnosis


def test_another_machine(here: Site, operator: Operator, tmp_path: Path) -> None:
    """The last one: it takes the stack of the others down."""
    client = here.bearer()
    client.create_job("weekly_report", "copy_report", DAILY)
    client.run_now("weekly_report")
    wait_until("its run", lambda: outcomes(here, "weekly_report"), is_(["success"]), within=30)
    with bare_site(tmp_path / "new", "runbooks-new") as new:
        carrying = Carrier(here.checkout, to=new.checkout)
        done = Operator(new.checkout, machines={"the old machine": carrying})
        done.follow("restore-to-another-machine", "the old machine runs")
        assert here.checkout.containers() == []


@dataclass
class Carrier(Operator):
    """Somebody at the old machine, who copies to the new one what the page says."""

    to: Checkout = field(kw_only=True)

    def shell(self, body: str) -> tuple[int, str]:
        done = super().shell(body)
        for file in self.checkout.folder.glob("whalefall-*.tar"):
            shutil.copy(file, self.to.folder)
        shutil.copytree(self.checkout.folder / ".secrets", self.to.folder / ".secrets", dirs_exist_ok=True)
        return done
