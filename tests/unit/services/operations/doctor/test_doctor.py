"""The doctor's findings, on real stores; those that need a stack are provoked in e2e/test_doctor.py."""

from __future__ import annotations

import ast
import re
import socket
import sqlite3
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from app.db.clock import now_us
from app.db.engines import sqlite_path, write_transaction
from app.db.jobstore_tables import jobs, nodes, outbox, runs
from app.ledger import NewJob
from app.ledger.nodes import LockFile
from app.runtime import Runtime
from app.services.operations.doctor.doctor import examine
from app.services.operations.doctor.findings import CATALOGUE, Finding, Place, make_finding
from app.services.operations.doctor.jobs import broker_findings, job_findings, way_in_findings
from app.services.operations.doctor.stores import store_findings, usable_stores, volume_findings
from app.services.operations.move.note import MovedNote, write_note
from app.triggers import parse_trigger
from e2e.harness.certificates import make_certificate, write_certificate

ROOT = Path(__file__).resolve().parents[5]
HOST_FINDINGS = (ROOT / "scripts/lib/host_findings.sh").read_text() + (ROOT / "scripts/doctor.sh").read_text()
HERE = Place(project="whalefall", service="whalefall", shape="prod")
EVERY_NIGHT = parse_trigger({"trigger_type": "cron", "cron_expression": "0 1 * * *"}, default_timezone="UTC").spec
SECOND = 1_000_000
HOUR = 3600 * SECOND


def found_in(runtime: Runtime, place: Place = HERE) -> dict[str, Finding]:
    return {finding.id: finding for finding in job_findings(runtime, place)}


def add_node(runtime: Runtime, name: str, *, at: int, kind: str = "scheduler", stats: str = "{}") -> None:
    row = {"node_id": name, "kind": kind, "name": name, "version": "1", "state": "running", "stats": stats}
    with write_transaction(runtime.jobstore) as connection:
        connection.execute(insert(nodes).values(started_at=at, heartbeat_at=at, **row))


def change(runtime: Runtime, job_id: str, **values: object) -> None:
    with write_transaction(runtime.jobstore) as connection:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))


# -- the catalogue ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CATALOGUE)
def test_every_finding_says_what_to_do_and_where_to_read_more(kind: str) -> None:
    finding = make_finding(kind, "what", Place(project="p", service="scheduler", shape="ha"), job="nightly")
    assert (ROOT / finding.runbook).is_file(), finding.runbook
    assert "{" not in re.sub(r"\{\{.*?\}\}", "", finding.command)
    assert finding.means.endswith(".")
    for script in re.findall(r"scripts/\w+\.sh", finding.command):
        assert (ROOT / script).is_file(), script


def test_a_command_works_beside_a_container_that_is_stopped() -> None:
    assert make_finding("runs-lost", "what", Place(), job="j").command == (
        "docker compose exec whalefall flask jobs history j"
    )
    assert make_finding("runs-lost", "what", Place(is_running=False), job="j").command == (
        "docker compose run --rm --no-deps whalefall flask jobs history j"
    )


def test_every_finding_of_the_host_has_a_page_that_exists() -> None:
    pages = set(re.findall(r"runbooks/[\w-]+\.md", HOST_FINDINGS))
    assert len(pages) > 5
    assert {page for page in pages if not (ROOT / page).is_file()} == set()
    for script in re.findall(r"scripts/\w+\.sh", HOST_FINDINGS):
        assert (ROOT / script).is_file(), script


def test_every_finding_is_provoked_in_a_real_stack() -> None:
    """Some end-to-end test of the doctor names it; the lists of what they pass over do not count."""
    named = {
        node.value
        for file in (ROOT / "e2e").glob("test_doctor*.py")
        for function in ast.walk(ast.parse(file.read_text()))
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_")
        for node in ast.walk(function)
        if isinstance(node, ast.Constant)
    }
    ids = set(CATALOGUE) | set(re.findall(r"finding (?:error|warning|note) ([\w-]+) ", HOST_FINDINGS))
    assert len(ids) > 60
    assert ids - named == set()


# -- stores and volume --------------------------------------------------------------------------------------------


def test_a_sound_stack_has_nothing(with_defaults: Runtime) -> None:
    add_node(with_defaults, "one", at=now_us())
    settings = with_defaults.settings
    assert store_findings(settings, HERE) == []
    assert volume_findings(settings, HERE) == []
    ids = found_in(with_defaults)
    # The defaults of this test are not those of the file, and one of them names a task that is not there.
    assert set(ids) == {"store-without-jobs", "task-unknown"}


def test_a_locked_store(with_defaults: Runtime) -> None:
    path = sqlite_path(with_defaults.settings.jobstore_url)
    assert path is not None
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    try:
        (finding,) = store_findings(with_defaults.settings, HERE)
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert finding.id == "store-locked"
    assert finding.command == "docker ps --filter volume=whalefall_userdata"
    assert usable_stores([finding], with_defaults.settings), "readers are not kept out"


def test_a_short_transaction_is_no_lock(with_defaults: Runtime) -> None:
    path = sqlite_path(with_defaults.settings.jobstore_url)
    assert path is not None
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.5, other.execute, ["ROLLBACK"])
    timer.start()
    assert store_findings(with_defaults.settings, HERE) == []
    timer.join()
    other.close()


@pytest.mark.parametrize("content", [b"not a database, but long enough to be taken for one" * 50, b""])
def test_a_damaged_and_an_empty_store(with_defaults: Runtime, content: bytes) -> None:
    path = sqlite_path(with_defaults.settings.jobstore_url)
    assert path is not None
    with_defaults.jobstore.dispose()
    for side in ("-wal", "-shm"):
        path.with_name(path.name + side).unlink(missing_ok=True)
    path.write_bytes(content)
    found = store_findings(with_defaults.settings, HERE)
    assert [finding.id for finding in found] == ["store-damaged" if content else "store-missing"]
    assert not usable_stores(found, with_defaults.settings)
    assert path.read_bytes() == content, "looking changes nothing"


def test_a_store_that_is_not_there_is_not_made(with_defaults: Runtime) -> None:
    path = sqlite_path(with_defaults.settings.database_url)
    assert path is not None
    with_defaults.database.dispose()
    path.unlink()
    assert [finding.id for finding in store_findings(with_defaults.settings, HERE)] == ["store-missing"]
    assert not path.exists()


def test_a_store_of_a_newer_release(with_defaults: Runtime) -> None:
    with write_transaction(with_defaults.database) as connection:
        connection.exec_driver_sql("UPDATE app_schema_version SET version_num = '9999'")
    (finding,) = store_findings(with_defaults.settings, HERE)
    assert finding.id == "store-newer"
    assert "schema 9999" in finding.what


def test_two_stores_on_one_volume(with_defaults: Runtime) -> None:
    lock = LockFile(with_defaults.settings.locks_dir / "other.lock", "postgresql://db/whalefall")
    try:
        (finding,) = store_findings(with_defaults.settings, HERE)
    finally:
        lock.release()
    assert finding.id == "two-stores"
    assert "postgresql://db/whalefall" in finding.what
    assert store_findings(with_defaults.settings, HERE) == []


def test_a_store_that_was_moved(with_defaults: Runtime) -> None:
    note = MovedNote(moved_at=datetime.now(UTC), sources={"jobstore": "scheduler.db"}, targets={}, rows={})
    write_note(with_defaults.settings, note)
    assert [finding.id for finding in store_findings(with_defaults.settings, HERE)] == ["store-moved"]


def test_a_data_folder_that_cannot_be_written_to(with_defaults: Runtime, tmp_path: Path) -> None:
    object.__setattr__(with_defaults.settings, "userdata_dir", tmp_path / "missing")
    assert [finding.id for finding in volume_findings(with_defaults.settings, HERE)] == ["volume-read-only"]


def test_an_app_that_cannot_even_start_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "LOUD")
    (finding,) = examine(HERE)
    assert finding.id == "settings-refused"
    assert "LOG_LEVEL is 'LOUD'" in finding.what


# -- the way in ---------------------------------------------------------------------------------------------------


@contextmanager
def answering(
    status: int, certificate: tuple[bytes, bytes] | None, folder: Path, *, first: Sequence[int] = ()
) -> Iterator[str]:
    """The address of a server that answers everything with `status`, but for the `first` requests."""
    before = list(first)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_ours = self.headers["Authorization"] == "Bearer token-of-the-tests"
            self.send_response((before.pop(0) if before else status) if is_ours else 418)
            self.end_headers()

        def log_message(self, *_words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        if certificate is not None:
            write_certificate(folder, *certificate)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, []), (409, ["api-409"]), (401, ["token-refused"]), (503, ["api-unreachable"]), (404, ["api-unreachable"])],
)
def test_what_nginx_answers(runtime: Runtime, tmp_path: Path, status: int, expected: list[str]) -> None:
    with answering(status, None, tmp_path) as address:
        found = list(way_in_findings(runtime, Place(url=f"http://{address}")))
    assert [finding.id for finding in found] == expected
    assert all(f"answers {status}" in finding.what for finding in found)


@pytest.mark.parametrize(("shape", "expected"), [("prod", []), ("split", ["token-refused"]), ("ha", ["token-refused"])])
def test_one_of_several_answers_otherwise(runtime: Runtime, tmp_path: Path, shape: str, expected: list[str]) -> None:
    """Which of them nginx asks is chance; the one container is asked once."""
    with answering(401, None, tmp_path, first=[200, 200, 200]) as address:
        found = list(way_in_findings(runtime, Place(shape=shape, url=f"http://{address}")))
    assert [finding.id for finding in found] == expected


def test_nobody_answers(runtime: Runtime) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    assert [finding.id for finding in way_in_findings(runtime, Place(url=address))] == ["api-unreachable"]
    assert list(way_in_findings(runtime, Place())) == []


@pytest.mark.parametrize(
    ("days", "expected"), [(-1, ["certificate-expired"]), (5, ["certificate-expires-soon"]), (90, [])]
)
def test_the_certificate(runtime: Runtime, tmp_path: Path, days: int, expected: list[str]) -> None:
    with answering(200, make_certificate(valid_for=timedelta(days=days)), tmp_path) as address:
        object.__setattr__(runtime.settings, "tls_address", address)
        found = list(way_in_findings(runtime, Place(url="http://127.0.0.1:1")))
    assert [finding.id for finding in found] == expected


def test_a_broker_that_is_not_there(runtime: Runtime) -> None:
    assert list(broker_findings(runtime, HERE)) == []
    object.__setattr__(runtime.settings, "celery_broker_url", "redis://:hidden@127.0.0.1:1/0")
    (finding,) = broker_findings(runtime, HERE)
    assert finding.id == "broker-unreachable"
    assert "hidden" not in finding.what


def test_jobs_for_a_fleet_without_workers(with_defaults: Runtime) -> None:
    add_node(with_defaults, "one", at=now_us())
    change(with_defaults, "purge_run_history", executor="celery")
    assert "purge_run_history" in found_in(with_defaults)["no-worker"].what
    add_node(with_defaults, "hand", at=now_us(), kind="worker")
    assert "no-worker" not in found_in(with_defaults)


# -- schedulers ---------------------------------------------------------------------------------------------------


def test_no_scheduler_and_one_that_is_not_ours(with_defaults: Runtime) -> None:
    assert "none has ever used this store" in found_in(with_defaults)["no-scheduler"].what
    add_node(with_defaults, "gone", at=now_us() - HOUR)
    assert "gone, was heard 360" in found_in(with_defaults)["no-scheduler"].what
    add_node(with_defaults, "stranger", at=now_us())
    own = Place(nodes=frozenset({"ours"}))
    found = found_in(with_defaults, own)
    assert "no-scheduler" not in found
    assert "stranger" in found["unknown-node"].what
    assert "unknown-node" not in found_in(with_defaults, Place(nodes=frozenset({"stranger"})))


def test_clocks(with_defaults: Runtime) -> None:
    add_node(with_defaults, "off", at=now_us(), stats='{"clock_offset_ms": 9000}')
    assert "off" in found_in(with_defaults)["clock-off"].what
    add_node(with_defaults, "ahead", at=now_us() + HOUR)
    assert "s ahead of the clock" in found_in(with_defaults)["clock-went-back"].what


def test_different_releases(with_defaults: Runtime) -> None:
    add_node(with_defaults, "old", at=now_us())
    with write_transaction(with_defaults.jobstore) as connection:
        connection.execute(
            insert(nodes).values(
                node_id="new", name="new", version="2", state="running", started_at=now_us(), heartbeat_at=now_us()
            )
        )
    assert "versions-differ" in found_in(with_defaults)


def test_held(with_defaults: Runtime) -> None:
    with_defaults.ledger.hold("restored from a backup", "somebody")
    assert "restored from a backup" in found_in(with_defaults)["jobs-held"].what


# -- jobs ---------------------------------------------------------------------------------------------------------


def test_jobs_that_look_as_if_one_ran_twice(with_defaults: Runtime) -> None:
    for name, kwargs in (("first", {"a": 1}), ("second", {"a": 1}), ("other", {"a": 2})):
        with_defaults.ledger.add_job(NewJob(id=name, task="copy", trigger=EVERY_NIGHT, kwargs=kwargs), by="test")
    alike = [finding for finding in job_findings(with_defaults, HERE) if finding.id == "jobs-alike"]
    assert [finding.what for finding in alike] == ["first, second"]
    with_defaults.ledger.pause_job("second", by="test")
    found = found_in(with_defaults)
    assert "jobs-alike" not in found
    assert "second (paused)" in found["jobs-paused"].what


def test_a_job_that_cannot_be_read(with_defaults: Runtime) -> None:
    change(with_defaults, "sync_accounts", problem="trigger: no JSON", trigger="{", next_run_time=None)
    finding = found_in(with_defaults)["job-unreadable"]
    assert "sync_accounts" in finding.what


def test_due_jobs_that_nobody_claims(with_defaults: Runtime) -> None:
    change(with_defaults, "sync_accounts", next_run_time=now_us() - 60 * SECOND)
    assert "jobs-overdue" not in found_in(with_defaults), "without a scheduler that is no news"
    add_node(with_defaults, "one", at=now_us())
    finding = found_in(with_defaults)["jobs-overdue"]
    assert finding.command == "scripts/explain.sh sync_accounts"
    with_defaults.ledger.hold("on purpose", "somebody")
    assert "jobs-overdue" not in found_in(with_defaults)


def test_what_became_of_runs(with_defaults: Runtime, add_runs: Callable[..., list[str]]) -> None:
    for outcome, count in (("failed", 3), ("lost", 2), ("missed", 1), ("skipped", 1), ("success", 5)):
        add_runs(count, job_id=f"job-{outcome}", outcome=outcome)
    found = found_in(with_defaults)
    assert "job-failed (3 failed)" in found["runs-failed"].what
    assert found["runs-failed"].command == "docker compose exec whalefall flask jobs history job-failed"
    assert "job-lost (2 lost)" in found["runs-lost"].what
    for words in ("job-missed (1 missed)", "job-skipped (1 skipped)"):
        assert words in found["runs-missed"].what


def test_late_runs_and_waiting_ones(with_defaults: Runtime, add_runs: Callable[..., list[str]]) -> None:
    add_runs(30)
    with write_transaction(with_defaults.jobstore) as connection:
        connection.execute(update(runs).values(started_at=runs.c.scheduled_for + 5 * SECOND))
    assert "5.0 s late" in found_in(with_defaults)["jobs-late"].what
    assert "queue-waits" not in found_in(with_defaults)
    add_runs(90, outcome="pending", job_id="waits")
    assert "90 runs wait" in found_in(with_defaults)["queue-waits"].what


def test_alerts_that_do_not_get_through(with_defaults: Runtime) -> None:
    row = {"kind": "alert", "payload": "{}", "attempts": 4, "next_try_at": now_us()}
    with write_transaction(with_defaults.jobstore) as connection:
        connection.execute(insert(outbox).values(id="1", created_at=now_us(), **row))
    assert "alerts-stuck" not in found_in(with_defaults), "it was only just tried"
    with write_transaction(with_defaults.jobstore) as connection:
        connection.execute(insert(outbox).values(id="2", created_at=now_us() - HOUR, **row))
    assert found_in(with_defaults)["alerts-stuck"].what == "1 messages, tried up to 4 times"


def test_a_stack_without_backups(with_defaults: Runtime) -> None:
    assert "backup-old" not in found_in(with_defaults), "it was made a moment ago"
    with write_transaction(with_defaults.jobstore) as connection:
        connection.execute(update(jobs).values(created_at=now_us() - round(timedelta(days=3).total_seconds()) * SECOND))
    assert "backup-old" in found_in(with_defaults)


def test_jobs_of_an_older_app(with_defaults: Runtime) -> None:
    with write_transaction(with_defaults.jobstore) as connection:
        connection.exec_driver_sql("CREATE TABLE apscheduler_jobs (id TEXT)")
    assert "legacy-jobs" in found_in(with_defaults)


def test_a_mistake_in_the_file_of_default_jobs(with_defaults: Runtime, tmp_path: Path) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text("default_tasks: nonsense\n")
    object.__setattr__(with_defaults.settings, "scheduler_tasks_file", file)
    assert str(file) in found_in(with_defaults)["defaults-invalid"].what


def test_a_broken_drop_in_module(with_defaults: Runtime) -> None:
    folder = with_defaults.settings.tasks_dir
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "broken.py").write_text("import nothing_of_this_name\n")
    with_defaults.tasks.load_folder(folder)
    assert "nothing_of_this_name" in found_in(with_defaults)["task-module"].what
