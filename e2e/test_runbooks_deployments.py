"""Runbooks of a deployment and the way to it, followed in a stack that is in just that situation."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import eq
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from e2e.harness.checkout import Checkout
from e2e.harness.client import SCHEDULER
from e2e.harness.runbooks import COPY_REPORT, Operator
from e2e.harness.site import Site, bare_site, site
from e2e.harness.stack import free_port
from e2e.harness.waiting import wait_until

DAILY = {"trigger_type": "cron", "cron_expression": "0 3 * * *"}
#: What a databases.yaml may hold, on one line.
DATABASES = "instances: []  # none yet"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The one container. Each page leaves it as it should be: healthy."""
    with site(tmp_path_factory.mktemp("runbooks"), "runbooks", tasks={"copy_report": COPY_REPORT}) as made:
        yield made


@pytest.fixture
def operator(here: Site) -> Operator:
    return Operator(here)


def test_scheduler_switched_off(here: Site, operator: Operator) -> None:
    here.keep(ENABLE_SCHEDULER="false")
    here.start(ready=False)
    wait_until("the web to answer", lambda: here.status_of("/api/v1/health/basic"), partial(eq, 200), within=30)
    assert here.bearer().get(f"{SCHEDULER}/status").status_code == 409
    done = operator.follow("scheduler-api-409")
    assert "whalefall_scheduler              STOPPED" in done.diagnosis


def test_a_second_project(here: Site, operator: Operator) -> None:
    """A copy brought up beside the stack, under another name."""
    second = f"{here.project}-2"
    begun = here.run(
        *("docker", "compose", "--project-name", second, "up", "--detach", "--no-build", "--wait"),
        env={"HTTP_PORT": str(free_port())},
    )
    try:
        assert begun.returncode == 0, begun.stderr
        done = Operator(here, {"whalefall2": second}).follow("two-deployments")
        assert f"{second} whalefall whalefall/allinone" in done.diagnosis
    finally:
        here.run("docker", "compose", "--project-name", second, "down", "--volumes", "--timeout", "5", env={})


def test_password_file_that_was_changed(here: Site, operator: Operator) -> None:
    file = here.folder / ".secrets" / "admin_password"
    file.chmod(0o644)
    file.write_text("what somebody thought it was\n")
    operator.follow("forgotten-admin-password")


def test_certificate_that_has_expired(here: Site, operator: Operator) -> None:
    folder = here.folder / ".secrets" / "tls"
    folder.mkdir()
    expire(folder)
    port = str(free_port())
    here.keep(
        COMPOSE_FILE="compose/docker-compose.prod.yml:compose/docker-compose.https.yml",
        TLS_DIR=str(folder),
        HTTPS_PORT=port,
    )
    here.start()
    done = Operator(here, {"localhost:8443": f"localhost:{port}"}).follow("certificate-expired")
    assert "expired" in done.diagnosis
    here.keep(COMPOSE_FILE="compose/docker-compose.prod.yml")
    here.start()


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


def test_another_machine(here: Site, operator: Operator, tmp_path: Path) -> None:
    """The last one: it takes the stack of the others down."""
    client = here.bearer()
    client.create_job("weekly_report", "copy_report", DAILY)
    client.run_now("weekly_report")
    wait_until("its run", lambda: here.outcomes("weekly_report"), partial(eq, ["success"]), within=30)
    here.execute("flask", "jobs", "backup")  # last night's
    here.execute("sh", "-c", f"echo '{DATABASES}' > userdata/databases.yaml")
    with bare_site(tmp_path / "new", "runbooks-new") as new:
        carrying = Carrier(here, to=new)
        done = Operator(new, machines={"the old machine": carrying})
        done.follow("restore-to-another-machine", "the old machine runs")
        assert here.containers() == []
        assert new.execute("cat", "userdata/databases.yaml").strip() == DATABASES


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
