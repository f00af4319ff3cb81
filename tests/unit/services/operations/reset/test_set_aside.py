"""The store is moved whole, or not at all while somebody has it open."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from app.runtime import Runtime
from app.services.operations.failure import OperationFailed
from app.services.operations.reset.set_aside import asides, set_aside
from app.services.operations.stores.files import is_open_elsewhere

HOLD_OPEN = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM jobs").fetchone()
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(with_defaults: Runtime) -> Path:
    return with_defaults.settings.userdata_dir / "scheduler.db"


def test_store_moves_with_its_side_files(with_defaults: Runtime, store: Path) -> None:
    with_defaults.jobstore.dispose()
    wal, shm = (store.with_name(store.name + suffix) for suffix in ("-wal", "-shm"))
    wal.write_bytes(b"wal")
    shm.write_bytes(b"shm")
    content = store.read_bytes()
    aside = set_aside(with_defaults.settings, reason="test", backup="20260101T000000Z")
    assert not any(path.exists() for path in (store, wal, shm))
    assert aside.file.read_bytes() == content
    assert sorted(path.name for path in aside.path.iterdir()) == [
        "aside.json",
        "scheduler.db",
        "scheduler.db-shm",
        "scheduler.db-wal",
    ]
    assert asides(with_defaults.settings) == [aside]
    assert (aside.note.reason, aside.note.backup) == ("test", "20260101T000000Z")


def test_store_that_another_process_has_open_stays(with_defaults: Runtime, store: Path) -> None:
    with_defaults.jobstore.dispose()
    assert not is_open_elsewhere(store)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_OPEN, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(OperationFailed, match="open in another process"):
            set_aside(with_defaults.settings, reason="test")
        assert store.exists()
        assert asides(with_defaults.settings) == []
        holder.communicate(timeout=30)
    set_aside(with_defaults.settings, reason="test")
    assert not store.exists()


def test_damaged_store_is_kept_byte_for_byte(with_defaults: Runtime, store: Path) -> None:
    with_defaults.jobstore.dispose()
    store.write_bytes(b"this is no database at all")
    aside = set_aside(with_defaults.settings, reason="test")
    assert aside.file.read_bytes() == b"this is no database at all"


def test_attempt_that_was_cut_short_is_completed(
    with_defaults: Runtime, store: Path, add_runs: Callable[..., list[str]]
) -> None:
    """Killed between the -wal and the database: the second attempt puts both into one folder."""
    ids = add_runs(20)
    snapshot = {suffix: store.with_name(store.name + suffix).read_bytes() for suffix in ("", "-wal")}
    with_defaults.jobstore.dispose()
    for suffix, content in snapshot.items():
        store.with_name(store.name + suffix).write_bytes(content)
    first = set_aside(with_defaults.settings, reason="first")
    first.file.rename(store)  # as if it had never come to the database
    second = set_aside(with_defaults.settings, reason="second")
    assert second.path == first.path
    with closing(sqlite3.connect(second.file)) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (len(ids),)


def test_missing_store_is_named(with_defaults: Runtime, store: Path) -> None:
    with_defaults.jobstore.dispose()
    store.unlink()
    with pytest.raises(OperationFailed, match=r"no jobstore database at .*scheduler\.db"):
        set_aside(with_defaults.settings, reason="test")


def test_surplus_machine_keeps_its_store(with_defaults: Runtime, store: Path) -> None:
    with_defaults.jobstore.dispose()
    with pytest.raises(OperationFailed, match="ENABLE_SCHEDULER is off"):
        set_aside(replace(with_defaults.settings, enable_scheduler=False), reason="test")
    assert store.exists()
