"""A clone of this repository, at its first release or as the tree is now: what an upgrade meets."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import docker
import pytest

from e2e.harness.checkout import Checkout, copy_tree
from e2e.harness.stack import ROOT, Shape, free_port

FIRST_RELEASE = "0.1.0"
RELEASE_ID = re.compile(r"\b\d+\.\d+\.\d+-[0-9a-f]{12}\b")
STEP = re.compile(r"^\[ *\d+s\] (.*)$", re.MULTILINE)


@dataclass
class Clone(Checkout):
    """A clone with its history, and a stack of any shape in it."""

    #: The releases of which its scripts told: the tags of the images that they made.
    ids: set[str] = field(default_factory=set)

    def git(self, *arguments: str) -> str:
        done = self.run("git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments, env={})
        assert done.returncode == 0, f"git {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def take_present_tree(self) -> None:
        """The clone becomes what this tree is, also what is not committed; as a commit."""
        self.git("checkout", "--quiet", "--force", "present")
        self.git("rm", "-r", "--quiet", ".")
        copy_tree(self.folder)
        # Two clones of one tree would be one release, with one tag for the images of both.
        (self.folder / "compose" / "clone.txt").write_text(self.project)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "The tree as it is")

    def tag_release(self, version: str, replaced: Mapping[str, tuple[str, str]] | None = None) -> None:
        """A further release: another version and, in the files named, words replaced by others."""
        file = self.folder / "app" / "version.py"
        lines = file.read_text().splitlines()
        told = [f'VERSION = "{version}"' if line.startswith("VERSION = ") else line for line in lines]
        file.write_text("\n".join(told) + "\n")
        for name, (old, new) in (replaced or {}).items():
            text = (self.folder / name).read_text()
            assert old in text
            (self.folder / name).write_text(text.replace(old, new))
        self.git("commit", "--quiet", "--all", "--message", f"Release {version}")
        self.git("tag", f"v{version}")

    def versions(self) -> set[str]:
        """The tags of the images that run."""
        return {str(one.attrs["Config"]["Image"]).rpartition(":")[2] for one in self.containers()}

    def script(
        self, name: str, *arguments: str, env: Mapping[str, str] | None = None, code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Runs a script of the clone; fails with all it printed on any other exit code."""
        begin = time.monotonic()
        done = self.run(f"scripts/{name}", *arguments, env=dict(env or {}))
        took = time.monotonic() - begin
        print(f"\n{name} {' '.join(arguments)} {dict(env or {})}: exit {done.returncode}, {took:.0f} s")
        print(done.stderr + done.stdout)
        self.ids.update(RELEASE_ID.findall(done.stdout + done.stderr))
        assert done.returncode == code, f"{name}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def killed_at_step(self, number: int, name: str, *arguments: str) -> bool:
        """Runs a script that is killed where it would begin that step; whether it had so many."""
        return self._run_until(number, name, *arguments)[0]

    def kill_at_every_step(self, name: str, *arguments: str) -> Iterator[list[str]]:
        """Runs a script that is killed, again and again, so that each run gets one step further; what each run did.

        What a run skips because it is done does not count as a step, so each is killed at the same number until that
        brings nothing more.
        """
        number, before = 1, None
        while True:
            was_killed, told = self._run_until(number, name, *arguments)
            if not was_killed:
                return
            yield told
            number, before = (number + 1, None) if told == before else (number, told)

    def _run_until(self, number: int, name: str, *arguments: str) -> tuple[bool, list[str]]:
        """Whether it was killed where it would begin that step, and the steps before it."""
        done = self.run(f"scripts/{name}", *arguments, env={"FAIL_AT_STEP": str(number)})
        print(f"\n{name} {' '.join(arguments)}, killed at step {number}: exit {done.returncode}\n{done.stderr}")
        self.ids.update(RELEASE_ID.findall(done.stdout + done.stderr))
        if done.returncode != -signal.SIGKILL:
            assert done.returncode == 0, f"{name}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.returncode == -signal.SIGKILL, STEP.findall(done.stderr)


@contextmanager
def cloned(folder: Path, name: str) -> Iterator[Clone]:
    """A clone with nothing set up, at the last commit; in the end its stack and its images are removed."""
    project = f"whalefall-e2e-{name}-{os.getpid()}"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    clone = Clone(folder, project, free_port())
    clone.git("checkout", "--quiet", "-b", "present")
    try:
        yield clone
    finally:
        clone.run("docker", "compose", "down", "--volumes", "--remove-orphans", "--timeout", "5", env={})
        made = {project, *clone.ids, *(kept.name for kept in (folder / ".releases").glob("*-*"))}
        client = docker.from_env()
        for image in client.images.list(filters={"reference": "whalefall/*"}):
            for tag in image.tags:
                if tag.rpartition(":")[2] in made:
                    client.images.remove(tag)


def git_here(*arguments: str) -> str:
    """What git says of the checkout from which the tests run."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def first_release_commit() -> str:
    """The last commit that names the first release as its version. Tags do not come along with every clone."""
    (begun_next, *_) = git_here("log", "--format=%H", f'-SVERSION = "{FIRST_RELEASE}"', "--", "app/version.py").split()
    return git_here("rev-parse", f"{begun_next}^")


@contextmanager
def first_release(folder: Path, name: str, shape: Shape = "prod", overlay: Path | None = None) -> Iterator[Clone]:
    """A stack of the first release, brought up by its own script, with the oracle's tasks; removed in the end.

    `overlay` is a compose file laid over the shape's. Skips the test where the clone from which the tests run has no
    history that far back.
    """
    if git_here("rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("this clone is shallow and lacks the first release: git fetch --unshallow brings it")
    with cloned(folder, name) as clone:
        clone.git("tag", "--force", f"v{FIRST_RELEASE}", first_release_commit())
        clone.git("checkout", "--quiet", f"v{FIRST_RELEASE}")
        example = (folder / "env.example").read_text()
        # A name of its own keeps these images apart.
        settings = example.replace("\nWHALEFALL_TAG=latest\n", f"\nWHALEFALL_TAG={clone.project}\n")
        files = [f"compose/docker-compose.{shape}.yml", *([str(overlay)] if overlay else [])]
        (folder / ".env").write_text(f"{settings}\nCOMPOSE_FILE={':'.join(files)}\n")
        done = clone.up()
        assert done.returncode == 0, done.stderr
        clone.load_oracle_tasks()
        yield clone
