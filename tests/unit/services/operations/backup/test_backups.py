"""A backup is whole and can be proved to be; what is not whole is told and never replaces what is."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest

from app.db.migrate import HEADS
from app.runtime import Runtime
from app.services.operations.backup.backups import (
    back_up,
    backups_folder,
    find_backup,
    list_backups,
    read_manifest,
    verify_backup,
)
from app.services.operations.failure import OperationFailed
from app.version import VERSION

AddRuns = Callable[..., list[str]]


def test_manifest_tells_what_the_backup_holds(with_defaults: Runtime, add_runs: AddRuns) -> None:
    ids = add_runs(5)
    made = back_up(with_defaults.settings, reason="test")
    manifest = read_manifest(made.path)
    assert manifest == made.manifest
    assert (manifest.app_version, manifest.reason) == (VERSION, "test")
    jobstore = manifest.stores["jobstore"]
    assert jobstore.schema_version == HEADS["jobstore"]
    assert jobstore.rows["jobs"] == 3
    assert jobstore.rows["runs"] == jobstore.rows["run_logs"] == 5
    assert manifest.stores["app"].schema_version == HEADS["app"]
    assert manifest.newest_run is not None
    assert manifest.newest_run.run_id == ids[-1]
    assert sorted(path.name for path in made.path.iterdir()) == [
        "SHA256SUMS",
        "manifest.json",
        "scheduler.db",
        "whalefall.db",
    ]
    assert verify_backup(made.path) == made


def test_copy_holds_what_only_the_wal_has(with_defaults: Runtime, add_runs: AddRuns) -> None:
    """The rows are committed but not checkpointed: a plain copy of the file would lack them."""
    add_runs(50)
    live = with_defaults.settings.userdata_dir / "scheduler.db"
    assert live.with_name("scheduler.db-wal").stat().st_size > 0
    made = back_up(with_defaults.settings, reason="test")
    with closing(sqlite3.connect(f"file:{made.path}/scheduler.db?immutable=1", uri=True)) as copy:
        assert copy.execute("SELECT count(*) FROM runs").fetchone() == (50,)


def test_backups_under_writes_are_whole(with_defaults: Runtime, add_runs: AddRuns) -> None:
    stop = threading.Event()
    written: list[str] = []

    def write() -> None:
        while not stop.is_set():
            written.extend(add_runs(3))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            known = list(written)
            made = back_up(with_defaults.settings, reason="test")
            verify_backup(made.path)
            with closing(sqlite3.connect(f"file:{made.path}/scheduler.db?immutable=1", uri=True)) as copy:
                there = {row[0] for row in copy.execute("SELECT run_id FROM runs")}
            assert there.issuperset(known)
    finally:
        stop.set()
        writer.join()


def test_retention_keeps_the_newest(with_defaults: Runtime) -> None:
    made = [back_up(with_defaults.settings, reason=f"number {number}", keep=3) for number in range(5)]
    kept = list_backups(with_defaults.settings)
    assert [backup.manifest.reason for backup in kept] == ["number 4", "number 3", "number 2"]
    assert len(list(backups_folder(with_defaults.settings).iterdir())) == 3
    assert find_backup(with_defaults.settings, "latest") == made[-1].path


def test_retention_of_none_is_refused(with_defaults: Runtime) -> None:
    with pytest.raises(OperationFailed, match="at least one"):
        back_up(with_defaults.settings, reason="test", keep=0)


def test_damaged_store_gives_no_backup_and_costs_none(with_defaults: Runtime, add_runs: AddRuns) -> None:
    good = back_up(with_defaults.settings, reason="good")
    add_runs(200, pad="x" * 200)
    with_defaults.jobstore.dispose()
    file = with_defaults.settings.userdata_dir / "scheduler.db"
    content = bytearray(file.read_bytes())
    content[8192:12288] = b"\x55" * 4096
    file.write_bytes(content)
    with pytest.raises(OperationFailed, match=r"jobstore database .* is damaged"):
        back_up(with_defaults.settings, reason="bad", keep=1)
    assert [path.name for path in backups_folder(with_defaults.settings).iterdir()] == [good.path.name]
    verify_backup(good.path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: (path / "scheduler.db").write_bytes(b"short"), "bytes, the manifest says"),
        (lambda path: (path / "whalefall.db").unlink(), "whalefall.db is missing"),
        (lambda path: (path / "manifest.json").unlink(), "no readable manifest.json"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json: content"),
        (lambda path: (path / "manifest.json").write_text("{}"), "manifest.json: format"),
    ],
)
def test_verify_says_what_is_wrong(with_defaults: Runtime, spoil: Callable[..., object], said: str) -> None:
    made = back_up(with_defaults.settings, reason="test")
    spoil(made.path)
    with pytest.raises(OperationFailed, match=said):
        verify_backup(made.path)


def test_verify_sees_one_changed_byte(with_defaults: Runtime) -> None:
    made = back_up(with_defaults.settings, reason="test")
    file = made.path / "scheduler.db"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(OperationFailed, match="sha256"):
        verify_backup(made.path)


def test_verify_sees_rows_that_the_manifest_does_not_know(with_defaults: Runtime) -> None:
    made = back_up(with_defaults.settings, reason="test")
    manifest = json.loads((made.path / "manifest.json").read_text())
    manifest["stores"]["jobstore"]["rows"]["jobs"] += 1
    file = made.path / "manifest.json"
    file.write_text(json.dumps(manifest))
    with pytest.raises(OperationFailed, match="SHA256SUMS does not fit"):
        verify_backup(made.path)
    sums = made.path / "SHA256SUMS"
    kept = sums.read_text().splitlines()[:-1]
    sums.write_text("\n".join([*kept, f"{hashlib.sha256(file.read_bytes()).hexdigest()}  manifest.json", ""]))
    with pytest.raises(OperationFailed, match="row counts"):
        verify_backup(made.path)


def test_sums_are_those_of_sha256sum(with_defaults: Runtime) -> None:
    """Whoever has the folder can check it without this app."""
    made = back_up(with_defaults.settings, reason="test")
    checked = subprocess.run(
        ["sha256sum", "--check", "SHA256SUMS"], cwd=made.path, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    assert len(checked.stdout.splitlines()) == 3


def test_backup_of_the_first_release_has_no_sums(with_defaults: Runtime) -> None:
    made = back_up(with_defaults.settings, reason="test")
    manifest = json.loads((made.path / "manifest.json").read_text())
    (made.path / "SHA256SUMS").unlink()
    with pytest.raises(OperationFailed, match="no readable SHA256SUMS"):
        verify_backup(made.path)
    (made.path / "manifest.json").write_text(json.dumps(manifest | {"app_version": "0.1.0"}))
    verify_backup(made.path)


def test_every_flipped_bit_is_seen(with_defaults: Runtime) -> None:
    made = back_up(with_defaults.settings, reason="test")
    chance = random.Random(7)
    for file in sorted(made.path.iterdir()):
        content = file.read_bytes()
        for _ in range(40):
            spoiled = bytearray(content)
            spoiled[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            file.write_bytes(spoiled)
            with pytest.raises(OperationFailed):
                verify_backup(made.path)
        file.write_bytes(content[: chance.randrange(len(content))])
        with pytest.raises(OperationFailed):
            verify_backup(made.path)
        file.write_bytes(content)
    verify_backup(made.path)


def test_a_spared_backup_survives_the_retention(with_defaults: Runtime) -> None:
    first = back_up(with_defaults.settings, reason="first")
    back_up(with_defaults.settings, reason="second")
    third = back_up(with_defaults.settings, reason="third", keep=1, spare=[first.path])
    assert [each.path for each in list_backups(with_defaults.settings)] == [third.path, first.path]


def test_verify_leaves_nothing_beside_the_files(with_defaults: Runtime) -> None:
    made = back_up(with_defaults.settings, reason="test")
    verify_backup(made.path)
    assert len(list(made.path.iterdir())) == 4


def test_unknown_backup_is_named(with_defaults: Runtime) -> None:
    with pytest.raises(OperationFailed, match="no backup 'nope'"):
        find_backup(with_defaults.settings, "nope")
    with pytest.raises(OperationFailed, match="no backup in"):
        find_backup(with_defaults.settings, "latest")


def test_a_server_out_of_reach_is_named_without_its_password(with_defaults: Runtime) -> None:
    elsewhere = replace(with_defaults.settings, jobstore_url="postgresql+psycopg://u:hidden@127.0.0.1:9/d")
    with pytest.raises(OperationFailed, match=r"the jobstore database at postgresql://127.0.0.1:9/d") as refused:
        back_up(elsewhere, reason="test")
    assert "hidden" not in str(refused.value)
    assert not list(backups_folder(with_defaults.settings).iterdir())
