"""A deployment as its operators have it: a checkout with `.env` and `.secrets/`, and the stack that it brought up."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import docker
from docker.models.containers import Container

from e2e.harness.checkout import Checkout, checked_out
from e2e.harness.client import SCHEDULER, Client
from e2e.harness.stack import COMPOSE_FILES, ROOT, SECRETS, START_DEADLINE, STORE_SECRETS, Shape
from e2e.harness.waiting import wait_until

READY = "/api/v1/health/ready"
IMAGES: dict[Shape, tuple[str, ...]] = {
    "prod": ("allinone",),
    "split": ("nginx", "app"),
    "ha": ("nginx", "app", "postgres", "valkey"),
}
#: The oracle's tasks, with their log in the volume itself: the compose files of a checkout mount nothing else.
TASKS = (
    (ROOT / "e2e" / "tasks" / "oracle.py")
    .read_text(encoding="utf-8")
    .replace("/oracle/fires.jsonl", "/app/userdata/fires.jsonl")
)
WRITE_TASKS = """
import json, pathlib, sys
folder = pathlib.Path("/app/userdata/tasks")
folder.mkdir(exist_ok=True)
for name, source in json.loads(sys.argv[1]).items():
    (folder / f"{name}.py").write_text(source)
"""


class Site:
    """A checkout with the stack that it brought up."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout

    @property
    def shape(self) -> Shape:
        """The shape that `.env` chooses now."""
        chosen = self.setting("COMPOSE_FILE") or ""
        return next((shape for shape in COMPOSE_FILES if f"docker-compose.{shape}.yml" in chosen), "prod")

    @property
    def service(self) -> str:
        """The service in whose container the stack's commands run."""
        return "whalefall" if self.shape == "prod" else "scheduler"

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.checkout.port}"

    # -- settings ---------------------------------------------------------------------------------------

    def setting(self, name: str) -> str | None:
        """A variable of `.env`."""
        for line in reversed((self.checkout.folder / ".env").read_text().splitlines()):
            if line.startswith(f"{name}="):
                return line.partition("=")[2]
        return None

    def keep(self, **settings: str) -> None:
        """Write variables into `.env`, as a person does; they take effect with the next `up`."""
        file = self.checkout.folder / ".env"
        kept = [line for line in file.read_text().splitlines() if line.partition("=")[0] not in settings]
        file.write_text("\n".join([*kept, *(f"{name}={value}" for name, value in settings.items())]) + "\n")

    # -- life -------------------------------------------------------------------------------------------

    def up(self, *, ready: bool = True) -> None:
        """Bring it up, with the settings as they are now, from the images that are there."""
        self.checkout.compose("up", "--detach", "--no-build", "--pull", "never", "--remove-orphans")
        if ready:
            self.wait_until_ready()

    def wait_until_ready(self, within: float = START_DEADLINE) -> None:
        for path in (READY, f"{SCHEDULER}/health/ready"):
            wait_until(path, partial(self.status_of, path), lambda status: status == 200, within=within)

    def status_of(self, path: str) -> int:
        """The status that a path answers with; 0: no answer."""
        try:
            return Client(self.base_url).get(path, timeout=5).status_code
        except OSError:
            return 0

    # -- inside -----------------------------------------------------------------------------------------

    def container(self, service: str | None = None) -> Container:
        """The first container of a service; of the one whose container runs the commands when none is named."""
        return self.checkout.containers(service or self.service)[0]

    def execute(self, *command: str, service: str | None = None) -> str:
        """The output of a command in a running container; fails on any other exit than 0."""
        return self.checkout.compose("exec", "-T", service or self.service, *command)

    def beside(self, *command: str) -> str:
        """The same in a container of its own on the same volumes."""
        return self.checkout.compose("run", "--rm", "-T", "--no-deps", self.service, *command)

    def bearer(self) -> Client:
        """A script's client: the API token."""
        return Client(self.base_url, token=self.checkout.secret("api_token"))

    def outcomes(self, job_id: str) -> list[str]:
        """The outcomes of a job's newest rows, newest first."""
        return [row["outcome"] for row in self.bearer().data("GET", f"{SCHEDULER}/jobs/{job_id}/history")]


@contextmanager
def bare_site(folder: Path, name: str, shape: Shape = "prod", **settings: str) -> Iterator[Site]:
    """A checkout in `folder` with settings, and images that are built already, under names of its own; nothing is up.

    `settings` as a person writes them into `.env`. All that came of it is removed in the end.
    """
    with checked_out(folder, f"whalefall-e2e-{name}-{os.getpid()}") as checkout:
        # Names of their own for the images: a script that builds or removes some does no harm to other tests.
        tag_images(checkout.project, shape)
        made = Site(checkout)
        chosen = {"COMPOSE_FILE": COMPOSE_FILES[shape][0]} if shape != "prod" else {}
        # The base image is here: nobody waits for a registry that does not answer.
        chosen |= {name: os.environ[name] for name in ("BASE_IMAGE", "BUILD_SETTINGS_DIR") if name in os.environ}
        made.keep(HTTP_PORT=str(checkout.port), COMPOSE_PROJECT_NAME=checkout.project, **chosen, **settings)
        yield made


@contextmanager
def site(
    folder: Path,
    name: str,
    shape: Shape = "prod",
    *,
    tasks: Mapping[str, str] | None = None,
    prepare: Callable[[Site], None] = lambda _site: None,
    **settings: str,
) -> Iterator[Site]:
    """The same, brought up and healthy.

    `tasks`: drop-in modules beside the oracle's, by name; `prepare` is called before anything is started.
    """
    with bare_site(folder, name, shape, **settings) as made:
        make_secrets(made.checkout.folder, shape)
        prepare(made)
        made.beside("python3", "-I", "-c", WRITE_TASKS, json.dumps({"oracle": TASKS, **(tasks or {})}))
        made.up()
        yield made


def tag_images(tag: str, *shapes: Shape) -> None:
    """Give the images of these shapes one more tag."""
    client = docker.from_env()
    for image in {image for shape in shapes for image in IMAGES[shape]}:
        client.images.get(f"whalefall/{image}:{os.environ.get('WHALEFALL_TAG', 'latest')}").tag(
            f"whalefall/{image}", tag
        )


def make_secrets(checkout: Path, shape: Shape) -> None:
    """The secrets that scripts/up.sh would make."""
    folder = checkout / ".secrets"
    folder.mkdir(mode=0o700)
    for name in (*SECRETS, *STORE_SECRETS) if shape == "ha" else SECRETS:
        (folder / name).write_text(secrets.token_hex(24) + "\n")
        (folder / name).chmod(0o444)
