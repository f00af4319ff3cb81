"""A Docker engine of the test's own, empty, in a network namespace without a route: a machine without a network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.harness.checkout import Checkout
from e2e.harness.waiting import wait_until

START = """
ip link set lo up
exec dockerd --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" --host "unix://$1/engine.sock" \
  > "$1/log" 2>&1
"""


@dataclass
class IsolatedEngine(Checkout):
    """A running engine, as a machine that somebody works at: what is run is in its network namespace, too.

    `folder` is where they are, at first; `state` holds what is the engine's own.
    """

    state: Path
    pid: int

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, timeout: float = 300.0, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run without a terminal, in the namespace, on this engine."""
        kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        return subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command],
            cwd=cwd or self.folder,
            env=kept | {"DOCKER_HOST": f"unix://{self.state}/engine.sock"} | dict(env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def output(self, *command: str, cwd: Path | None = None) -> str:
        """The same; its standard output. Fails with all it printed."""
        done = self.run(*command, cwd=cwd)
        print(f"\n{' '.join(command)[:200]}: exit {done.returncode}\n{done.stderr}{done.stdout}")
        assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def resize_disk(self, mib: int) -> None:
        """The engine's disk is so large from now on; only for one that has a disk of its own."""
        subprocess.run(["mount", "-o", f"remount,size={mib}m", str(self.state)], check=True)


@contextmanager
def isolated_engine(folder: Path, *, disk_mib: int | None = None) -> Iterator[IsolatedEngine]:
    """An engine with nothing in it, removed in the end with all it holds; with a disk of its own (in memory) where it
    is said how large. Skips where a test may not make one."""
    if os.geteuid() != 0 or not all(shutil.which(name) for name in ("dockerd", "unshare", "nsenter", "ip")):
        pytest.skip("an engine of the test's own needs root, dockerd, unshare, nsenter and ip")
    state, home = folder / "engine", folder / "home"
    state.mkdir()
    home.mkdir()
    if disk_mib is not None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={disk_mib}m", "engine", str(state)], check=True)
    daemon = subprocess.Popen(
        ["unshare", "--net", "sh", "-ec", START, "sh", str(state)], stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        engine = IsolatedEngine(home, "whalefall", 80, state, daemon.pid)
        wait_until(
            "the engine's answer",
            lambda: engine.run("docker", "info").returncode,
            lambda code: code == 0,
            within=60,
        )
        yield engine
    finally:
        daemon.send_signal(signal.SIGTERM)  # it ends its containers, and its containerd
        daemon.wait(timeout=60)
        if disk_mib is not None:
            subprocess.run(["umount", "--recursive", str(state)], check=True)
        shutil.rmtree(state, ignore_errors=True)
