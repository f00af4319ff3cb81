"""scripts/up.sh: from a checkout to a healthy stack, again without changing anything, and its answers to bad input."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.harness.checkout import Checkout, checked_out
from e2e.harness.client import SCHEDULER, Client
from e2e.harness.stack import ROOT, SECRETS, free_port
from e2e.harness.waiting import wait_until


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    with checked_out(tmp_path_factory.mktemp("checkout"), f"whalefall-e2e-up-{os.getpid()}", Checkout) as made:
        yield made


def containers(checkout: Checkout) -> list[tuple[str, str]]:
    """Id and start of every container of the project."""
    return sorted((str(one.id), str(one.attrs["State"]["StartedAt"])) for one in checkout.containers())


# Before anything is set up: what is wrong is told in one line, and nothing is made.


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", 0))
        holder.listen()
        yield holder.getsockname()[1]


def assert_refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    """Ended with an error, one line on stderr, nothing on stdout."""
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    for words in said:
        assert words in line


@pytest.mark.parametrize("argument", ["--nonsense", "--install-engine=yes", "now", "", "-h"])
def test_unknown_argument(checkout: Checkout, argument: str) -> None:
    before = checkout.files()
    assert_refused(
        checkout.up(argument), f"unknown argument '{argument}'", "accepted: --shape, --install-engine, --help"
    )
    assert checkout.files() == before


@pytest.mark.parametrize("shape", ["", "HA", "ha,split", "prod;ls"])
def test_unknown_shape(checkout: Checkout, shape: str) -> None:
    before = checkout.files()
    assert_refused(checkout.up("--shape", shape), f"--shape is '{shape}'", "accepted: prod, split, ha")
    assert checkout.files() == before


@pytest.mark.parametrize("port", ["0", "65536", "eighty", "80 80", "-1", "99999999999999999999"])
def test_bad_port(checkout: Checkout, port: str) -> None:
    before = checkout.files()
    done = checkout.up(env={"COMPOSE_PROJECT_NAME": checkout.project, "HTTP_PORT": port})
    assert_refused(done, f"HTTP_PORT is '{port}'", "accepted: a port number from 1 to 65535")
    assert checkout.files() == before
    assert containers(checkout) == []


@pytest.mark.parametrize(("drain", "grace", "least"), [("600", "90s", "650s"), ("41", "1m30s", "91s")])
def test_a_stop_that_docker_would_cut_short(checkout: Checkout, drain: str, grace: str, least: str) -> None:
    before = checkout.files()
    done = checkout.up(env={"DRAIN_SECONDS": drain, "STOP_GRACE_PERIOD": grace})
    assert_refused(done, f"STOP_GRACE_PERIOD is '{grace}'", f"accepted: at least {least}")
    assert checkout.files() == before


def test_taken_port(checkout: Checkout, taken_port: int) -> None:
    before = checkout.files()
    done = checkout.up(env={"COMPOSE_PROJECT_NAME": checkout.project, "HTTP_PORT": str(taken_port)})
    assert_refused(done, f"port {taken_port} is taken", "HTTP_PORT=")
    assert checkout.files() == before
    assert containers(checkout) == []


def test_no_engine(checkout: Checkout, tmp_path: Path) -> None:
    for folder in ("/usr/bin", "/bin"):
        for program in Path(folder).iterdir():
            link = tmp_path / program.name
            if not program.name.startswith("docker") and not link.exists():
                link.symlink_to(program)
    before = checkout.files()
    done = checkout.up(env={"PATH": str(tmp_path)})
    assert_refused(done, "missing: Docker Engine 20.10 or newer", "scripts/up.sh --install-engine")
    assert checkout.files() == before


def test_engine_that_does_not_answer(checkout: Checkout, tmp_path: Path) -> None:
    before = checkout.files()
    done = checkout.up(env={"DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"})
    assert_refused(done, "does not answer")
    assert checkout.files() == before


def test_help(checkout: Checkout) -> None:
    before = checkout.files()
    done = checkout.up("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "Usage: scripts/up.sh [--shape prod|split|ha] [--install-engine]" in done.stdout
    assert checkout.files() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--nonsense"], "unknown argument '--nonsense'"), (["--tag"], "--tag needs the name of an image")],
)
def test_bad_input_of_the_base_image(checkout: Checkout, arguments: list[str], said: str) -> None:
    assert_refused(checkout.run("images/base/build.sh", *arguments), said)


# Set up: the rest of the module goes on from here.


@pytest.fixture(scope="module")
def brought_up(checkout: Checkout) -> subprocess.CompletedProcess[str]:
    done = checkout.up()
    assert done.returncode == 0, done.stderr
    return done


def test_prints_address_admin_and_password_file(
    checkout: Checkout, brought_up: subprocess.CompletedProcess[str]
) -> None:
    address, admin, password = brought_up.stdout.splitlines()
    assert address.startswith("Address:  http://")
    assert address.endswith(f":{checkout.port}/")
    assert admin == "Admin:    admin"
    assert password == f"Password: in the file {checkout.folder}/.secrets/admin_password"
    assert "s] healthy" in brought_up.stderr


def test_secrets_are_files_that_are_never_printed(
    checkout: Checkout, brought_up: subprocess.CompletedProcess[str]
) -> None:
    folder = checkout.folder / ".secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {file.name for file in folder.iterdir()} == set(SECRETS)
    values = set()
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o444
        value = file.read_text().strip()
        assert len(value) >= 20
        values.add(value)
        assert value not in brought_up.stdout + brought_up.stderr
        assert value not in (checkout.folder / ".env").read_text()
    assert len(values) == len(SECRETS)
    ignored = subprocess.run(
        ["git", "check-ignore", ".secrets/admin_password", ".env", ".build/pip.conf"], cwd=ROOT, check=False
    )
    assert ignored.returncode == 0


def test_stack_is_healthy_and_the_admin_can_log_in(
    checkout: Checkout, brought_up: subprocess.CompletedProcess[str]
) -> None:
    client = Client(checkout.base_url)
    assert client.get("/api/v1/health/ready").status_code == 200
    assert client.get(f"{SCHEDULER}/health/ready").status_code == 200
    client.log_in("admin", checkout.secret("admin_password"))
    assert {job["id"] for job in client.jobs()} >= {"sync_accounts", "backup_jobstore"}


@pytest.mark.parametrize("arguments", [(), ("--install-engine",)])
def test_again_changes_nothing(
    checkout: Checkout, brought_up: subprocess.CompletedProcess[str], arguments: tuple[str, ...]
) -> None:
    def settled() -> dict[str, str]:
        return {name: what for name, what in checkout.files().items() if name != ".build/build.log"}

    before, running = settled(), containers(checkout)
    # The second time everything it needs to know is in .env.
    done = checkout.up(*arguments, env={})
    assert done.returncode == 0, done.stderr
    assert done.stdout == brought_up.stdout
    assert settled() == before
    assert containers(checkout) == running


@pytest.mark.parametrize("files", [[], ["--file", "compose/docker-compose.prod.yml"]], ids=["root", "compose folder"])
def test_plain_compose_is_the_same_stack(
    checkout: Checkout, brought_up: subprocess.CompletedProcess[str], files: list[str]
) -> None:
    running = containers(checkout)
    done = checkout.run("docker", "compose", *files, "up", "--detach", env={})
    assert done.returncode == 0, done.stderr
    assert containers(checkout) == running
    listed = checkout.run("docker", "compose", *files, "ps", "--quiet", env={})
    assert listed.stdout.split() == [identity for identity, _ in running]
    logs = checkout.run("docker", "compose", *files, "logs", env={}).stdout
    for program in ("nginx", "web", "scheduler", "supervisor"):
        assert f'"program": "{program}"' in logs


def test_compose_builds_the_service_alone(checkout: Checkout, brought_up: subprocess.CompletedProcess[str]) -> None:
    done = checkout.run("docker", "compose", "build", "whalefall", env={})
    assert done.returncode == 0, done.stderr


def test_what_is_given_is_kept_or_told_of(checkout: Checkout, brought_up: subprocess.CompletedProcess[str]) -> None:
    """Plain compose commands, which know .env alone, must not quietly start another stack."""

    def lasting() -> dict[str, str]:
        lines = (checkout.folder / ".env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    before = lasting()
    assert "given to this command alone" not in brought_up.stderr
    address = f"127.0.0.1:{free_port()}"
    given = {"PROMETHEUS_ADDRESS": address, "LOG_LEVEL": "DEBUG", "ALERT_WEBHOOK_URL": "http://alerts.example/token"}
    done = checkout.up(env=given)
    assert done.returncode == 0, done.stderr
    (told,) = (line for line in done.stderr.splitlines() if line.startswith("warning: "))
    assert "will start without: ALERT_WEBHOOK_URL LOG_LEVEL; .env makes it last" in told
    assert "alerts.example" not in done.stderr
    assert lasting() == before | {"PROMETHEUS_ADDRESS": address}
    as_it_was = checkout.up(env={})
    assert (as_it_was.returncode, "warning" in as_it_was.stderr) == (0, False), as_it_was.stderr


def test_lost_secret_is_made_again_and_the_others_stay(
    checkout: Checkout, brought_up: subprocess.CompletedProcess[str]
) -> None:
    folder = checkout.folder / ".secrets"
    before = {name: (folder / name).read_text() for name in SECRETS}
    (folder / "api_token").unlink()
    done = checkout.up(env={})
    assert done.returncode == 0, done.stderr
    after = {name: (folder / name).read_text() for name in SECRETS}
    assert after["api_token"] != before["api_token"]
    assert {name: after[name] for name in SECRETS[:2]} == {name: before[name] for name in SECRETS[:2]}
    for token, status in ((before["api_token"], 401), (after["api_token"], 200)):
        script = Client(checkout.base_url, token=token.strip())
        assert script.get(f"{SCHEDULER}/jobs").status_code == status


def test_a_stack_that_was_stopped_comes_back_with_its_data(
    checkout: Checkout, brought_up: subprocess.CompletedProcess[str]
) -> None:
    client = Client(checkout.base_url)
    client.log_in("admin", checkout.secret("admin_password"))
    client.data("POST", f"{SCHEDULER}/jobs/purge_run_history/actions/pause")
    assert checkout.run("docker", "compose", "down", env={}).returncode == 0
    assert containers(checkout) == []

    done = checkout.up(env={})
    assert done.returncode == 0, done.stderr

    client.log_in("admin", checkout.secret("admin_password"))
    paused = wait_until("the paused job", lambda: {job["id"]: job["state"] for job in client.jobs()}, within=10)
    assert paused["purge_run_history"] == "STATE_PAUSED"


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("tls", "TLS_DIR is 'tls'; accepted: an absolute path"),
        ("/nowhere", "TLS_DIR /nowhere has no tls.crt and tls.key"),
    ],
)
def test_a_certificate_that_is_not_there_is_refused(checkout: Checkout, folder: str, said: str) -> None:
    before = checkout.files()
    assert_refused(checkout.up(env={"TLS_DIR": folder}), said)
    assert checkout.files() == before


def test_a_certificate_turns_https_on(checkout: Checkout, brought_up: subprocess.CompletedProcess[str]) -> None:
    made = checkout.run("scripts/make_dev_cert.sh")
    assert made.returncode == 0, made.stderr
    folder, port = checkout.folder / ".secrets/tls", free_port()
    done = checkout.up(env={"TLS_DIR": str(folder), "HTTPS_PORT": str(port)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("Address:  https://")
    assert done.stdout.splitlines()[0].endswith(f":{port}/")
    secure = Client(f"https://localhost:{port}", token=checkout.secret("api_token"))
    secure.session.verify = str(folder / "tls.crt")
    assert secure.get(f"{SCHEDULER}/jobs").status_code == 200
    assert (
        Client(f"http://localhost:{checkout.port}").get("/login").headers["Location"]
        == f"https://localhost:{port}/login"
    )

    running = containers(checkout)
    again = checkout.up(env={})
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr
    assert containers(checkout) == running, "kept in .env"
