"""A tracked stack: its own compose project, free port, volumes and secrets; removed with all it made."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import docker
import pytest
from docker.models.containers import Container

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.oracle import FINAL, Start, Verdict, judge, parse_moment, read_log
from e2e.harness.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
Shape = Literal["prod", "split", "ha"]
#: The one service of the shape `prod`.
SERVICE = "whalefall"
COMPOSE_FILES: Mapping[Shape, tuple[str, str]] = {
    "prod": ("compose/docker-compose.prod.yml", "compose/docker-compose.e2e.yml"),
    "split": ("compose/docker-compose.split.yml", "compose/docker-compose.e2e-split.yml"),
    "ha": ("compose/docker-compose.ha.yml", "compose/docker-compose.e2e-ha.yml"),
}
SECRETS = ("secret_key", "admin_password", "api_token")
STORE_SECRETS = ("postgres_password", "valkey_password")
#: From `up` to the first healthy answer, with images built; generous, because the tests share two cores.
START_DEADLINE = 90.0

#: Runs in the container, where the slim image has no ps: every process with its parent and its command.
LIST_PROCESSES = """
import json, pathlib
found = []
for folder in pathlib.Path("/proc").iterdir():
    if folder.name.isdigit():
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\\0", b" ").decode(errors="replace").strip()
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found.append({"pid": int(folder.name), "parent": int(parent), "command": command})
print(json.dumps(found))
"""

#: Runs in the container: MOMENT SIGNAL PID...
SEND_SIGNAL = """
import os, sys, time
moment, number, *pids = sys.argv[1:]
while (left := float(moment) - time.time()) > 0:
    time.sleep(left)
for pid in pids:
    os.kill(int(pid), int(number))
"""

_numbers = count(1)

Role = Literal["master", "worker"]
Program = Literal["web", "scheduler"]
GUNICORN_FILES: Mapping[Program, str] = {
    "web": "gunicorn-prod.conf.py",
    "scheduler": "gunicorn-scheduler.conf.py",
}


@dataclass(frozen=True)
class Process:
    """One process of a container, by the container's own process ids."""

    pid: int
    parent: int
    command: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_stack(
    factory: pytest.TempPathFactory,
    shape: Shape = "prod",
    scale: Mapping[str, int] | None = None,
    **environment: str,
) -> Iterator[Stack]:
    """A started stack that is removed in the end; `environment` as a user would set it in `.env`; `scale` says how
    many containers of a service there are, where it is not the shape's own number."""
    # The pid keeps two test sessions on one engine apart.
    name = f"whalefall-e2e-{os.getpid()}-{next(_numbers)}"
    stack = Stack(name, factory.mktemp(name, numbered=False), environment, shape=shape, scale=scale)
    try:
        stack.start()
        yield stack
    finally:
        stack.remove()


class Stack:
    """One deployment of any shape, with the oracle's tasks and log mounted into it."""

    #: Every stack that is up in this test session, for the evidence of a failing test.
    alive: list[Stack] = []  # noqa: RUF012 - shared on purpose

    def __init__(
        self,
        name: str,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        *,
        shape: Shape = "prod",
        scale: Mapping[str, int] | None = None,
    ) -> None:
        """`name` is the compose project; `folder` is empty and holds its log and secrets; `environment`
        sets further variables of the stack, as a user would in `.env`; `scale`: containers of a service."""
        self.name = name
        self.shape = shape
        self.scale = dict(scale or {})
        self.compose_files: tuple[str, ...] = COMPOSE_FILES[shape]
        self.folder = folder
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.environment = dict(environment or {})
        self.docker = docker.from_env()
        self.config_shown = False
        names = (*SECRETS, *STORE_SECRETS) if shape == "ha" else SECRETS
        self.secrets = {secret: secrets.token_hex(24) for secret in names}
        # The container's user is not the one who runs the tests.
        self.oracle_folder = folder / "oracle"
        self.oracle_folder.mkdir(parents=True)
        self.oracle_folder.chmod(0o777)
        (folder / "secrets").mkdir()
        for secret, value in self.secrets.items():
            file = folder / "secrets" / secret
            file.write_text(value)
            file.chmod(0o444)
        # An env file of its own keeps the user's `.env` out of the test.
        (folder / "env").write_text("".join(f"{key}={value}\n" for key, value in self.environment.items()))

    # -- life -------------------------------------------------------------------------------------------

    def compose(self, *arguments: str, timeout: float = 180.0) -> str:
        """`docker compose` on this project; its output. Fails with all it printed."""
        command = ["docker", "compose", "--project-name", self.name, "--env-file", str(self.folder / "env")]
        for file in self.compose_files:
            command += ["--file", file]
        # Of what the person who runs the tests has set, only what finds the engine and the images.
        ours = {
            "E2E_FOLDER": str(self.folder),
            "COMPOSE_PROJECT_NAME": self.name,
            "HTTP_PORT": str(self.port),
            **self.environment,
        }
        passed = ("PATH", "HOME", "DOCKER_HOST", "WHALEFALL_TAG")
        kept = {key: os.environ[key] for key in passed if key in os.environ}
        done = subprocess.run(
            [*command, *arguments],
            cwd=ROOT,
            env=kept | ours,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(
                f"docker compose {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done.stdout

    def start(self) -> None:
        """Bring it up from the built images and wait until a scheduler really turns."""
        Stack.alive.append(self)
        begin = time.time()
        try:
            self.up()
            self.wait_until_ready()
        except Exception as error:
            # It will be gone before pytest asks for the evidence.
            for title, text in self.evidence(begin):
                error.add_note(f"--- {title}\n{text}")
            raise

    def up(self, **scale: int) -> None:
        """`docker compose up` with the stack's number of containers, `scale` changing it from now on."""
        self.scale |= scale
        arguments = [word for service, number in self.scale.items() for word in ("--scale", f"{service}={number}")]
        self.compose("up", "--detach", "--no-build", "--pull", "never", *arguments)

    def wait_until_ready(self, within: float = START_DEADLINE) -> None:
        anyone = self.anonymous()
        for path in ("/api/v1/health/ready", f"{SCHEDULER}/health/ready"):
            wait_until(
                f"{path} of {self.name}",
                partial(_status_of, anyone, path),
                lambda status: status == 200,
                within=within,
            )

    def remove(self) -> None:
        """Take it down with its volumes, and every other container of the project."""
        if self in Stack.alive:
            Stack.alive.remove(self)
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- containers -------------------------------------------------------------------------------------

    def containers(self) -> list[Container]:
        """All containers of the project, stopped ones too."""
        label = f"com.docker.compose.project={self.name}"
        found: list[Container] = self.docker.containers.list(all=True, filters={"label": label})
        return found

    def containers_of(self, service: str) -> list[Container]:
        """The containers of a service by their numbers, stopped ones too; not those of `compose run`."""
        found = [
            container
            for container in self.containers()
            if container.labels.get("com.docker.compose.service") == service
            and container.labels.get("com.docker.compose.oneoff") == "False"
        ]
        return sorted(found, key=lambda container: int(container.labels["com.docker.compose.container-number"]))

    def service_of(self, program: Program) -> str:
        """The service whose containers run a program."""
        return SERVICE if self.shape == "prod" else program

    def container(self, service: str | None = None) -> Container:
        """The first container of a service; of the one that runs the scheduler when none is named."""
        service = service or self.service_of("scheduler")
        for container in self.containers_of(service):
            return container
        raise LookupError(f"{self.name} has no container of {service}")

    def execute(self, *command: str, container: Container | None = None) -> str:
        """The output of a command in a running container; fails with it on any other exit than 0."""
        code, output = (container or self.container()).exec_run(list(command))
        text = str(output.decode(errors="replace"))
        assert code == 0, f"{' '.join(command)[:200]}: exit {code}\n{text}"
        return text

    def processes(self, container: Container | None = None) -> list[Process]:
        listed = json.loads(self.execute("python3", "-c", LIST_PROCESSES, container=container))
        return [Process(**entry) for entry in listed]

    def gunicorn(self, program: Program, role: Role, container: Container | None = None) -> list[Process]:
        """The processes of one Gunicorn: its master, or its workers; in the first container that runs it when
        none is named."""
        container = container or self.container(self.service_of(program))
        ours = [
            process
            for process in self.processes(container)
            # Gunicorn itself, not a shell or an init that carries its command line.
            if GUNICORN_FILES[program] in process.command and "python" in process.command.split(" ")[0]
        ]
        pids = {process.pid for process in ours}
        return [process for process in ours if (process.parent in pids) == (role == "worker")]

    def signal(
        self,
        number: signal.Signals,
        program: Program = "scheduler",
        role: Role = "master",
        *,
        at: float | None = None,
        container: Container | None = None,
    ) -> list[Process]:
        """Send a signal to a Gunicorn's master or to all its workers; who got it.

        `at` (seconds since the epoch) has it sent at that very moment, to the millisecond: the clock is
        watched inside the container, where no start of a command delays it.
        """
        where = container or self.container(self.service_of(program))
        targets = wait_until(
            f"a {role} of {program}", lambda: self.gunicorn(program, role, where), within=START_DEADLINE
        )
        pids = [str(process.pid) for process in targets]
        self.execute("python3", "-c", SEND_SIGNAL, str(at or 0), str(int(number)), *pids, container=where)
        return targets

    # -- clients ----------------------------------------------------------------------------------------

    def anonymous(self) -> Client:
        return Client(self.base_url)

    def bearer(self) -> Client:
        """A script's client: the API token."""
        return Client(self.base_url, token=self.secrets["api_token"])

    def admin(self) -> Client:
        """A person's client: a session of the admin, with its CSRF token."""
        client = Client(self.base_url)
        client.log_in("admin", self.secrets["admin_password"])
        return client

    # -- the oracle -------------------------------------------------------------------------------------

    def starts(self) -> list[Start]:
        """The starts that the outside log holds by now."""
        return read_log(self.oracle_folder / "fires.jsonl")

    def logged(self, job_id: str, event: str = "start") -> float | None:
        """When the first run of a job wrote that event outside, in seconds since the epoch; None: not yet."""
        lines = read_log(self.oracle_folder / "fires.jsonl", event)
        return next((line.time for line in lines if line.job_id == job_id), None)

    def judge_at_rest(self, expected: Mapping[str, Sequence[Any]], *, within: float) -> Verdict:
        """Wait until every job is at rest (no next run, no open run), then compare the three sources."""
        client = self.bearer()
        histories: dict[str, list[dict[str, Any]]] = {}

        def unrest() -> dict[str, str]:
            found = {}
            due = {job["id"]: job["next_run_time"] for job in client.jobs()}
            for job_id, moments in expected.items():
                if due[job_id] is not None:
                    found[job_id] = f"next run {due[job_id]}"
                    continue
                histories[job_id] = client.history(job_id)
                open_runs = [row["run_id"] for row in histories[job_id] if row["outcome"] not in FINAL]
                last = max((parse_moment(row["scheduled_for"]) for row in histories[job_id]), default=None)
                if open_runs:
                    found[job_id] = f"open runs {open_runs}"
                elif moments and last != moments[-1]:
                    found[job_id] = f"last moment on record {last}"
            return found

        wait_until("all jobs at rest", unrest, lambda found: not found, within=within, every=1.0)
        return judge(expected, self.starts(), histories)

    # -- evidence ---------------------------------------------------------------------------------------

    def evidence(self, since: float) -> list[tuple[str, str]]:
        """What a person would look at first: (title, text) of states, logs since then and nginx's config.

        The configuration only once: the second failing test would merely repeat it.
        """
        sections = []
        for container in self.containers():
            title = f"{container.name} ({container.status})"
            log = container.logs(since=int(since), timestamps=True, tail=400).decode(errors="replace")
            sections.append((f"log of {title}", log))
            has_nginx = container.labels.get("com.docker.compose.service") in (SERVICE, "nginx")
            if has_nginx and container.status == "running" and not self.config_shown:
                self.config_shown = True
                _, config = container.exec_run(["nginx", "-T"])
                sections.append((f"nginx of {title}", config.decode(errors="replace")))
        return sections


def _status_of(client: Client, path: str) -> int:
    return client.get(path, timeout=5).status_code
