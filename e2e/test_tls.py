"""https by a mounted certificate: routes, redirect, protocols, and a renewal that nobody notices."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from e2e.harness.certificates import make_certificate, write_certificate
from e2e.harness.client import SCHEDULER, Client
from e2e.harness.scripts import Outcome, run_script
from e2e.harness.stack import Shape, Stack, free_port
from e2e.harness.waiting import wait_until

OVERLAYS = {"prod": "https", "split": "https-nginx", "ha": "https-nginx"}
RENEWED_WITHIN_S = 25.0  # twice what the watcher takes
MIB = 1024 * 1024


class HttpsStack(Stack):
    """A stack with a certificate mounted."""

    def __init__(self, name: str, folder: Path, *, shape: Shape = "prod") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tls = folder / "tls"
        write_certificate(self.tls, *make_certificate())
        (self.tls / "acme/.well-known/acme-challenge").mkdir(parents=True)
        self.https_port = free_port()
        environment = {"TLS_DIR": str(self.tls), "HTTPS_PORT": str(self.https_port)}
        super().__init__(name, folder / "stack", environment, shape=shape)
        self.compose_files += (f"compose/docker-compose.{OVERLAYS[shape]}.yml",)

    def secure(self, **options: Any) -> Client:
        """A client that trusts the certificate that is in the folder now."""
        client = Client(f"https://localhost:{self.https_port}", **options)
        client.session.verify = str(self.tls / "tls.crt")
        return client

    def served(self) -> int:
        """The serial number of the certificate that a client is shown."""
        shown = ssl.get_server_certificate(("127.0.0.1", self.https_port), timeout=10)
        return x509.load_pem_x509_certificate(shown.encode()).serial_number

    def lines(self, program: str, words: str) -> list[dict[str, Any]]:
        """The lines of a program's log that hold these words."""
        log = self.container("whalefall" if self.shape == "prod" else "nginx").logs().decode()
        found = (json.loads(line) for line in log.splitlines())
        return [line for line in found if line["program"] == program and words in line["message"]]


@pytest.fixture(scope="module")
def https(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpsStack]:
    stack = HttpsStack(f"whalefall-e2e-{os.getpid()}-https", tmp_path_factory.mktemp("https"))
    try:
        stack.start()
        yield stack
    finally:
        stack.remove()


def test_https_has_the_same_routes(https: HttpsStack) -> None:
    secure = https.secure(token=https.secrets["api_token"])
    new_session = secure.get("/api/v1/auth/csrf-token", headers={"Authorization": ""})
    assert "Secure" in new_session.headers["Set-Cookie"]
    login = secure.get("/login", headers={"Authorization": ""})
    assert login.status_code == 200
    assert login.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert secure.get("/api/v1/scheduler").headers["Location"] == "/api/v1/scheduler/"
    assert secure.get(f"{SCHEDULER}/jobs").status_code == 200
    too_large = secure.post(f"{SCHEDULER}/jobs", data=b"x" * (MIB + 1))
    assert (too_large.status_code, too_large.json()["message_code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_a_person_logs_in_over_https(https: HttpsStack) -> None:
    person = https.secure()
    # What a browser sends; the CSRF check under https asks for it.
    person.session.headers["Referer"] = f"https://localhost:{https.https_port}/login"
    person.log_in("admin", https.secrets["admin_password"])
    assert person.get(f"{SCHEDULER}/jobs").status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    "path", ["/", "/login?next=%2Fa%20b", f"{SCHEDULER}/jobs", "/api/v1/scheduler", "/api/v1/health/../auth/login"]
)
def test_http_leads_to_https(https: HttpsStack, method: str, path: str) -> None:
    # Not through `requests`, which would tidy the path up.
    with socket.create_connection(("127.0.0.1", https.port), timeout=30) as connection:
        connection.sendall(f"{method} {path} HTTP/1.0\r\nHost: localhost:{https.port}\r\n\r\n".encode())
        head = connection.makefile("rb").read().decode().partition("\r\n\r\n")[0].split("\r\n")
    assert head[0].split()[1] == "308", "it keeps the method and the body"
    assert f"Location: https://localhost:{https.https_port}{path}" in head
    assert not any(line.startswith("Strict-Transport-Security") for line in head), "it means nothing over http"


def test_health_and_proofs_of_the_name_stay_on_http(https: HttpsStack) -> None:
    anyone = https.anonymous()
    for path in ("/api/v1/health/basic", "/api/v1/health/ready", f"{SCHEDULER}/health/live"):
        assert anyone.get(path).status_code == 200, path
    challenges = https.tls / "acme/.well-known/acme-challenge"
    (challenges / "token").write_text("proof")
    (challenges / "token").chmod(0o444)
    (challenges / "link").symlink_to("../../../tls.key")
    assert anyone.get("/.well-known/acme-challenge/token").text == "proof"
    for name in ("nothing", "link", "../../../tls.key", "%2e%2e/%2e%2e/%2e%2e/tls.key"):
        answer = anyone.get(f"/.well-known/acme-challenge/{name}")
        assert answer.status_code != 200, name
        assert "PRIVATE KEY" not in answer.text


def test_a_forgotten_s_is_led_there_too(https: HttpsStack) -> None:
    answer = Client(f"http://localhost:{https.https_port}").get("/login")
    assert (answer.status_code, answer.headers["Location"]) == (308, f"https://localhost:{https.https_port}/login")


@pytest.mark.parametrize(
    ("version", "ciphers", "reason"),
    [
        (ssl.TLSVersion.TLSv1, "ALL:@SECLEVEL=0", "TLSV1_ALERT_PROTOCOL_VERSION"),
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0", "TLSV1_ALERT_PROTOCOL_VERSION"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256", "HANDSHAKE_FAILURE"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-GCM-SHA256", None),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-CHACHA20-POLY1305", None),
        (ssl.TLSVersion.TLSv1_3, "ALL", None),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_only_modern_protocols(https: HttpsStack, version: ssl.TLSVersion, ciphers: str, reason: str | None) -> None:
    context = ssl.create_default_context(cafile=str(https.tls / "tls.crt"))
    context.minimum_version = context.maximum_version = version
    context.set_ciphers(ciphers)
    with socket.create_connection(("127.0.0.1", https.https_port), timeout=10) as connection:
        if reason is None:
            with context.wrap_socket(connection, server_hostname="localhost") as secured:
                assert secured.version() == version.name.replace("_", ".")
            return
        with pytest.raises(ssl.SSLError) as refused, context.wrap_socket(connection, server_hostname="localhost"):
            pass
    assert str(refused.value.reason).endswith(reason), "nginx refuses, not this client"


def test_a_monitoring_system_asks_over_https(https: HttpsStack, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(https.secrets["api_token"])

    def check(address: str, *arguments: str) -> Outcome:
        job = ("--job-id", "backup_jobstore", "--token-file", str(token))
        return run_script("check_job.py", *job, "--url", address, *arguments)

    address, certificate = f"https://localhost:{https.https_port}", str(https.tls / "tls.crt")
    asked = check(address, "--ca-file", certificate)
    assert (asked.code, asked.stderr) == (0, ""), asked
    assert asked.stdout.startswith("OK - backup_jobstore: ")
    for refused, part in (
        (check(address), f"the certificate of {address} is not trusted"),
        (check(f"http://localhost:{https.port}", "--ca-file", certificate), f"which leads to {address}/"),
    ):
        assert (refused.code, refused.stderr) == (3, ""), refused
        assert part in refused.stdout


def test_the_metrics_tell_when_it_expires(https: HttpsStack) -> None:
    (network,) = https.container().attrs["NetworkSettings"]["Networks"].values()
    told = Client(f"http://{network['IPAddress']}:8081").get("/metrics?collect[]=deployment").text
    [expiry] = re.findall(r"^whalefall_certificate_expiry_timestamp_seconds (\S+)$", told, re.MULTILINE)
    shown = x509.load_pem_x509_certificate((https.tls / "tls.crt").read_bytes())
    assert float(expiry) == shown.not_valid_after_utc.timestamp()


def test_a_renewal_is_taken_up_without_a_restart(https: HttpsStack) -> None:
    """Under requests, none of which fails; what cannot be used is refused, and the one before stays in use."""
    old_certificate, old_key = (https.tls / "tls.crt").read_bytes(), (https.tls / "tls.key").read_bytes()
    before = https.served()
    masters = {p.pid for p in https.processes() if p.command.startswith("nginx: master")}
    failures: list[str] = []
    asked = [0]
    over = threading.Event()

    def ask() -> None:
        client = Client(f"https://localhost:{https.https_port}")
        client.session.verify = False
        while not over.wait(0.02):
            asked[0] += 1
            try:
                status = client.get("/api/v1/health/basic", headers={"Connection": "close"}).status_code
                if status != 200:
                    failures.append(str(status))
            except OSError as error:
                failures.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        certificate, key = make_certificate()
        write_certificate(https.tls, certificate, old_key)  # a key that belongs to another
        (refusal,) = wait_until(
            "the refusal", lambda: https.lines("nginx", "is refused, the one before stays"), within=RENEWED_WITHIN_S
        )
        assert refusal["level"] == "error"
        assert "key values mismatch" in refusal["message"]
        assert https.served() == before

        write_certificate(https.tls, certificate, key)
        wait_until("the new one", https.served, lambda serial: serial != before, within=RENEWED_WITHIN_S)
        assert https.served() == x509.load_pem_x509_certificate(certificate).serial_number
        assert len(https.lines("nginx", "the renewed certificate is taken up")) == 1
    finally:
        over.set()
        asking.join()
    assert asked[0] > 20
    assert failures == []
    assert {p.pid for p in https.processes() if p.command.startswith("nginx: master")} == masters
    assert old_certificate != certificate


def test_an_expired_certificate_is_told_of(https: HttpsStack) -> None:
    good = json.loads(https.execute("flask", "jobs", "certificate", "--json"))
    assert (good["problem"], good["self_signed"], good["names"]) == (None, True, ["localhost"])
    before = https.served()
    write_certificate(https.tls, *make_certificate(valid_for=timedelta(days=-3)))
    wait_until("the expired one", https.served, lambda serial: serial != before, within=RENEWED_WITHIN_S)
    code, output = https.container().exec_run(["flask", "jobs", "certificate"])
    assert (code, "it expired on" in output.decode()) == (1, True)
    write_certificate(https.tls, *make_certificate())
    wait_until(
        "a good one",
        lambda: https.container().exec_run(["flask", "jobs", "certificate"]).exit_code,
        lambda code: code == 0,
        within=RENEWED_WITHIN_S,
    )


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"tls.crt": b"x"}, "https needs tls.crt and tls.key in the mounted folder"),
        ({"tls.crt": b"no certificate", "tls.key": b"no key"}, "https cannot be served: .*cannot load certificate"),
    ],
)
def test_a_broken_certificate_at_the_start_is_one_clear_line(
    https: HttpsStack, tmp_path: Path, files: dict[str, bytes], problem: str
) -> None:
    tmp_path.chmod(0o755)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o444)
    done = subprocess.run(
        ["docker", "run", "--rm", "--network", "none", "--tmpfs", "/run/whalefall:uid=10001,gid=10001",
         "--volume", f"{tmp_path}:/etc/nginx/tls:ro", https.container().image.id, "start-nginx.sh"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (1, "")
    told = json.loads(line)
    assert (told["level"], told["program"]) == ("error", "nginx")
    assert re.search(problem, told["message"]), told


def test_make_dev_cert(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    made = run_script("make_dev_cert.sh", "--dir", str(folder), "--days", "30", "--json", "dev.example", "192.0.2.7")
    assert made.code == 0, made
    assert json.loads(made.stdout)["folder"] == str(folder)
    certificate = x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["dev.example"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]
    assert (folder / "tls.key").stat().st_mode & 0o077 in (0, 0o044)
    context = ssl.create_default_context(cafile=str(folder / "tls.crt"))
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")

    content = (folder / "tls.crt").read_bytes()
    for arguments, code in (
        (("--dir", str(folder)), 1),  # there is one, and nobody can be asked
        (("--dir", str(folder), "--dry-run"), 0),
        (("--dir", str(folder), "--days", "0"), 2),
        (("--dir", str(folder), "no name"), 2),
        (("--dir", "/a b"), 2),
        (("--what",), 2),
    ):
        outcome = run_script("make_dev_cert.sh", *arguments)
        assert outcome.code == code, outcome
        assert (folder / "tls.crt").read_bytes() == content
    assert run_script("make_dev_cert.sh", "--dir", str(folder), "--yes").code == 0
    assert (folder / "tls.crt").read_bytes() != content
    assert sorted(path.name for path in folder.iterdir()) == ["tls.crt", "tls.key"]


@pytest.mark.faults_long
@pytest.mark.parametrize("shape", ["split", "ha"])
def test_the_other_shapes_serve_https_too(tmp_path_factory: pytest.TempPathFactory, shape: Shape) -> None:
    stack = HttpsStack(f"whalefall-e2e-{os.getpid()}-https-{shape}", tmp_path_factory.mktemp(shape), shape=shape)
    try:
        stack.start()
        assert stack.secure(token=stack.secrets["api_token"]).get(f"{SCHEDULER}/jobs").status_code == 200
        assert stack.anonymous().get("/login").status_code == 308
        for program in ("web", "scheduler"):
            shown = stack.execute("flask", "jobs", "certificate", "--json", container=stack.container(program))
            assert json.loads(shown)["names"] == ["localhost"]
        before = stack.served()
        write_certificate(stack.tls, *make_certificate())
        wait_until("the new one", stack.served, lambda serial: serial != before, within=RENEWED_WITHIN_S)
    finally:
        stack.remove()
