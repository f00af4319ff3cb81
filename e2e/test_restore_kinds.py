"""Each kind of backup, restored into each kind of store: every row arrives, wherever the restore is killed.

The commands run in containers of the app's own image, as the scripts run them; e2e/test_restore.py has the stacks.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import docker
import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.engine import Engine

from app.db.account_tables import users
from app.db.engines import create_engine_for, write_transaction
from app.db.jobstore_tables import holds, jobs, nodes, outbox, run_totals, runs, uncounted_runs
from app.db.migrate import METADATA, VERSION_TABLES, Store, ensure_schema
from app.ledger import failpoints
from app.services.accounts.admin_sync import ADMIN_NAME
from app.services.operations.backup.archive import send_backup
from app.services.operations.backup.backups import back_up
from app.settings import Settings
from e2e.harness.postgres_server import PostgresServer
from e2e.harness.scripts import Outcome
from e2e.harness.store_rows import Contents, contents, fill

Kind = Literal["sqlite", "postgres"]
STORES: dict[Store, str] = {"jobstore": "scheduler.db", "app": "whalefall.db"}
IMAGE = f"whalefall/allinone:{os.environ.get('WHALEFALL_TAG', 'latest')}"
SECRETS = {"SECRET_KEY": "secret key of the tests", "ADMIN_PASSWORD": "correct horse battery", "API_TOKEN": "token"}
STEPS = [name for name in failpoints.NAMES if name.startswith("restore.")]
#: Tables that a restore does not take from the backup.
OF_THE_PRESENT = {table.name for table in (nodes, holds, outbox, run_totals, uncounted_runs)}
ROWS = 30


@dataclass(frozen=True)
class Machine:
    """A data volume and, for the shape ha, a PostgreSQL database: where commands run in containers of their own."""

    volume: str
    database: str | None
    environment: dict[str, str] = field(default_factory=dict)

    def flask(self, *arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
        command = ["docker", "run", "--rm", "--interactive", "--network", "host"]
        command += ["--volume", f"{self.volume}:/app/userdata"]
        stores = {"JOBSTORE_URL": self.database, "DATABASE_URL": self.database} if self.database else {}
        for name, value in {**SECRETS, **stores, **self.environment, **environment}.items():
            command += ["--env", f"{name}={value}"]
        return subprocess.run(
            [*command, IMAGE, "flask", "jobs", *arguments], input=stdin, capture_output=True, timeout=120, check=False
        )

    def run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """What a command prints; fails with all it said unless it succeeds."""
        done = self.flask(*arguments, stdin=stdin)
        assert done.returncode == 0, _said(done)
        return done.stdout

    def receive(self, archive: bytes) -> str:
        return self.run("receive-backup", stdin=archive).decode().strip()

    def restore(self, archive: bytes) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("restore", self.receive(archive), "--json"))
        return found

    def backup(self) -> bytes:
        """A new backup, as a tar."""
        name = self.run("backup").decode().strip()
        return self.run("send-backup", name)


def _said(done: subprocess.CompletedProcess[bytes]) -> Outcome:
    return Outcome(done.returncode, done.stdout.decode(errors="replace")[:2000], done.stderr.decode(errors="replace"))


@contextmanager
def volume() -> Iterator[str]:
    made = docker.from_env().volumes.create(labels={"whalefall.e2e": str(os.getpid())})
    try:
        yield str(made.name)
    finally:
        made.remove(force=True)


@pytest.fixture
def machine(server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[Callable[[Kind], Machine]]:
    """Makes an empty machine whose stores are of a kind."""
    made = []

    def make(kind: Kind) -> Machine:
        context = volume()
        made.append(context)
        return Machine(context.__enter__(), server.new_database("restored") if kind == "postgres" else None)

    yield make
    for context in made:
        context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def source(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SQLite stores with rows in every table."""
    folder = tmp_path_factory.mktemp("source")
    for store, name in STORES.items():
        engine = create_engine_for(f"sqlite:///{folder / name}")
        ensure_schema(engine, store)
        fill_plausibly(engine, store, ROWS)
        engine.dispose()
    return folder


@pytest.fixture(scope="module")
def wanted(source: Path) -> dict[Store, Contents]:
    found = {}
    for store, name in STORES.items():
        engine = create_engine_for(f"sqlite:///{source / name}")
        found[store] = contents(engine, store)
        engine.dispose()
    return found


@pytest.fixture(scope="module")
def archives(server: PostgresServer, source: Path) -> dict[Kind, bytes]:
    """A backup of each kind, of the very same rows."""
    stream = io.BytesIO()
    send_backup(back_up(Settings.load({"USERDATA_DIR": str(source), **SECRETS}), reason="test"), stream)
    database = server.new_database("source")
    engine = create_engine_for(database)
    for store in STORES:
        ensure_schema(engine, store)
        fill_plausibly(engine, store, ROWS)
    engine.dispose()
    with volume() as name:
        return {"sqlite": stream.getvalue(), "postgres": Machine(name, database).backup()}


def fill_plausibly(engine: Engine, store: Store, rows: int) -> None:
    """Rows whose times lie within what a calendar knows, where somebody reads them as times."""
    fill(engine, store, rows, with_nul=False)
    if store == "jobstore":
        with write_transaction(engine) as connection:
            connection.execute(update(runs).values(claimed_at=1_700_000_000_000_000))


def held_in(machine: Machine, tmp_path: Path) -> dict[Store, Contents]:
    """What the machine's stores hold: of PostgreSQL asked directly, of SQLite by what its own backup brings out."""
    if machine.database:
        urls = dict.fromkeys(STORES, machine.database)
    else:
        folder = unpacked(machine.backup(), tmp_path / "held")
        urls = {store: f"sqlite:///{folder / name}" for store, name in STORES.items()}
    found: dict[Store, Contents] = {}
    for store, url in urls.items():
        engine = create_engine_for(url)
        found[store] = contents(engine, store)
        engine.dispose()
    return found


def unpacked(archive: bytes, folder: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    (inside,) = folder.iterdir()
    return inside


def packed(folder: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(folder, folder.name)
    return stream.getvalue()


def assert_restored(found: dict[Store, Contents], wanted: dict[Store, Contents]) -> None:
    for store, tables in wanted.items():
        for name, rows in tables.items():
            if name not in OF_THE_PRESENT:
                assert comparable(name, found[store][name]) == comparable(name, rows), name
    (hold,) = found["jobstore"]["holds"]
    assert hold["created_by"].startswith("restore ")


def comparable(table: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if table == "users":  # every start makes the admin; a restore ends all sessions
        return [{**row, "session_stamp": ""} for row in rows if row["username"] != ADMIN_NAME]
    return rows


@pytest.mark.parametrize("target", ["sqlite", "postgres"])
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_every_row_arrives(
    *,
    machine: Callable[[Kind], Machine],
    archives: dict[Kind, bytes],
    wanted: dict[Store, Contents],
    tmp_path: Path,
    kind: Kind,
    target: Kind,
) -> None:
    restored = machine(target)
    answer = restored.restore(archives[kind])
    assert {
        name: count for name, count in answer["rows"]["jobstore"].items() if name in METADATA["jobstore"].tables
    } == {name: len(rows) for name, rows in wanted["jobstore"].items()}
    assert_restored(held_in(restored, tmp_path), wanted)


def test_a_dump_is_one_that_postgres_itself_can_read(
    server: PostgresServer, archives: dict[Kind, bytes], wanted: dict[Store, Contents], tmp_path: Path
) -> None:
    """Without this app: pg_restore of the server's own image, into an empty database."""
    folder = unpacked(archives["postgres"], tmp_path)
    url = server.new_database("by_hand")
    for store in STORES:
        (folder / f"{store}.dump").chmod(0o644)
        server.container.put_archive("/tmp", packed(folder / f"{store}.dump"))
        command = ["pg_restore", "--exit-on-error", "--no-owner", "--username=whalefall", "--dbname=by_hand"]
        code, said = server.container.exec_run([*command, f"/tmp/{store}.dump"])
        assert code == 0, said.decode()
    engine = create_engine_for(url)
    assert {store: contents(engine, store) for store in STORES} == wanted
    engine.dispose()


def rewritten(archive: bytes, folder: Path, change: Callable[[Path, dict[str, Any]], None]) -> bytes:
    """The archive with another content, whole and with the right sums."""
    inside = unpacked(archive, folder)
    manifest = json.loads((inside / "manifest.json").read_text())
    change(inside, manifest)
    for entry in manifest["stores"].values():
        content = (inside / entry["file"]).read_bytes()
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (inside / "manifest.json").write_text(json.dumps(manifest))
    names = [*(entry["file"] for entry in manifest["stores"].values()), "manifest.json"]
    sums = [f"{hashlib.sha256((inside / name).read_bytes()).hexdigest()}  {name}" for name in names]
    (inside / "SHA256SUMS").write_text("\n".join([*sums, ""]))
    return packed(inside)


def cut_off(folder: Path, _manifest: dict[str, Any]) -> None:
    dump = folder / "jobstore.dump"
    dump.write_bytes(dump.read_bytes()[: dump.stat().st_size * 2 // 3])


def no_dump(folder: Path, _manifest: dict[str, Any]) -> None:
    (folder / "jobstore.dump").write_bytes(b"this is no dump at all")


def one_row_less(_folder: Path, manifest: dict[str, Any]) -> None:
    manifest["stores"]["jobstore"]["rows"]["runs"] += 1


def newer(_folder: Path, manifest: dict[str, Any]) -> None:
    manifest["stores"]["app"]["schema_version"] = "9999"


@pytest.mark.parametrize("change", [cut_off, no_dump, one_row_less, newer])
def test_a_dump_that_cannot_be_right_is_refused(
    machine: Callable[[Kind], Machine],
    archives: dict[Kind, bytes],
    tmp_path: Path,
    change: Callable[[Path, dict[str, Any]], None],
) -> None:
    done = machine("sqlite").flask(
        "receive-backup", stdin=rewritten(archives["postgres"], tmp_path / "changed", change)
    )
    assert done.returncode == 1, _said(done)
    last = done.stderr.decode().strip().splitlines()[-1]
    assert last.startswith("Error: "), _said(done)


@pytest.mark.parametrize(
    "step",
    [
        step if step == "restore.staged" else pytest.param(step, marks=pytest.mark.faults_long)
        for step in STEPS
        if step != "restore.noted"  # of SQLite files alone
    ],
)
def test_postgres_holds_all_or_nothing_wherever_it_is_killed(
    machine: Callable[[Kind], Machine],
    archives: dict[Kind, bytes],
    wanted: dict[Store, Contents],
    tmp_path: Path,
    step: str,
) -> None:
    restored = machine("postgres")
    engine = create_engine_for(str(restored.database))
    for store in STORES:
        ensure_schema(engine, store)
        fill_plausibly(engine, store, 5)
    with write_transaction(engine) as connection:
        for table in (holds, nodes):
            connection.execute(delete(table))
        connection.execute(delete(users).where(users.c.id > 3))
    before = {store: contents(engine, store) for store in STORES}
    path = restored.receive(archives["postgres"])

    killed = restored.flask("restore", path, FAIL_POINTS=f"{step}=exit")
    assert killed.returncode == failpoints.EXIT_STATUS, _said(killed)
    now = {store: contents(engine, store) for store in STORES}
    if step in ("restore.saved", "restore.staged"):
        assert now["jobstore"] == before["jobstore"]
    else:
        (hold,) = now["jobstore"]["holds"]
        assert hold["created_by"].startswith("restore "), "it would fire at the start"
    answer = json.loads(restored.run("restore", path, "--json"))
    # The five runs of before are those of the backup, by their ids: it tells their ends.
    assert_restored(held_in(restored, tmp_path), wanted)
    undone = json.loads(restored.run("restore", "--undo", "--json"))
    assert undone["backup"] == answer["before"]
    with engine.connect() as connection:
        assert {job.id for job in connection.execute(select(jobs))} == {row["id"] for row in before["jobstore"]["jobs"]}
        there = {run.run_id for run in connection.execute(select(runs))}
    assert there >= {row["run_id"] for row in wanted["jobstore"]["runs"]}, "history was forgotten"
    engine.dispose()


def test_of_two_databases_the_job_store_comes_last(
    machine: Callable[[Kind], Machine],
    server: PostgresServer,
    archives: dict[Kind, bytes],
    wanted: dict[Store, Contents],
) -> None:
    """Its hold says that all is restored; so, killed between the two, it is not taken for done."""
    restored = machine("postgres")
    urls: dict[Store, str] = {"jobstore": str(restored.database), "app": server.new_database("app")}
    restored.environment["DATABASE_URL"] = urls["app"]
    path = restored.receive(archives["postgres"])
    killed = restored.flask("restore", path, FAIL_POINTS="restore.half=exit")
    assert killed.returncode == failpoints.EXIT_STATUS, _said(killed)

    def held(store: Store) -> Contents:
        engine = create_engine_for(urls[store])
        try:
            return contents(engine, store)
        finally:
            engine.dispose()

    assert comparable("users", held("app")["users"]) == comparable("users", wanted["app"]["users"])
    assert held("jobstore")["holds"] == []
    answer = json.loads(restored.run("restore", path, "--json"))
    assert not answer["already"]
    assert_restored({store: held(store) for store in STORES}, wanted)


def test_versions_of_the_source_are_in_the_manifest(archives: dict[Kind, bytes], tmp_path: Path) -> None:
    for kind, archive in archives.items():
        folder = unpacked(archive, tmp_path / kind)
        manifest = json.loads((folder / "manifest.json").read_text())
        suffix = ".dump" if kind == "postgres" else ".db"
        assert all(entry["file"].endswith(suffix) for entry in manifest["stores"].values())
        for store, entry in manifest["stores"].items():
            assert VERSION_TABLES[store] in entry["rows"]
    with closing(sqlite3.connect(tmp_path / "sqlite" / folder_of(tmp_path / "sqlite") / "scheduler.db")) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (ROWS,)


def folder_of(parent: Path) -> str:
    (inside,) = parent.iterdir()
    return inside.name
