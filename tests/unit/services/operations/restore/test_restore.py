"""A restore brings back what a backup holds, forgets nothing that ran since, and changes nothing where it must not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from app.db.account_tables import audit_log, users
from app.db.clock import now_us
from app.db.engines import create_engine_for, read_transaction, write_transaction
from app.db.jobstore_tables import idempotency_keys, jobs, nodes, outbox, runs
from app.ledger import NewJob, failpoints
from app.ledger.holds import find_hold
from app.ledger.repeats import RepeatedRequest, RepeatKey
from app.repositories.run_totals_repository import RunTotalsRepository
from app.runtime import Runtime
from app.services.operations.backup.backups import Backup, back_up, backups_folder, list_backups, verify_backup
from app.services.operations.failure import OperationFailed
from app.services.operations.restore.restore import Restored, backup_to_undo, find_restorable, preview, restore
from app.services.operations.restore.swap import finish_swap
from app.settings import Settings
from app.triggers import parse_trigger
from tests.unit.ledger.run_rows import run_row

AddRuns = Callable[..., list[str]]
ROOT = Path(__file__).resolve().parents[5]
STEPS = [name for name in failpoints.NAMES if name.startswith("restore.")]
EVERY_MINUTE = parse_trigger({"trigger_type": "interval", "minutes": 1}, default_timezone="UTC").spec


def silent(_line: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Store:
    """The stores of a runtime, closed between two looks, as they are when a stack is stopped."""

    runtime: Runtime

    @property
    def settings(self) -> Settings:
        return self.runtime.settings

    def close(self) -> None:
        self.runtime.jobstore.dispose()
        self.runtime.database.dispose()

    def restore(self, path: Path) -> Restored:
        self.close()
        try:
            return restore(self.settings, path, tell=silent)
        finally:
            self.close()

    def job_ids(self) -> set[str]:
        return {job.id for job in self.rows(jobs)}

    def outcomes(self) -> dict[str, str]:
        return {row.run_id: row.outcome for row in self.rows(runs)}

    def rows(self, table: Any) -> list[Any]:
        engine = self.runtime.database if table in (audit_log, users) else self.runtime.jobstore
        with read_transaction(engine) as connection:
            return list(connection.execute(select(table)))

    def hold(self) -> Any:
        with read_transaction(self.runtime.jobstore) as connection:
            return find_hold(connection)

    def files(self) -> dict[str, str]:
        """What lies in userdata, by content; of backups only the names."""
        self.close()
        found = {}
        for path in self.settings.userdata_dir.rglob("*"):
            is_side_file = path.name.endswith(("-wal", "-shm"))  # of who looked last
            if path.is_file() and "locks" not in path.parts and not is_side_file:
                in_backups = "backups" in path.parts
                found[str(path)] = "" if in_backups else hashlib.sha256(path.read_bytes()).hexdigest()
        return found


@pytest.fixture
def store(with_defaults: Runtime) -> Store:
    return Store(with_defaults)


def add_job(store: Store, job_id: str) -> None:
    store.runtime.ledger.add_job(NewJob(id=job_id, task="sync_accounts", trigger=EVERY_MINUTE), by="test")


def set_outcome(store: Store, run_id: str, outcome: str) -> None:
    with write_transaction(store.runtime.jobstore) as connection:
        connection.execute(update(runs).where(runs.c.run_id == run_id).values(outcome=outcome))


def test_jobs_are_those_of_the_backup_and_runs_those_of_both(store: Store, add_runs: AddRuns) -> None:
    add_job(store, "kept")
    before = add_runs(3)
    made = back_up(store.settings, reason="test")
    store.runtime.ledger.delete_job("kept", by="test")
    add_job(store, "later")
    after = add_runs(2, job_id="kept")

    found = store.restore(made.path)
    assert "kept" in store.job_ids()
    assert "later" not in store.job_ids()
    assert store.outcomes().keys() == {*before, *after}
    assert found.merged is not None
    assert (found.merged.runs, found.merged.logs) == (2, 2)
    assert found.rows["jobstore"]["runs"] == 3
    hold = store.hold()
    assert hold is not None
    assert "restored from the backup of" in hold.reason
    assert not store.rows(nodes)
    assert not list(store.settings.userdata_dir.glob(".restoring*"))


def test_runs_get_the_end_that_the_present_knows_or_are_lost(store: Store, add_runs: AddRuns) -> None:
    ended, vanished, waiting = add_runs(3, outcome="running")
    done = add_runs(1)[0]
    made = back_up(store.settings, reason="test")
    set_outcome(store, ended, "success")
    set_outcome(store, done, "lost")  # by a restore that knew less
    set_outcome(store, waiting, "pending")
    with write_transaction(store.runtime.jobstore) as connection:
        connection.execute(runs.delete().where(runs.c.run_id == vanished))

    found = store.restore(made.path)
    assert store.outcomes() == {ended: "success", vanished: "lost", waiting: "cancelled", done: "success"}
    assert found.merged is not None
    assert (found.merged.lost, found.merged.cancelled) == (1, 1)
    reasons = {row.run_id: row.reason for row in store.rows(runs)}
    assert "not on record" in reasons[vanished]
    assert "before it started" in reasons[waiting]


def test_what_ran_since_is_not_due_again(store: Store) -> None:
    """The backup's job is due since an hour; the present store fired it until five minutes ago."""
    add_job(store, "ran")
    add_job(store, "never")
    minute = 60_000_000
    first = now_us() // minute * minute - 60 * minute
    trigger = parse_trigger({"trigger_type": "cron", "cron_expression": "* * * * *"}, default_timezone="UTC").spec
    with write_transaction(store.runtime.jobstore) as connection:
        connection.execute(
            update(jobs).where(jobs.c.id.in_(["ran", "never"])).values(trigger=json.dumps(trigger), next_run_time=first)
        )
    made = back_up(store.settings, reason="test")
    fired = [run_row("ran", first + number * minute, run_id=f"{first + number * minute:032x}") for number in range(56)]
    with write_transaction(store.runtime.jobstore) as connection:
        connection.execute(insert(runs), fired)
        connection.execute(update(jobs).where(jobs.c.id == "ran").values(next_run_time=first + 56 * minute))

    found = store.restore(made.path)
    due = {each.job_id: each for each in found.due}
    assert due["never"].count in (61, 62)
    assert due["ran"].count in (5, 6)
    assert due["ran"].first - due["never"].first == timedelta(minutes=56)
    assert store.runtime.ledger.due_moments() == found.due
    caught = store.runtime.ledger.release_hold("run-all")
    assert caught is not None
    assert caught.started == sum(each.count for each in found.due)
    moments = [row.scheduled_for for row in store.rows(runs) if row.job_id == "ran"]
    assert len(moments) == len(set(moments))


def test_a_job_that_the_backup_does_not_have_can_be_created_again(store: Store) -> None:
    made = back_up(store.settings, reason="test")
    keys = {name: RepeatKey(scope="s", key=name, fingerprint="f") for name in ("creation", "run")}
    new = NewJob(id="later", task="sync_accounts", trigger=EVERY_MINUTE)
    store.runtime.ledger.add_job(new, by="test", repeat=keys["creation"])
    asked = store.runtime.ledger.request_run("sync_accounts", "test", repeat=keys["run"])
    store.restore(made.path)
    store.runtime.ledger.add_job(new, by="test", repeat=keys["creation"])
    with pytest.raises(RepeatedRequest) as repeated:
        store.runtime.ledger.request_run("sync_accounts", "test", repeat=keys["run"])
    assert repeated.value.resource == asked.run_id


def test_messages_keys_and_the_audit_log_are_those_of_the_present(store: Store) -> None:
    message = {"kind": "alert", "payload": "{}", "created_at": 1, "next_try_at": 1}
    entry = {"actor": "me", "action": "a", "target": "t", "status": 200, "address": "", "request_id": ""}
    with write_transaction(store.runtime.jobstore) as connection:
        connection.execute(insert(outbox).values(id="sent", **message))
    made = back_up(store.settings, reason="test")
    with write_transaction(store.runtime.jobstore) as connection:
        connection.execute(outbox.delete())
        connection.execute(insert(outbox).values(id="waiting", **message))
        connection.execute(
            insert(idempotency_keys).values(scope="s", key="k", fingerprint="f", resource="r", created_at=1)
        )
    with write_transaction(store.runtime.database) as connection:
        connection.execute(insert(audit_log).values(id=4711, at=1, **entry))
    stamps = {row.session_stamp for row in store.rows(users)}

    store.restore(made.path)
    assert [row.id for row in store.rows(outbox)] == ["waiting"]
    assert [row.key for row in store.rows(idempotency_keys)] == ["k"]
    assert 4711 in {row.id for row in store.rows(audit_log)}
    assert not stamps & {row.session_stamp for row in store.rows(users)}, "a revoked session may live again"


@pytest.mark.parametrize("settled", [False, True], ids=["counted anew", "in the totals"])
def test_the_counts_of_the_metrics_go_on(store: Store, add_runs: AddRuns, settled: bool) -> None:
    """They fit what is on record: what ran before and since the backup is counted once, and what the restore ended."""

    def totals(hours: int = 0) -> RunTotalsRepository:
        return RunTotalsRepository(
            store.runtime.jobstore, clock=lambda _connection: now_us() + hours * 3600 * 1_000_000
        )

    totals(hours=-1).begin()
    add_runs(3)
    made = back_up(store.settings, reason="test")
    add_runs(2, outcome="failed")
    add_runs(1, job_id="purge_run_history", outcome="running")
    if settled:
        assert totals(hours=1).add_settled()
    later = 1 if settled else 0
    before = totals(later).read().fires
    assert before == {("success", "schedule", "sync_accounts"): 3, ("failed", "schedule", "sync_accounts"): 2}
    store.restore(made.path)
    assert totals(later).read().fires == {**before, ("lost", "schedule", "purge_run_history"): 1}


def test_the_undo_brings_back_what_was_there(store: Store, add_runs: AddRuns) -> None:
    made = back_up(store.settings, reason="test")
    add_job(store, "later")
    with pytest.raises(OperationFailed, match="nothing was restored"):
        backup_to_undo(store.settings)
    store.restore(made.path)
    since = add_runs(1)
    store.runtime.ledger.release_hold("skip")
    store.restore(backup_to_undo(store.settings))
    assert "later" in store.job_ids()
    assert since[0] in store.outcomes()
    store.runtime.ledger.release_hold("skip")
    store.restore(backup_to_undo(store.settings))
    assert "later" not in store.job_ids()


def test_a_restore_that_is_repeated_keeps_its_way_back(store: Store) -> None:
    first = back_up(store.settings, reason="first")
    add_job(store, "one")
    second = back_up(store.settings, reason="second")
    add_job(store, "two")
    before = store.restore(first.path).before
    again = store.restore(first.path)
    assert again.already
    assert again.before == before
    assert store.restore(second.path).before == before, "nothing ran in between"
    store.restore(backup_to_undo(store.settings))
    assert {"one", "two"} <= store.job_ids()


def test_the_latest_is_not_what_an_earlier_attempt_made_of_the_present(store: Store) -> None:
    with pytest.raises(OperationFailed, match="there is no backup in"):
        find_restorable(store.settings, "latest")
    made = back_up(store.settings, reason="test")
    store.restore(made.path)
    assert list_backups(store.settings)[0].path != made.path
    assert find_restorable(store.settings, "latest") == made.path


def test_retention_spares_the_backup_that_is_restored(with_defaults: Runtime) -> None:
    store = Store(with_defaults)
    object.__setattr__(store.settings, "backup_keep", 1)
    made = back_up(store.settings, reason="test")
    store.restore(made.path)
    assert {made.path} < {each.path for each in list_backups(store.settings)}


def test_a_preview_changes_nothing_while_the_stack_runs(store: Store, add_runs: AddRuns) -> None:
    made = back_up(store.settings, reason="test")
    add_runs(4)
    before = store.files()
    with read_transaction(store.runtime.jobstore) as connection:
        connection.execute(select(runs)).all()
        found = preview(store.settings, made.path)
    assert found.merged is not None
    assert found.merged.runs == 4
    assert store.files() == before


def newer(folder: Path, manifest: dict[str, Any]) -> None:
    with closing(sqlite3.connect(folder / "scheduler.db")) as database:
        database.execute("UPDATE jobstore_schema_version SET version_num = '9999'")
        database.commit()
    manifest["stores"]["jobstore"]["schema_version"] = "9999"


def foreign(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / "scheduler.db").unlink()
    with closing(sqlite3.connect(folder / "scheduler.db")) as database:
        database.execute("CREATE TABLE songs (title TEXT)")
        database.commit()
    manifest["stores"]["jobstore"] |= {"schema_version": None, "rows": {"songs": 0}}


def unknown_format(_folder: Path, manifest: dict[str, Any]) -> None:
    manifest["format"] = 2


def more_fields(_folder: Path, manifest: dict[str, Any]) -> None:
    manifest["encrypted"] = True


def rewritten(made: Backup, change: Callable[[Path, dict[str, Any]], None], folder: Path) -> Path:
    """A copy of the backup with another content, whole and with the right sums."""
    shutil.copytree(made.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(folder, manifest)
    files = [store["file"] for store in manifest["stores"].values()]
    for entry in manifest["stores"].values():
        content = (folder / entry["file"]).read_bytes()
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in (*files, "manifest.json")]
    (folder / "SHA256SUMS").write_text("\n".join([*sums, ""]))
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (newer, "is at schema 9999, which this release does not know"),
        (foreign, "is no jobstore database of this app"),
        (unknown_format, "format 2 is not known to this release"),
        (more_fields, "encrypted"),
    ],
)
def test_a_newer_or_foreign_backup_is_refused_untouched(
    store: Store, tmp_path: Path, change: Callable[[Path, dict[str, Any]], None], said: str
) -> None:
    path = rewritten(back_up(store.settings, reason="test"), change, tmp_path / "changed")
    before = store.files()
    for attempt in (lambda: store.restore(path), lambda: preview(store.settings, path)):
        with pytest.raises(OperationFailed, match=said) as refused:
            attempt()
        assert "\n" not in str(refused.value)
    assert store.files() == before


def test_a_damaged_backup_is_refused_untouched(store: Store, tmp_path: Path, add_runs: AddRuns) -> None:
    add_runs(5)
    made = back_up(store.settings, reason="test")
    before = store.files()
    for name in ("scheduler.db", "whalefall.db", "manifest.json"):
        for spoil in (
            lambda content: content[: len(content) // 2],
            lambda content: content[:-9] + b"\1" + content[-8:],
        ):
            path = tmp_path / "spoiled"
            shutil.copytree(made.path, path)
            (path / name).write_bytes(spoil((path / name).read_bytes()))
            with pytest.raises(OperationFailed):
                store.restore(path)
            shutil.rmtree(path)
    assert store.files() == before


def test_a_store_in_use_is_left_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.services.operations.restore.restore._ALONE_WITHIN_S", 0.0)
    made = back_up(store.settings, reason="test")
    before = store.files()
    hold_open = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM runs').fetchall()\n"
    hold_open += "print('open', flush=True); sys.stdin.read()"
    file = store.settings.userdata_dir / "scheduler.db"
    with subprocess.Popen(
        [sys.executable, "-c", hold_open, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(OperationFailed, match="is open in another process"):
            store.restore(made.path)
        other.communicate()
    assert store.files() == before


@pytest.mark.parametrize("extent", ["middle", "all"])
def test_a_damaged_present_is_kept_and_read_as_far_as_it_goes(store: Store, add_runs: AddRuns, extent: str) -> None:
    old = add_runs(5)
    made = back_up(store.settings, reason="test")
    since = add_runs(400, pad="x" * 300)
    store.close()
    file = store.settings.userdata_dir / "scheduler.db"
    content = bytearray(file.read_bytes())
    if extent == "middle":
        middle = len(content) // 2 // 4096 * 4096
        content[middle : middle + 8192] = b"\xaa" * 8192
    else:
        content = bytearray(b"this is no database at all")
    file.write_bytes(content)

    found = store.restore(made.path)
    assert found.before is None
    assert found.aside is not None
    assert (Path(found.aside) / "scheduler.db").read_bytes() == content
    assert found.merged is not None
    assert found.merged.damage is not None
    there = store.outcomes().keys()
    assert set(old) <= there
    if extent == "middle":
        assert there & set(since), "nothing of a file with both ends intact was taken over"
    with pytest.raises(OperationFailed, match="no sound store"):
        backup_to_undo(store.settings)


def test_a_backup_of_an_older_schema_is_brought_to_this_one(store: Store, tmp_path: Path) -> None:
    """As one of the first release: without what later migrations made."""

    def older(folder: Path, manifest: dict[str, Any]) -> None:
        with closing(sqlite3.connect(folder / "scheduler.db")) as database:
            for table in ("holds", "run_totals", "uncounted_runs", "jobstore_schema_compatibility"):
                database.execute(f"DROP TABLE {table}")
                del manifest["stores"]["jobstore"]["rows"][table]
            database.execute("UPDATE jobstore_schema_version SET version_num = '0002'")
            database.commit()
        manifest["stores"]["jobstore"]["schema_version"] = "0002"

    path = rewritten(back_up(store.settings, reason="test"), older, tmp_path / "older")
    store.restore(path)
    assert store.hold() is not None


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_the_next_start_or_attempt_finishes(
    store: Store, environment: Mapping[str, str], add_runs: AddRuns, step: str
) -> None:
    add_job(store, "kept")
    made = back_up(store.settings, reason="test")
    store.runtime.ledger.delete_job("kept", by="test")
    add_job(store, "later")
    ids = add_runs(3)
    store.close()

    def attempt(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flask", "jobs", "restore", made.path.name, "--json"],
            cwd=ROOT,
            env=os.environ | environment | {"FLASK_APP": "wsgi"} | more,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    killed = attempt(FAIL_POINTS=f"{step}=exit")
    assert killed.returncode == failpoints.EXIT_STATUS, killed.stderr
    finish_swap(store.settings)  # what every start does first
    if step in ("restore.saved", "restore.staged"):
        assert "later" in store.job_ids(), "half a restore"
        assert store.hold() is None
    else:
        assert {"kept"} <= store.job_ids()
        assert store.hold() is not None, "it would fire at the start"
    store.close()

    again = attempt()
    assert again.returncode == 0, again.stderr
    answer = json.loads(again.stdout)
    assert "kept" in {row.id for row in store.rows(jobs) if row.is_active}
    assert "later" not in store.job_ids()
    assert set(ids) <= store.outcomes().keys()
    before = verify_backup(Path(answer["before"])).path
    with closing(sqlite3.connect(f"file:{before}/scheduler.db?immutable=1", uri=True)) as saved:
        assert saved.execute("SELECT count(*) FROM jobs WHERE id = 'later'").fetchone() == (1,), "no way back"
    assert not list(store.settings.userdata_dir.glob(".restoring*"))
    assert not (store.settings.userdata_dir / "restore-swap.json").exists()


def test_a_disk_that_is_full_costs_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing is in e2e/test_restore.py; here, an error at each file that is written."""
    made = back_up(store.settings, reason="test")
    before = store.files()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("app.services.operations.restore.stage.shutil.copyfile", full)
    with pytest.raises(OperationFailed, match="No space left on device"):
        store.restore(made.path)
    after = store.files()
    assert {name: content for name, content in after.items() if "/backups/" not in name} == {
        name: content for name, content in before.items() if "/backups/" not in name
    }
    assert backups_folder(store.settings).is_dir()
    create_engine_for(store.settings.jobstore_url).dispose()
