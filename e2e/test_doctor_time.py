"""What scripts/doctor.sh finds as time goes by: what waits, what is late, what grew old, and a clock that was set back.

All on one stack whose clock the tests step (libfaketime), so that minutes and weeks pass within seconds, for every
process of the container alike. Each test begins where the one before left the clock. A finding goes again once that is
done which its command or its page says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from e2e.harness.certificates import make_certificate, write_certificate
from e2e.harness.client import SCHEDULER, Client
from e2e.harness.doctor import wait_until_found, wait_until_gone
from e2e.harness.faults import build_tools, step_clock, steppable_clock
from e2e.harness.oracle import FINAL
from e2e.harness.receiver import Receiver, bridge_address
from e2e.harness.scripts import run_on
from e2e.harness.stack import Stack, free_port
from e2e.harness.waiting import wait_until

NEVER = {"trigger_type": "date", "run_date": "2199-01-01T00:00:00Z"}
#: As many as the doctor wants before it judges how late runs are.
DUE_TOGETHER = 20
CERTIFICATE_HOLDS = timedelta(days=60)
OVERLAY = """
services:
  whalefall:
    environment: {environment}
    volumes:
      - {{type: bind, source: "{source}", target: "{target}", read_only: true}}
"""


@dataclass
class Passing:
    """A stack on which time passes as the test says; `offset` is how far its clock is ahead by now."""

    stack: Stack
    tls: Path
    receiver: Receiver
    offset: timedelta = timedelta()

    def client(self) -> Client:
        """A script's client, over https, because http only leads there."""
        client = Client(
            f"https://localhost:{self.stack.environment['HTTPS_PORT']}", token=self.stack.secrets["api_token"]
        )
        client.session.verify = str(self.tls / "tls.crt")
        return client

    def set_clock(self, offset: timedelta) -> None:
        """Step the clock to `offset` from the true time, and wait until a scheduler has turned by it."""
        self.offset = offset
        step_clock(self.stack, self.stack.container(), round(offset.total_seconds()))
        client = self.client()

        def behind() -> timedelta:
            status = client.data("GET", f"{SCHEDULER}/status")
            told = max(node["heartbeat_at"] for node in status["nodes"])
            return abs(datetime.fromisoformat(told) - datetime.now().astimezone() - offset)

        wait_until("a heartbeat by the new clock", behind, lambda off: off < timedelta(seconds=10), within=30)

    def pass_by(self, span: timedelta) -> None:
        self.set_clock(self.offset + span)


@pytest.fixture(scope="module")
def passing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Passing]:
    """The one container with https, one thread, and a receiver of alerts that is away."""
    build_tools()
    name = f"whalefall-e2e-{os.getpid()}-time"
    folder = tmp_path_factory.mktemp("time")
    tls = folder / "tls"
    write_certificate(tls, *make_certificate(valid_for=CERTIFICATE_HOLDS))
    receiver = Receiver(bridge_address())
    settings = {
        "TLS_DIR": str(tls),
        "HTTPS_PORT": str(free_port()),
        "SCHEDULER_THREADS": "1",
        "ALERT_WEBHOOK_URL": receiver.url("/hook"),
    }
    stack = Stack(name, folder / "stack", settings)
    with ExitStack() as held:
        held.callback(stack.remove)
        environment, mounts = held.enter_context(steppable_clock(stack))
        ((target, source),) = mounts.items()
        overlay = folder / "overlay.yml"
        overlay.write_text(OVERLAY.format(environment=environment, source=source, target=target))
        stack.compose_files += ("compose/docker-compose.https.yml", str(overlay))
        stack.start()
        yield Passing(stack, tls, receiver)
        receiver.down()


def test_runs_wait_for_the_one_thread_and_start_late(passing: Passing) -> None:
    stack = passing.stack
    client = passing.client()
    client.create_job("busy", "oracle_until", NEVER, kwargs={"file": "enough"})
    client.run_now("busy")
    due = (datetime.now().astimezone() + timedelta(seconds=15)).isoformat()
    together = [f"together-{number}" for number in range(DUE_TOGETHER)]
    for job in together:
        client.create_job(job, "oracle_fire", {"trigger_type": "date", "run_date": due})
    wait_until("them to be claimed", lambda: client.history(together[-1])[0]["outcome"] == "pending", within=40)
    passing.pass_by(timedelta(minutes=1))
    found = wait_until_found(stack, "queue-waits")
    assert found["what"].startswith(f"{DUE_TOGETHER} runs wait, the oldest for ")
    assert found["what"].endswith("; 1 run")
    stack.execute(*found["command"].split()[4:])

    (stack.oracle_folder / "enough").touch()
    for job in together:
        wait_until(f"the end of {job}", lambda job=job: client.history(job)[0]["outcome"] in FINAL, within=60)  # type: ignore[misc]
    assert "jobs-late" in wait_until_gone(stack, "queue-waits")
    late = wait_until_found(stack, "jobs-late")
    assert late["what"].startswith(f"of the last {DUE_TOGETHER} runs, one in twenty started more than ")
    passing.pass_by(timedelta(hours=1))
    wait_until_gone(stack, "jobs-late")


def test_alerts_whose_receiver_is_away(passing: Passing) -> None:
    stack = passing.stack
    client = passing.client()
    client.create_job("fails", "oracle_fail", NEVER)
    client.run_now("fails")
    wait_until("the failure", lambda: client.history("fails")[0]["outcome"] == "failed", within=20)
    passing.pass_by(timedelta(minutes=11))
    found = wait_until_found(stack, "alerts-stuck")
    assert found["what"].endswith(" times")
    log = stack.compose(*found["command"].split()[2:])
    assert f"{passing.receiver.host}:{passing.receiver.port}" in log, "its command names the address"
    passing.receiver.up()
    passing.pass_by(timedelta(minutes=10))  # sooner than that it tries again by itself
    wait_until_gone(stack, "alerts-stuck")
    assert passing.receiver.to("/hook")


def test_no_backup_for_days(passing: Passing) -> None:
    stack = passing.stack
    run_on(stack, "backup_jobstore.sh")
    passing.pass_by(timedelta(days=3))
    found = wait_until_found(stack, "backup-old")
    assert found["what"] == "the newest in userdata/backups is 3 days old"
    assert found["command"] == "scripts/backup_jobstore.sh"
    run_on(stack, "backup_jobstore.sh")
    wait_until_gone(stack, "backup-old")


def test_a_clock_that_was_set_back(passing: Passing) -> None:
    stack, right = passing.stack, passing.offset
    client = passing.client()
    client.run_now("fails")
    wait_until("the failure", lambda: client.history("fails")[0]["outcome"] == "failed", within=20)
    passing.set_clock(right - timedelta(hours=1))
    found = wait_until_found(stack, "clock-went-back")
    assert "s ahead of the clock" in found["what"]
    passing.set_clock(right)
    wait_until_gone(stack, "clock-went-back")


def test_a_certificate_that_nobody_renews(passing: Passing) -> None:
    stack = passing.stack
    passing.set_clock(CERTIFICATE_HOLDS - timedelta(days=10))
    soon = wait_until_found(stack, "certificate-expires-soon")
    assert "the certificate of localhost: it expires in 9 days" in soon["what"]
    passing.pass_by(timedelta(days=11))
    over = wait_until_found(stack, "certificate-expired")
    assert "the certificate of localhost: it expired on " in over["what"]
    code, told = stack.container().exec_run(over["command"].split()[4:])
    assert (code, "it expired on" in told.decode()) == (1, True), told
    write_certificate(passing.tls, *make_certificate(valid_for=CERTIFICATE_HOLDS * 2))
    wait_until_gone(stack, "certificate-expired")
