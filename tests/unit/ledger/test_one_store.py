from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from app.db.reach import StoreUnusable
from app.ledger.nodes import LockFile
from app.ledger.one_store import lock_for, refuse_other_store


def test_processes_of_one_store_live_side_by_side(tmp_path: Path) -> None:
    first, second = lock_for(tmp_path, "a", "store one"), lock_for(tmp_path, "b", "store one")
    assert (tmp_path / "a.lock").read_text() == "store one"
    refuse_other_store(tmp_path, "store one")
    first.release()
    second.release()


def test_another_store_is_refused_as_long_as_somebody_lives_on_the_first(tmp_path: Path) -> None:
    living = lock_for(tmp_path, "a", "store one")
    for attempt in (lambda: refuse_other_store(tmp_path, "store two"), lambda: lock_for(tmp_path, "b", "store two")):
        with pytest.raises(StoreUnusable) as refused:
            attempt()
        line = str(refused.value)
        assert "\n" not in line
        assert "store one" in line
        assert "store two" in line
    assert sorted(path.name for path in tmp_path.glob("*.lock")) == ["a.lock"]
    living.release()
    lock_for(tmp_path, "b", "store two").release()


def test_the_lock_file_of_a_killed_process_refuses_nobody(tmp_path: Path) -> None:
    (tmp_path / "dead.lock").write_text("store one")
    lock_for(tmp_path, "b", "store two").release()


def test_a_lock_file_that_names_no_store_refuses_nobody(tmp_path: Path) -> None:
    older_release = LockFile(tmp_path / "old.lock")
    refuse_other_store(tmp_path, "store two")
    older_release.release()


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnusable, match="USERDATA_DIR: no lock file can be made in"):
        refuse_other_store(tmp_path / "file" / "locks", "store one")


def test_of_many_that_start_at_once_only_one_store_is_used(tmp_path: Path) -> None:
    """Half of them want one store, half the other: whoever comes first decides."""
    spawn = multiprocessing.get_context("fork")
    begin, over = spawn.Event(), spawn.Event()
    results = spawn.Queue()
    children = [spawn.Process(target=_start, args=(tmp_path, number, begin, over, results)) for number in range(12)]
    for child in children:
        child.start()
    begin.set()
    found = [results.get(timeout=30) for _child in children]
    over.set()
    for child in children:
        child.join(timeout=30)
    used = {store for store in found if store is not None}
    assert len(used) == 1, found
    assert sum(store is not None for store in found) == 6, found


def _start(folder: Path, number: int, begin: object, over: object, results: object) -> None:
    store = f"store {number % 2}"
    begin.wait()  # type: ignore[attr-defined]
    try:
        held = lock_for(folder, f"node-{number}", store)
    except StoreUnusable:
        results.put(None)  # type: ignore[attr-defined]
        return
    results.put(store)  # type: ignore[attr-defined]
    over.wait()  # type: ignore[attr-defined]
    held.release()
