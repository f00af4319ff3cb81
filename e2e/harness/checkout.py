"""A checkout of this tree in a folder of its own: what scripts/up.sh meets on a machine where nothing is set up."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.models.containers import Container

from e2e.harness.stack import ROOT, free_port

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

    def compose(self, *arguments: str) -> str:
        """`docker compose` as a person types it there after up.sh; its output. Fails with all it printed."""
        done = self.run("docker", "compose", *arguments, env={})
        assert done.returncode == 0, f"docker compose {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def containers(self, service: str | None = None) -> list[Container]:
        """Every container of the project, or those of a service, by their numbers."""
        labels = [f"com.docker.compose.project={self.project}", "com.docker.compose.oneoff=False"]
        if service is not None:
            labels.append(f"com.docker.compose.service={service}")
        found = docker.from_env().containers.list(all=True, filters={"label": labels})
        return sorted(found, key=lambda one: int(one.labels["com.docker.compose.container-number"]))

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


@contextmanager
def checked_out(folder: Path, project: str) -> Iterator[Checkout]:
    """A checkout in `folder`, whose stack is taken down in the end with its volumes."""
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
    made = Checkout(folder, project, free_port())
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
