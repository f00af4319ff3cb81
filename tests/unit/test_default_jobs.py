"""scheduler_tasks.yaml: what it may say, and the line and field of what it may not."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from app import create_app
from app.default_jobs import DefaultJobEntry, DefaultJobsError, load_default_jobs
from app.ledger import EXECUTORS, NewJob
from app.services.scheduler.job_input import JobSettings, TriggerInput
from app.settings import Settings
from app.tasks import BUILTIN_TASK_IDS, TaskRegistry
from app.triggers import TRIGGER_FIELDS

GOOD = """\
default_tasks:
  - id: a
    trigger_type: cron
    trigger_params: {hour: 1, minute: 0}
"""


@pytest.fixture
def registry() -> TaskRegistry:
    tasks = TaskRegistry()
    tasks.load_builtin()
    return tasks


@pytest.fixture
def environment(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return {**environment, "SCHEDULER_TASKS_FILE": str(tmp_path / "tasks.yaml")}


def load(settings: Settings, registry: TaskRegistry, content: str | bytes) -> list[NewJob]:
    data = content.encode() if isinstance(content, str) else content
    settings.scheduler_tasks_file.write_bytes(data)
    return load_default_jobs(settings, registry)


def test_the_shipped_file_holds_the_built_in_jobs(
    tmp_path: Path, registry: TaskRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    shipped = load_default_jobs(Settings.load({"USERDATA_DIR": str(tmp_path)}), registry)
    assert {job.id for job in shipped} == BUILTIN_TASK_IDS
    assert all(job.source == "builtin" and job.task == job.id and job.is_enabled for job in shipped)
    times = {job.id: (job.trigger["hour"], job.trigger["minute"]) for job in shipped}
    assert times == {
        "sync_accounts": ("1", "0"),
        "collect_database_sizes": ("3", "0"),
        "calculate_database_size_aggregations": ("4", "0"),
        "backup_jobstore": ("0", "30"),
        "purge_run_history": ("0", "45"),
    }
    assert caplog.records == []


def test_every_field(settings: Settings, registry: TaskRegistry) -> None:
    content = """
default_tasks:
  - id: full
    task: backup_jobstore
    name: 全
    description: All of it
    trigger_type: interval
    trigger_params: {minutes: 5, start_date: 2030-01-31 08:30:00, timezone: Europe/Berlin}
    kwargs: {keep: 3}
    enabled: false
    misfire_grace_time: 7
    coalesce: false
    max_instances: 3
    priority: 9
    executor: process
    retry_on_loss: true
    max_attempts: 20
    retry_delay: 86400
    soft_time_limit: 1
    time_limit: 604800
    ping_url: https://hc.example/ping/full
  - id: sync_accounts
    trigger_type: date
    trigger_params: {run_date: 2001-01-01}
"""
    full, done = load(settings, registry, content)
    assert full == NewJob(
        id="full",
        task="backup_jobstore",
        name="全",
        description="All of it",
        trigger={
            "type": "interval",
            "minutes": 5,
            "timezone": "Europe/Berlin",
            "start_date": "2030-01-31T08:30:00+01:00",
        },
        kwargs={"keep": 3},
        is_enabled=False,
        misfire_grace_time=7,
        coalesce=False,
        max_instances=3,
        priority=9,
        executor="process",
        retry_on_loss=True,
        max_attempts=20,
        retry_delay=86400,
        soft_time_limit=1,
        time_limit=604800,
        ping_url="https://hc.example/ping/full",
        source="default",
    )
    assert done.source == "builtin"
    assert done.trigger["run_date"].startswith("2001-01-01"), "a date job that is done stays in its file"


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("", 1, "default_tasks"),
        ("[]", 1, "default_tasks"),
        ("default_tasks: {}", 1, "default_tasks"),
        ("tasks:\n  - id: a", 1, "default_tasks"),
        (GOOD + "other: 1\n", 5, "other"),
        ("default_tasks:\n  - id: [", 2, "no valid YAML"),
        ("default_tasks:\n  - id: !!python/object:os.system x", 2, "no valid YAML"),
        ("default_tasks: &a [*a]", 1, "default_tasks[0]"),
        (GOOD + "  - just text\n", 5, "default_tasks[1]"),
        (GOOD + "    kwargs: 5\n", 5, "default_tasks[0].kwargs"),
        (GOOD.replace("id: a", "id: ''"), 2, "default_tasks[0].id"),
        (GOOD.replace("id: a", "id: a/b"), 2, "a/b"),
        (GOOD.replace("id: a", "name: a"), 2, "default_tasks[0].id: is missing"),
        (GOOD + GOOD.partition("\n")[2], 5, "default_tasks[1].id"),
        (GOOD + "    id: b\n", 5, "twice"),
        (GOOD + "    enabled: sometimes\n", 5, "default_tasks[0].enabled: holds 'sometimes'"),
        (GOOD + "    max_instances: 11\n", 5, "max_instances"),
        (GOOD + "    executor: rocket\n", 5, "executor"),
        (GOOD + "    retry_on_los: true\n", 5, "retry_on_los"),
        (GOOD + "    executor: celery\n", 5, "CELERY_BROKER_URL"),
        (GOOD + "    max_attempts: 21\n", 5, "max_attempts"),
        (GOOD + "    retry_delay: 0\n", 5, "retry_delay"),
        (GOOD + "    time_limit: 604801\n", 5, "time_limit"),
        (GOOD + "    time_limit: 60\n    soft_time_limit: 60\n", 6, "soft_time_limit (60 s) must be below time_limit"),
        (GOOD + "    ping_url: ftp://example/x\n", 5, "ping_url"),
        (GOOD + "    kwargs: {at: 2030-01-01}\n", 5, "kwargs.at"),
        (GOOD + "    kwargs: {x: .nan}\n", 5, "kwargs.x"),
        (GOOD + '    kwargs:\n      x: "\\0"\n', 6, "kwargs.x"),
        (GOOD + '    name: "\\0"\n', 5, "name"),
        (GOOD.replace("cron", "crontab"), 3, "trigger_type: holds 'crontab'"),
        (GOOD.replace("hour: 1", "hour: 24"), 4, "trigger_params.hour: holds 24"),
        (GOOD.replace("hour: 1", "hours: 1"), 4, "trigger_params"),
        (GOOD.replace("hour: 1", "houre: 1"), 4, "trigger_params.houre"),
        (GOOD.replace("hour: 1, minute: 0", ""), 4, "trigger_params"),
    ],
)
def test_an_invalid_file_names_line_and_field(
    settings: Settings, registry: TaskRegistry, content: str | bytes, line: int, words: str
) -> None:
    if "hours: 1" in str(content):
        content = str(content).replace(", minute: 0", "")
    with pytest.raises(DefaultJobsError) as refused:
        load(settings, registry, content)
    message = str(refused.value)
    assert message.startswith(str(settings.scheduler_tasks_file))
    assert words in message
    assert "\n" not in message
    assert f", line {line}: " in message
    assert not any("\u4e00" <= character <= "\u9fff" for character in message), "start errors are English"


def test_the_fleet_can_be_named_where_there_is_one(environment: dict[str, str], registry: TaskRegistry) -> None:
    settings = Settings.load({**environment, "CELERY_BROKER_URL": "redis://broker/0"})
    (job,) = load(settings, registry, GOOD + "    executor: celery\n")
    assert job.executor == "celery"


def test_it_stops_the_start(settings: Settings) -> None:
    settings.scheduler_tasks_file.write_text("default_tasks:\n  - id: 7\n", encoding="utf-8")
    with pytest.raises(DefaultJobsError, match="line 2"):
        create_app(settings)


def test_a_file_in_another_encoding_names_the_setting(settings: Settings, registry: TaskRegistry) -> None:
    with pytest.raises(DefaultJobsError, match=r"^SCHEDULER_TASKS_FILE is .* accepted: a YAML file in UTF-8$"):
        load(settings, registry, b"\xff\xfe")


def test_a_missing_file_stops_the_start(settings: Settings) -> None:
    with pytest.raises(DefaultJobsError, match=r"SCHEDULER_TASKS_FILE is '.*', which cannot be read: .* accepted: "):
        create_app(settings)


@pytest.mark.parametrize("name", ["enabled", "is_enabled"])
def test_a_job_may_be_disabled_by_either_name(settings: Settings, registry: TaskRegistry, name: str) -> None:
    (job,) = load(settings, registry, f"{GOOD}    {name}: false\n")
    assert not job.is_enabled


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (GOOD, "task"),
        (GOOD.replace("id: a", "id: backup_jobstore") + "    kwargs: {keep: 0}\n", "line 5"),
        (GOOD.replace("hour: 1", "hour: 1, timezone: Mars/Olympus"), "Mars/Olympus"),
    ],
)
def test_what_a_run_will_say_is_logged_and_stops_nothing(
    settings: Settings, registry: TaskRegistry, caplog: pytest.LogCaptureFixture, content: str, words: str
) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(load(settings, registry, content)) == 1
    assert any(words in record.getMessage() for record in caplog.records)


def test_the_fields_are_those_that_the_code_below_knows() -> None:
    assert TriggerInput.model_fields.keys() == TRIGGER_FIELDS
    shared = {*JobSettings.model_fields} - TRIGGER_FIELDS
    own = {"id", "task", "trigger_type", "trigger_params", "enabled"}
    assert DefaultJobEntry.model_fields.keys() == shared | own
    assert {"default", "process", "celery"} == set(EXECUTORS), "app.job_fields.Executor names the same"


def test_the_nightly_backup_is_scheduled_wherever_the_stores_are(tmp_path: Path, registry: TaskRegistry) -> None:
    server = "postgresql+psycopg://user:secret@database/jobs"
    for stores in ({}, {"JOBSTORE_URL": server, "DATABASE_URL": server}):
        settings = Settings.load({"USERDATA_DIR": str(tmp_path), **stores})
        assert all(job.is_enabled for job in load_default_jobs(settings, registry))
