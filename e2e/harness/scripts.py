"""The scripts in scripts/, run as an operator runs them, on a stack of the tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from e2e.harness.stack import ROOT, Stack


@dataclass(frozen=True)
class Outcome:
    """How a script ended, and what it printed."""

    code: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"exit {self.code}\nstdout:\n{self.stdout}\nstderr:\n{self.stderr}"


def environment_of(stack: Stack) -> dict[str, str]:
    """What makes Compose, and so the scripts, mean this stack."""
    passed = ("PATH", "HOME", "DOCKER_HOST", "WHALEFALL_TAG")
    return {key: os.environ[key] for key in passed if key in os.environ} | {
        "E2E_FOLDER": str(stack.folder),
        "COMPOSE_PROJECT_NAME": stack.name,
        "COMPOSE_FILE": ":".join(str(ROOT / file) for file in stack.compose_files),
        "HTTP_PORT": str(stack.port),
        **stack.environment,
    }


def run_script(
    name: str, *arguments: str, environment: Mapping[str, str] | None = None, timeout: float = 300.0
) -> Outcome:
    """Run `scripts/<name>` without a terminal; `environment` replaces the present one."""
    done = subprocess.run(
        [str(ROOT / "scripts" / name), *arguments],
        cwd="/",  # a script finds its project by itself
        env=dict(os.environ if environment is None else environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def run_on(stack: Stack, name: str, *arguments: str, timeout: float = 300.0) -> Outcome:
    """Run a script on the stack; fails with all it printed unless it succeeds."""
    outcome = run_script(name, *arguments, environment=environment_of(stack), timeout=timeout)
    assert outcome.code == 0, f"{name} {' '.join(arguments)}: {outcome}"
    return outcome
