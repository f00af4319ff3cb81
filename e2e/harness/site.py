"""A deployment as its operators have it: a checkout with `.env` and `.secrets/`, on images that are built already."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import docker
from docker.models.containers import Container

from e2e.harness.checkout import Checkout, checked_out, write_oracle_tasks
from e2e.harness.client import SCHEDULER
from e2e.harness.stack import COMPOSE_FILES, SECRETS, STORE_SECRETS, Shape

IMAGES: dict[Shape, tuple[str, ...]] = {
    "prod": ("allinone",),
    "split": ("nginx", "app"),
    "ha": ("nginx", "app", "postgres", "valkey"),
}


class Site(Checkout):
    """A checkout whose stack is brought up without scripts/up.sh, which would build."""

    def start(self, *, ready: bool = True) -> None:
        """Bring it up, with the settings as they are now, from the images that are there."""
        self.compose("up", "--detach", "--no-build", "--pull", "never", "--remove-orphans")
        if ready:
            self.wait_until_ready()

    def container(self, service: str | None = None) -> Container:
        """The first container of a service; of the one whose container runs the commands when none is named."""
        return self.containers(service or self.service)[0]

    def beside(self, *command: str) -> str:
        """The output of a command in a container of its own on the same volumes."""
        return self.compose("run", "--rm", "-T", "--no-deps", self.service, *command)

    def outcomes(self, job_id: str) -> list[str]:
        """The outcomes of a job's newest rows, newest first."""
        return [row["outcome"] for row in self.bearer().data("GET", f"{SCHEDULER}/jobs/{job_id}/history")]


@contextmanager
def bare_site(folder: Path, name: str, shape: Shape = "prod", **settings: str) -> Iterator[Site]:
    """A checkout in `folder` with settings, and images that are built already, under names of its own; nothing is up.

    `settings` as a person writes them into `.env`. All that came of it is removed in the end.
    """
    with checked_out(folder, f"whalefall-e2e-{name}-{os.getpid()}", Site) as made:
        # Names of their own for the images: a script that builds or removes some does no harm to other tests.
        tag_images(made.project, shape)
        chosen = {"COMPOSE_FILE": COMPOSE_FILES[shape][0]} if shape != "prod" else {}
        # The base image is here: nobody waits for a registry that does not answer.
        chosen |= {name: os.environ[name] for name in ("BASE_IMAGE", "BUILD_SETTINGS_DIR") if name in os.environ}
        made.keep(HTTP_PORT=str(made.port), COMPOSE_PROJECT_NAME=made.project, **chosen, **settings)
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
        make_secrets(made.folder, shape)
        prepare(made)
        made.beside(*write_oracle_tasks(tasks))
        made.start()
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
