"""A checkout of this tree in a folder of its own, and the stack that its scripts bring up there.

Nothing of the tests is mounted into that stack: the oracle's tasks, and the log that they write, lie in its own volume.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import eq
from pathlib import Path
from typing import TypeVar

import docker
from docker.models.containers import Container

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.oracle import Start, parse_log
from e2e.harness.stack import COMPOSE_FILES, ROOT, START_DEADLINE, Shape, free_port
from e2e.harness.waiting import wait_until

MINUTES = 60
READY = "/api/v1/health/ready"
#: The services in whose processes tasks run.
TASK_SERVICES: Mapping[Shape, tuple[str, ...]] = {
    "prod": ("whalefall",),
    "split": ("web", "scheduler"),
    "ha": ("web", "scheduler", "worker"),
}
OUTSIDE_LOG = "/app/userdata/fires.jsonl"
WRITE_TASKS = """
import json, pathlib, sys
folder = pathlib.Path("/app/userdata/tasks")
folder.mkdir(exist_ok=True)
for name, source in json.loads(sys.argv[1]).items():
    (folder / f"{name}.py").write_text(source)
"""


@dataclass
class Checkout:
    """A checkout in a folder of its own, as its operators have it, and the stack of it."""

    folder: Path
    project: str
    port: int

    # -- what is typed there ----------------------------------------------------------------------------

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

    def compose(self, *arguments: str) -> str:
        """`docker compose` as a person types it there after up.sh; its output. Fails with all it printed."""
        done = self.run("docker", "compose", *arguments, env={})
        assert done.returncode == 0, f"docker compose {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    # -- settings ---------------------------------------------------------------------------------------

    def setting(self, name: str) -> str | None:
        """A variable of `.env`."""
        for line in reversed((self.folder / ".env").read_text().splitlines()):
            if line.startswith(f"{name}="):
                return line.partition("=")[2]
        return None

    def keep(self, **settings: str) -> None:
        """Write variables into `.env`, as a person does; they take effect with the next `up`."""
        file = self.folder / ".env"
        kept = [line for line in file.read_text().splitlines() if line.partition("=")[0] not in settings]
        file.write_text("\n".join([*kept, *(f"{name}={value}" for name, value in settings.items())]) + "\n")

    @property
    def shape(self) -> Shape:
        """The shape that `.env` chooses now."""
        chosen = self.setting("COMPOSE_FILE") or ""
        return next((shape for shape in COMPOSE_FILES if f"docker-compose.{shape}.yml" in chosen), "prod")

    # -- its stack --------------------------------------------------------------------------------------

    @property
    def service(self) -> str:
        """The service in whose container the stack's commands run."""
        return "whalefall" if self.shape == "prod" else "scheduler"

    def containers(self, service: str | None = None) -> list[Container]:
        """Every container of the project, or those of a service, by their numbers."""
        labels = [f"com.docker.compose.project={self.project}", "com.docker.compose.oneoff=False"]
        if service is not None:
            labels.append(f"com.docker.compose.service={service}")
        found = docker.from_env().containers.list(all=True, filters={"label": labels})
        return sorted(found, key=lambda one: int(one.labels["com.docker.compose.container-number"]))

    def execute(self, *command: str, service: str | None = None) -> str:
        """The output of a command in a running container; fails on any other exit than 0."""
        return self.compose("exec", "-T", service or self.service, *command)

    def load_oracle_tasks(self) -> None:
        """Give the running stack the oracle's tasks; its processes are started anew for them."""
        self.execute(*write_oracle_tasks())
        self.compose("restart", *TASK_SERVICES[self.shape])
        self.wait_until_ready()

    def starts(self) -> list[Start]:
        """The starts that the oracle's tasks wrote down."""
        return parse_log(self.execute("cat", OUTSIDE_LOG))

    # -- its clients ------------------------------------------------------------------------------------

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bearer(self) -> Client:
        """A script's client: the API token."""
        return Client(self.base_url, token=self.secret("api_token"))

    def status_of(self, path: str) -> int:
        """The status that a path answers with; 0: no answer."""
        try:
            return Client(self.base_url).get(path, timeout=5).status_code
        except OSError:
            return 0

    def wait_until_ready(self) -> None:
        for path in (READY, f"{SCHEDULER}/health/ready"):
            wait_until(path, partial(self.status_of, path), partial(eq, 200), within=START_DEADLINE)

    # -- what lies there --------------------------------------------------------------------------------

    def secret(self, name: str) -> str:
        return (self.folder / ".secrets" / name).read_text().strip()

    def files(self) -> dict[str, str]:
        """Every file with its rights and a digest."""
        return {
            str(path.relative_to(self.folder)): f"{stat.filemode(path.lstat().st_mode)} {digest(path)}"
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_oracle_tasks(further: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The command that writes the oracle's tasks into the volume, run in a container of the app; with further modules,
    by their names."""
    source = (ROOT / "e2e" / "tasks" / "oracle.py").read_text(encoding="utf-8")
    assert '"/oracle/fires.jsonl"' in source
    modules = {"oracle": source.replace("/oracle/fires.jsonl", OUTSIDE_LOG), **(further or {})}
    return ("python3", "-I", "-c", WRITE_TASKS, json.dumps(modules))


def copy_tree(folder: Path) -> None:
    """Copy this tree, also what is not committed."""
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


AnyCheckout = TypeVar("AnyCheckout", bound=Checkout)


@contextmanager
def checked_out(folder: Path, project: str, kind: type[AnyCheckout]) -> Iterator[AnyCheckout]:
    """A checkout of that kind in `folder`, with nothing set up; its stack is taken down in the end with its volumes."""
    copy_tree(folder)
    made = kind(folder, project, free_port())
    # As many begin: with a copy of env.example, here with the one value that keeps these images apart. Whoever builds
    # under the same name meanwhile would have Compose replace the containers.
    example = (folder / "env.example").read_text()
    assert "\nWHALEFALL_TAG=latest\n" in example
    (folder / ".env").write_text(example.replace("\nWHALEFALL_TAG=latest\n", f"\nWHALEFALL_TAG={project}\n"))
    try:
        yield made
    finally:
        made.run("docker", "compose", "down", "--volumes", "--remove-orphans", "--timeout", "5")
        client = docker.from_env()
        for image in client.images.list(filters={"reference": f"whalefall/*:{project}"}):
            for name in image.tags:
                if name.endswith(f":{project}"):
                    client.images.remove(name)
