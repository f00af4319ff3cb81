"""scripts/up.sh: from a checkout to a healthy stack, again without changing anything, and its answers to bad input."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.stack import ROOT, free_port
from e2e.harness.waiting import wait_until

SECRETS = ("secret_key", "admin_password", "api_token")
#: Of its own, so that the image under test elsewhere is not replaced by this one.
TAG = "e2e-up"
MINUTES = 60


@dataclass
class Checkout:
    """A copy of this checkout in a folder of its own, with nothing set up."""

    folder: Path
    project: str
    port: int

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, timeout: float = 10 * MINUTES
    ) -> subprocess.CompletedProcess[str]:
        """Run without a terminal; the variables of the person who runs the tests do not reach it."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if key in ("PATH", "HOME", "DOCKER_HOST", "SSL_CERT_FILE") or key.startswith("PIP_")
        }
        ours = {"COMPOSE_PROJECT_NAME": self.project, "HTTP_PORT": str(self.port)}
        return subprocess.run(
            command,
            cwd=self.folder,
            env=kept | (ours if env is None else dict(env)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def up(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return self.run("scripts/up.sh", *arguments, env=env)

    def files(self) -> dict[str, str]:
        """Every file with its rights and a digest."""
        return {
            str(path.relative_to(self.folder)): f"{stat.filemode(path.lstat().st_mode)} {digest(path)}"
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    made = Checkout(folder, f"whalefall-e2e-up-{os.getpid()}", free_port())
    # As many begin: with a copy of env.example, here with the one value that keeps this test's image apart.
    example = (folder / "env.example").read_text()
    assert "\nWHALEFALL_TAG=latest\n" in example
    (folder / ".env").write_text(example.replace("\nWHALEFALL_TAG=latest\n", f"\nWHALEFALL_TAG={TAG}\n"))
    yield made
    made.run("docker", "compose", "down", "--volumes", "--remove-orphans", "--timeout", "5")


def containers(checkout: Checkout) -> list[tuple[str, str]]:
    """Id and start of every container of the project."""
    label = f"com.docker.compose.project={checkout.project}"
    found = docker.from_env().containers.list(all=True, filters={"label": label})
    return sorted((str(one.id), str(one.attrs["State"]["StartedAt"])) for one in found)


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
    assert_refused(checkout.up(argument), f"unknown argument '{argument}'", "accepted: --install-engine, --help")
    assert checkout.files() == before


@pytest.mark.parametrize("port", ["0", "65536", "eighty", "80 80", "-1", "99999999999999999999"])
def test_bad_port(checkout: Checkout, port: str) -> None:
    before = checkout.files()
    done = checkout.up(env={"COMPOSE_PROJECT_NAME": checkout.project, "HTTP_PORT": port})
    assert_refused(done, f"HTTP_PORT is '{port}'", "accepted: a port number from 1 to 65535")
    assert checkout.files() == before
    assert containers(checkout) == []


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
    assert "Usage: scripts/up.sh [--install-engine]" in done.stdout
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
    client = Client(f"http://127.0.0.1:{checkout.port}")
    assert client.get("/api/v1/health/ready").status_code == 200
    assert client.get(f"{SCHEDULER}/health/ready").status_code == 200
    client.log_in("admin", (checkout.folder / ".secrets/admin_password").read_text().strip())
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
    for prefix in ("[nginx] ", "[web] ", "[scheduler] "):
        assert prefix in logs


def test_compose_builds_the_service_alone(checkout: Checkout, brought_up: subprocess.CompletedProcess[str]) -> None:
    done = checkout.run("docker", "compose", "build", "whalefall", env={})
    assert done.returncode == 0, done.stderr


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
        script = Client(f"http://127.0.0.1:{checkout.port}", token=token.strip())
        assert script.get(f"{SCHEDULER}/jobs").status_code == status


def test_a_stack_that_was_stopped_comes_back_with_its_data(
    checkout: Checkout, brought_up: subprocess.CompletedProcess[str]
) -> None:
    client = Client(f"http://127.0.0.1:{checkout.port}")
    client.log_in("admin", (checkout.folder / ".secrets/admin_password").read_text().strip())
    client.data("POST", f"{SCHEDULER}/jobs/purge_run_history/actions/pause")
    assert checkout.run("docker", "compose", "down", env={}).returncode == 0
    assert containers(checkout) == []

    done = checkout.up(env={})
    assert done.returncode == 0, done.stderr

    client.log_in("admin", (checkout.folder / ".secrets/admin_password").read_text().strip())
    paused = wait_until("the paused job", lambda: {job["id"]: job["state"] for job in client.jobs()}, within=10)
    assert paused["purge_run_history"] == "STATE_PAUSED"
