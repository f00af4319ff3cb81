"""What the metrics say of the deployment, beside what its stores hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from sqlalchemy import insert, text, update

from app.db.clock import now_us
from app.db.engines import write_transaction
from app.db.jobstore_tables import jobs, outbox, runs
from app.ledger import NewJob
from app.ledger.nodes import beat
from app.ledger.run_ids import new_run_id
from app.metrics.deployment import PROBLEM_CODES, Deployment
from app.runtime import Runtime
from app.services.operations.backup.backups import back_up
from app.services.scheduler import cluster_problems
from app.settings import PROJECT_ROOT
from app.version import VERSION
from tests.unit.ledger.run_rows import run_row

Read = Callable[..., float | None]
RULES = PROJECT_ROOT / "prometheus" / "rules" / "whalefall.yml"
EVERY_SECOND = {"type": "cron", "second": "*", "timezone": "UTC"}


def add_job(runtime: Runtime, job_id: str = "job", task: str = "purge_run_history") -> None:
    runtime.ledger.add_job(NewJob(id=job_id, task=task, trigger=EVERY_SECOND), by="test")


def add_node(runtime: Runtime, node_id: str, *, silent_s: float = 0.0, kind: str = "scheduler") -> None:
    with write_transaction(runtime.jobstore) as connection:
        beat(
            connection,
            node_id=node_id,
            kind=kind,
            name=f"name-of-{node_id}",
            version=VERSION,
            state="running",
            started_at=now_us(),
            lock_file=None,
            stats={"running_count": 2, "free": {"default": 62}, "clock_offset_ms": 1500},
            now=now_us() - int(silent_s * 1_000_000),
        )


def add_run(runtime: Runtime, outcome: str, **values: object) -> None:
    now = now_us()
    run_id = new_run_id(now)
    claimed = {"run_id": run_id, "task": "purge_run_history", "outcome": outcome, "claimed_at": now}
    row = run_row(run_id, now - 90_000_000, **claimed | values)
    with write_transaction(runtime.jobstore) as connection:
        connection.execute(insert(runs), row)


def test_outcomes_of_jobs_there_are_told_before_the_first_of_them(runtime: Runtime, read: Read) -> None:
    add_job(runtime)
    labels = {"task": "purge_run_history", "kind": "schedule"}
    assert read("whalefall_fires_total", outcome="lost", **labels) == 0
    add_run(runtime, "lost")
    assert read("whalefall_fires_total", outcome="lost", **labels) == 1


def test_histograms_add_up(runtime: Runtime, read: Read) -> None:
    assert read("whalefall_jobs", state="total") == 0  # the first reading begins the counting
    now = now_us()
    for late_s in (0.02, 0.02, 7):
        started = now + int(late_s * 1_000_000)
        add_run(runtime, "success", scheduled_for=now, started_at=started, finished_at=started + 2_000_000)
    late = "whalefall_fire_lateness_seconds"
    assert read(f"{late}_bucket", le="0.01") == 0
    assert read(f"{late}_bucket", le="3.0") == 2
    assert read(f"{late}_bucket", le="+Inf") == read(f"{late}_count") == 3
    assert read(f"{late}_sum") == pytest.approx(7.04)
    assert read("whalefall_run_duration_seconds_sum", task="purge_run_history") == pytest.approx(6)


def test_the_queue_and_what_nobody_claims(runtime: Runtime, read: Read) -> None:
    add_run(runtime, "pending")
    assert read("whalefall_queue_runs", state="pending") == 1
    assert read("whalefall_queue_runs", state="running") == 0
    assert read("whalefall_queue_oldest_age_seconds", state="pending") == pytest.approx(90, abs=30)
    assert read("whalefall_overdue_seconds") == 0
    add_job(runtime)
    with write_transaction(runtime.jobstore) as connection:
        connection.execute(update(jobs).values(next_run_time=now_us() - 200_000_000))
    assert read("whalefall_overdue_seconds") == pytest.approx(200, abs=30)
    assert read("whalefall_jobs", state="scheduled") == 1


def test_nodes_alive_and_silent(runtime: Runtime, read: Read) -> None:
    assert read("whalefall_nodes", kind="scheduler") == 0
    add_node(runtime, "a")
    add_node(runtime, "b", silent_s=100)
    add_node(runtime, "c", kind="worker")
    assert read("whalefall_nodes", kind="scheduler") == 1
    assert read("whalefall_nodes", kind="worker") == 1
    assert read("whalefall_loop_age_seconds", node="name-of-b") == pytest.approx(100, abs=30)
    assert read("whalefall_node_runs", node="name-of-a") == 2
    assert read("whalefall_node_free_places", node="name-of-a", executor="default") == 62
    assert read("whalefall_clock_offset_seconds", node="name-of-a") == 1.5


def test_problems_of_the_status(runtime: Runtime, read: Read) -> None:
    assert read("whalefall_problem", code="task_unknown") == 0
    add_job(runtime, task="nobody_knows_it")
    assert read("whalefall_problem", code="task_unknown") == 1
    assert read("whalefall_problem", code="held") == 0
    runtime.ledger.hold("a test", by="test")
    assert read("whalefall_problem", code="held") == 1


def test_every_code_of_a_problem_is_told_before_it_is_there() -> None:
    source = Path(cluster_problems.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r'ClusterProblem\("([a-z_]+)"', source)) == set(PROBLEM_CODES)


def test_messages_that_wait(runtime: Runtime, read: Read) -> None:
    now = now_us()
    with write_transaction(runtime.jobstore) as connection:
        for number, age_s in enumerate((5, 500)):
            made = now - age_s * 1_000_000
            row = {"id": str(number), "kind": "alert", "payload": "{}", "created_at": made, "next_try_at": now}
            connection.execute(insert(outbox), row)
    assert read("whalefall_outbox_messages") == 2
    assert read("whalefall_outbox_oldest_age_seconds") == pytest.approx(500, abs=30)


def test_backups_stores_and_the_disk(runtime: Runtime, read: Read) -> None:
    assert read("whalefall_backups") == 0
    assert read("whalefall_backup_age_seconds") is None
    made = back_up(runtime.settings, reason="test")
    broken = made.path.parent / "20990101T000000Z"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    assert read("whalefall_backup_age_seconds") == pytest.approx(0, abs=30)
    assert read("whalefall_store_bytes", store="jobstore") > 10_000  # type: ignore[operator]
    assert read("whalefall_disk_free_bytes") < read("whalefall_disk_size_bytes")  # type: ignore[operator]


def test_a_store_that_fails_is_told_of_and_costs_the_others_nothing(runtime: Runtime, read: Read) -> None:
    assert read("whalefall_store_up", store="jobstore") == 1
    with write_transaction(runtime.jobstore) as connection:
        connection.execute(text("ALTER TABLE jobs RENAME TO elsewhere"))
    assert read("whalefall_store_up", store="jobstore") == 0
    assert read("whalefall_store_up", store="app") == 1
    assert read("whalefall_disk_size_bytes") > 0  # type: ignore[operator]
    assert read("whalefall_nodes", kind="scheduler") is None


def test_every_process_says_the_same(runtime: Runtime) -> None:
    assert list(Deployment(runtime).collect())  # begins the counting
    add_run(runtime, "failed")
    answers = [
        {
            sample.labels["outcome"]: sample.value
            for family in Deployment(runtime).collect()
            for sample in family.samples
            if sample.name == "whalefall_fires_total"
        }
        for _ in range(2)
    ]
    assert answers[0] == answers[1] == {"failed": 1}


def test_alerts_speak_of_metrics_that_there_are(runtime: Runtime) -> None:
    """Of all but the certificate's, which only a stack with https has, and the requests'."""
    add_job(runtime)
    add_node(runtime, "a")
    back_up(runtime.settings, reason="test")
    told = {sample.name for family in Deployment(runtime).collect() for sample in family.samples}
    told |= {f"{family.name}_bucket" for family in Deployment(runtime).collect()}
    told |= {"whalefall_certificate_expiry_timestamp_seconds", "whalefall_http_requests_total"}
    named = set(re.findall(r"\bwhalefall_[a-z_]+", RULES.read_text(encoding="utf-8")))
    assert named - told == set()


def test_every_alert_links_a_page_that_is_there() -> None:
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert (PROJECT_ROOT / rule["annotations"]["runbook"]).is_file(), rule["alert"]


def test_every_alert_is_tried() -> None:
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    tried = "".join(file.read_text(encoding="utf-8") for file in RULES.parent.with_name("tests").glob("*.yml"))
    for rule in group["rules"]:
        assert f'alertname="{rule["alert"]}", alertstate="firing"' in tried, rule["alert"]


def test_the_page_tells_of_every_metric_and_alert(runtime: Runtime) -> None:
    page = (PROJECT_ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    told = {family.name for family in Deployment(runtime).collect()}
    counters = {"whalefall_fires"}
    for name in (told - counters) | {f"{name}_total" for name in counters}:
        assert f"`{name}`" in page, name
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]:
        assert f"`{rule['alert']}`" in page, rule["alert"]


def test_a_certificate_is_asked_for_now_and_then(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from app.metrics import deployment as module
    from app.services.operations.certificate import Certificate

    asked: list[str] = []
    until = datetime(2030, 1, 1, tzinfo=UTC)

    def served(address: str) -> Certificate:
        asked.append(address)
        return Certificate("me", "me", (), until - timedelta(days=90), until)

    monkeypatch.setattr(module, "served_certificate", served)
    runtime.settings = replace(runtime.settings, tls_address="nginx:8443")
    deployment = Deployment(runtime)
    for _ in range(2):
        values = {family.name: family.samples for family in deployment.collect()}
        (sample,) = values["whalefall_certificate_expiry_timestamp_seconds"]
        assert sample.value == until.timestamp()
    assert asked == ["nginx:8443"]
