"""A job store of an older app, written by APScheduler itself."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler

FUNCTIONS = ("sync_accounts", "copy_report", "collect_capacity", "old_only")


class OldApp:
    """The older app: its scheduler never runs anything, and its jobs name functions of `old_app.tasks`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._scheduler = BackgroundScheduler(timezone="Asia/Shanghai")
        self._scheduler.add_jobstore(SQLAlchemyJobStore(url=f"sqlite:///{path}"))
        self._scheduler.start(paused=True)

    def add(self, function: str, job_id: str, trigger: Any, *, paused: bool = False, **fields: Any) -> None:
        job = self._scheduler.add_job(f"old_app.tasks:{function}", trigger, id=job_id, **fields)
        if paused:
            job.pause()

    def write(self, job_id: str, state: bytes | None, next_run_time: float | None = 4e9) -> None:
        """A row as an attacker, or a damaged disk, would leave it."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(
                "INSERT OR REPLACE INTO apscheduler_jobs VALUES (?, ?, ?)", (job_id, next_run_time, state or b"")
            )

    def close(self) -> None:
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)


@pytest.fixture
def old_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OldApp]:
    package, module = ModuleType("old_app"), ModuleType("old_app.tasks")
    for name in FUNCTIONS:

        def function(*_args: Any, **_kwargs: Any) -> None:
            raise AssertionError("a job of the older app ran")

        function.__name__ = function.__qualname__ = name
        function.__module__ = "old_app.tasks"
        setattr(module, name, function)
    package.tasks = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "old_app", package)
    monkeypatch.setitem(sys.modules, "old_app.tasks", module)
    app = OldApp(tmp_path / "old.db")
    yield app
    app.close()


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    """A file that hostile pickles make."""
    return tmp_path / "executed"


@pytest.fixture
def hostile(sentinel: Path) -> dict[str, bytes]:
    """Pickles whose loading makes the sentinel, each in a way of its own."""
    command = f"touch {sentinel}"
    shell = b"cos\nsystem\n(V" + command.encode() + b"\ntR."
    code = f"open({str(sentinel)!r}, 'w').close()".encode()
    return {
        "reduce": shell,
        "inst": b"(V" + command.encode() + b"\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nV" + command.encode() + b"\no.",
        "eval": b"cbuiltins\neval\n(V" + code + b"\ntR.",
        "getattr chain": b"cbuiltins\ngetattr\n(cos\n__dict__\n(VpathtR0cos\nsystem\n(V" + command.encode() + b"\ntR.",
        "inside a job's state": b"}(Vversion\nK\x01Vfunc\nVold_app.tasks:sync_accounts\nVtrigger\n"
        + shell[:-1]
        + b"u.",
        "inside its kwargs": b"}(Vversion\nK\x01Vfunc\nVold_app.tasks:sync_accounts\nVkwargs\n" + shell[:-1] + b"u.",
        "after a stop of its own": shell[:-1] + b"0}.",
    }


@pytest.fixture
def load(sentinel: Path) -> Callable[[bytes], bool]:
    """What loading a pickle does: whether the sentinel is there afterwards. In a process of its own."""
    import subprocess

    def run(data: bytes) -> bool:
        code = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
        subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False, timeout=60)
        found = sentinel.exists()
        sentinel.unlink(missing_ok=True)
        return found

    return run
