"""The scheduler API as the contract promises it: paths, fields, statuses, messages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine, event, text, update

from app.db.clock import now_us
from app.db.engines import write_transaction
from app.db.jobstore_tables import jobs
from app.repositories.accounts_repository import add_user
from app.repositories.fires_repository import FiresRepository
from app.runtime import Runtime
from app.scheduler import stop_scheduler
from app.services.accounts.passwords import hash_password
from app.tasks import BUILTIN_TASK_IDS
from tests.unit.routes.conftest import JOBS, create, data, finished_run, refusal, wait_until

S = "/api/v1/scheduler"
LIST_FIELDS = {
    *("id", "task_id", "name", "task_name", "description", "next_run_time", "last_run_time"),
    *("trigger_type", "trigger_args", "state", "is_builtin", "editable_fields", "func", "args", "kwargs"),
}
DETAIL_FIELDS = {
    *("id", "name", "next_run_time", "trigger", "func", "args", "kwargs"),
    *("misfire_grace_time", "max_instances", "coalesce"),
}
RUN_FIELDS = {
    *("run_id", "job_id", "task", "kind", "scheduled_for", "node", "created_by", "started_at"),
    *("finished_at", "lateness_ms", "duration_ms", "outcome", "reason", "error", "attempt"),
    *("executor", "max_attempts", "first_run_id", "not_before", "cancel_requested_at", "cancel_requested_by"),
}
ROUTES = [
    ("GET", "/jobs", "view"),
    ("POST", "/jobs", "admin"),
    ("GET", "/jobs/sync_accounts", "view"),
    ("PUT", "/jobs/sync_accounts", "admin"),
    ("DELETE", "/jobs/sync_accounts", "admin"),
    ("POST", "/jobs/sync_accounts/actions/pause", "admin"),
    ("POST", "/jobs/sync_accounts/actions/resume", "admin"),
    ("POST", "/jobs/sync_accounts/actions/run", "admin"),
    ("POST", "/jobs/sync_accounts/actions/restore", "admin"),
    ("POST", "/jobs/sync_accounts/action", "admin"),
    ("POST", "/jobs/actions/reload", "admin"),
    ("GET", "/jobs/sync_accounts/history", "view"),
    ("GET", f"/runs/{'0' * 32}", "view"),
    ("POST", f"/runs/{'0' * 32}/actions/cancel", "admin"),
    ("POST", "/triggers/preview", "view"),
    ("GET", "/tasks", "view"),
    ("GET", "/status", "view"),
]


@contextmanager
def counted_queries(engine: Engine) -> Iterator[list[str]]:
    """The statements that the engine runs meanwhile for this thread, without transaction control."""
    seen: list[str] = []
    asking = threading.get_ident()  # the scheduler and the sender of alerts ask from threads of their own

    def note(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if threading.get_ident() == asking and statement not in ("BEGIN", "BEGIN IMMEDIATE"):
            seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


def job(api: FlaskClient, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = data(api.get(f"{JOBS}/{job_id}"))
    return found


# Who may, and where


def test_every_route_is_listed_here(scheduling_app: Flask) -> None:
    rules = {
        (method, rule.rule.removeprefix(S))
        for rule in scheduling_app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith(f"{S}/") and "/health/" not in rule.rule
    }
    listed = {
        (method, path.replace("sync_accounts", "<job_id>").replace("0" * 32, "<run_id>")) for method, path, _ in ROUTES
    }
    assert rules == listed


def test_nobody_is_401(client: FlaskClient) -> None:
    for method, path, _ in ROUTES:
        answer = client.open(S + path, method=method, json={})
        assert refusal(answer) == (401, "AUTHENTICATION_REQUIRED"), (method, path)


def test_a_process_without_a_scheduler_is_409(token_client: FlaskClient) -> None:
    for method, path, _ in ROUTES:
        answer = token_client.open(S + path, method=method, json={"trigger_type": "cron"})
        assert refusal(answer) == (409, "CONSTRAINT_VIOLATION"), (method, path)
        assert answer.get_json()["message"] == "调度器未启动"


def test_a_viewer_reads_and_changes_nothing(scheduling_runtime: Runtime, scheduling_app: Flask) -> None:
    with write_transaction(scheduling_runtime.database) as connection:
        add_user(
            connection,
            now=now_us(),
            username="viewer",
            password_hash=hash_password("looks only"),
            session_stamp="0" * 32,
            role="view",
        )
    viewer = scheduling_app.test_client()
    login = viewer.post("/api/v1/auth/login", json={"username": "viewer", "password": "looks only"})
    headers = {"X-CSRFToken": data(login)["csrf_token"]}
    for method, path, permission in ROUTES:
        body = {"trigger_type": "cron", "hour": 1} if "preview" in path else {}
        answer = viewer.open(S + path, method=method, json=body, headers=headers)
        if permission == "admin":
            assert refusal(answer) == (403, "FORBIDDEN"), (method, path)
        else:
            assert answer.status_code == (404 if "/runs/" in path else 200), (method, path)


def test_a_session_writes_with_its_csrf_token_only(browser: FlaskClient) -> None:
    pause = f"{JOBS}/sync_accounts/actions/pause"
    token = browser.environ_base.pop("HTTP_X_CSRFTOKEN")
    assert refusal(browser.post(pause)) == (403, "CSRF_INVALID")
    assert refusal(browser.post(pause, json={"csrf_token": token})) == (403, "CSRF_INVALID")
    assert data(browser.post(pause, headers={"X-CSRFToken": token}))["state"] == "STATE_PAUSED"


# The list and the detail


def test_list_items(api: FlaskClient) -> None:
    items = data(api.get(JOBS))
    assert [item["id"] for item in items] == sorted([*BUILTIN_TASK_IDS, "nightly_note"])
    for item in items:
        assert item.keys() >= LIST_FIELDS
    sync = next(item for item in items if item["id"] == "sync_accounts")
    assert sync["is_builtin"] is True
    assert sync["editable_fields"] == ["trigger"]
    assert sync["task_id"] == "sync_accounts"
    assert sync["trigger_type"] == "cron"
    assert sync["trigger_args"] == {
        "second": "0",
        "minute": "0",
        "hour": "1",
        "day": "*",
        "month": "*",
        "day_of_week": "*",
        "year": "",
    }
    assert sync["state"] == "STATE_RUNNING"
    assert sync["args"] == []
    assert sync["kwargs"] == {}
    assert sync["func"].endswith(":sync_accounts")
    note = next(item for item in items if item["id"] == "nightly_note")
    assert (note["is_builtin"], note["source"], note["editable_fields"]) == (False, "default", [])
    assert (note["task_id"], note["kwargs"]) == ("note", {"path": "/dev/null"})


def test_next_run_time_is_in_the_jobs_zone(api: FlaskClient) -> None:
    assert job(api, "sync_accounts")["next_run_time"].endswith("T01:00:00+08:00")
    create(api, timezone="America/Sao_Paulo", hour=6, minute=30)
    assert job(api, "mine")["next_run_time"].endswith("T06:30:00-03:00")


def test_trigger_args_of_other_triggers_are_a_description(api: FlaskClient) -> None:
    create(api, trigger_type="interval", hours=2, hour="")
    assert job(api, "mine")["trigger_args"].keys() == {"description"}
    english = api.get(f"{JOBS}/mine", headers={"Accept-Language": "en"}).get_json()["data"]
    assert english["trigger_args"]["description"] != job(api, "mine")["trigger_args"]["description"]
    assert english["trigger_type"] == "interval"


def test_detail(api: FlaskClient) -> None:
    answer = api.get(f"{JOBS}/sync_accounts")
    detail = data(answer)
    assert detail.keys() >= DETAIL_FIELDS | LIST_FIELDS
    assert detail["trigger"] == "cron[hour='1', minute='0']"
    assert (detail["misfire_grace_time"], detail["max_instances"], detail["coalesce"]) == (3600, 1, True)
    assert answer.headers["ETag"] == '"1"'


def test_a_store_that_fails_says_which_answer_failed(api: FlaskClient, scheduling_runtime: Runtime) -> None:
    with write_transaction(scheduling_runtime.jobstore) as connection:
        connection.execute(text("ALTER TABLE jobs RENAME TO jobs_gone"))
    for path, message in [(JOBS, "获取任务列表失败"), (f"{JOBS}/sync_accounts", "获取任务详情失败")]:
        answer = api.get(path)
        assert refusal(answer) in {(503, "SERVICE_UNAVAILABLE"), (500, "INTERNAL_ERROR")}
        assert answer.get_json()["message"] == message
        assert "jobs" not in answer.get_json()["message"]
        assert "Traceback" not in answer.get_data(as_text=True)
        if answer.status_code == 503:
            assert int(answer.headers["Retry-After"]) > 0


def test_a_damaged_row_is_listed_with_its_problem_and_hides_no_other(
    api: FlaskClient, scheduling_runtime: Runtime
) -> None:
    create(api)
    with write_transaction(scheduling_runtime.jobstore) as connection:
        connection.execute(update(jobs).where(jobs.c.id == "mine").values(trigger="{not json"))
    items = {item["id"]: item for item in data(api.get(JOBS))}
    assert len(items) == 7
    assert "trigger" in items["mine"]["problem"]
    assert job(api, "mine")["trigger"] == ""


def test_pages_of_the_list(api: FlaskClient, scheduling_runtime: Runtime) -> None:
    everything = [item["id"] for item in data(api.get(JOBS))]
    found: list[str] = []
    cursor = ""
    for _ in range(10):
        answer = api.get(f"{JOBS}?limit=4{cursor}")
        found += [item["id"] for item in data(answer)]
        following = answer.get_json()["meta"]["next_cursor"]
        if following is None:
            break
        cursor = f"&cursor={following}"
    assert found == everything
    with counted_queries(scheduling_runtime.jobstore) as queries:
        data(api.get(f"{JOBS}?limit=4"))
    assert len(queries) == 1, queries


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("state=STATE_PAUSED", {"mine", "nightly_note"}),
        ("state=STATE_RUNNING&source=default", set()),
        ("state=STATE_RUNNING&q=backup", {"backup_jobstore"}),
        ("source=own", {"mine"}),
        ("source=builtin&q=SIZE", {"collect_database_sizes", "calculate_database_size_aggregations"}),
        ("task=note", {"mine", "nightly_note"}),
        ("q=我的", {"mine"}),
        ("q=%25", set()),
        ("q=_&source=own", set()),
        ("is_enabled=false", {"nightly_note"}),
        ("is_active=false", {"gone"}),
        ("q=no such job", set()),
    ],
)
def test_filters_of_the_list(api: FlaskClient, query: str, expected: set[str]) -> None:
    create(api, name="我的任务", description="a description")
    create(api, id="gone", hour=7)
    data(api.delete(f"{JOBS}/gone"))
    data(api.post(f"{JOBS}/mine/actions/pause"))
    data(api.post(f"{JOBS}/nightly_note/action", json={"action": "disable"}))
    assert {item["id"] for item in data(api.get(f"{JOBS}?{query}"))} == expected


# Changing a trigger


def stored_cron(api: FlaskClient, body: dict[str, Any], job_id: str = "sync_accounts") -> dict[str, str]:
    data(api.put(f"{JOBS}/{job_id}", json={"trigger_type": "cron", **body}))
    args: dict[str, str] = job(api, job_id)["trigger_args"]
    return args


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"cron_expression": "*/5 * * * *"}, {"second": "0", "minute": "*/5", "hour": "*"}),
        ({"cron_expression": "30 5 4 * * *"}, {"second": "30", "minute": "5", "hour": "4"}),
        ({"cron_expression": "0 5 4 * * * 2099"}, {"minute": "5", "hour": "4", "year": "2099"}),
        ({"cron_expression": "5 4 * * 0"}, {"day_of_week": "sun"}),
        ({"cron_expression": "5 4 * * 7"}, {"day_of_week": "sun"}),
        ({"cron_expression": "5 4 * * *", "hour": "9", "cron_minute": ""}, {"minute": "5", "hour": "9"}),
        ({"cron_expression": "too few", "hour": "9"}, {"hour": "9"}),
        ({"cron_weekday": "1", "cron_hour": "2"}, {"day_of_week": "mon", "hour": "2"}),
        ({"weekday": "2", "cron_minute": 3}, {"day_of_week": "tue", "minute": "3"}),
        ({"cron_day": "5", "cron_month": "6", "year": "2099"}, {"day": "5", "month": "6", "year": "2099"}),
        ({"cron_second": "7", "minute": "8"}, {"second": "7", "minute": "8"}),
    ],
)
def test_cron_triggers(api: FlaskClient, body: dict[str, Any], expected: dict[str, str]) -> None:
    args = stored_cron(api, body)
    assert {name: args[name] for name in expected} == expected
    assert args.keys() == {"second", "minute", "hour", "day", "month", "day_of_week", "year"}


def test_a_put_replaces_the_whole_trigger(api: FlaskClient) -> None:
    stored_cron(api, {"hour": "3", "day_of_week": "mon"})
    assert stored_cron(api, {"minute": "7"})["day_of_week"] == "*"
    body = {"trigger_type": "interval", "minutes": "90", "hours": 0, "seconds": ""}
    changed = data(api.put(f"{JOBS}/sync_accounts", json=body))
    assert changed["trigger_spec"].items() >= {"type": "interval", "minutes": 90}.items()
    date = {"trigger_type": "date", "run_date": "2099-01-02T03:04:05"}
    changed = data(api.put(f"{JOBS}/sync_accounts", json=date))
    assert changed["next_run_time"] == "2099-01-02T03:04:05+08:00"


def test_an_unknown_timezone_falls_back_and_is_named(api: FlaskClient) -> None:
    body = {"trigger_type": "cron", "hour": 1, "timezone": "Mars/Olympus"}
    answer = api.put(f"{JOBS}/sync_accounts", json=body)
    assert data(answer)["timezone"] == "Asia/Shanghai"
    assert "Mars/Olympus" in answer.get_json()["meta"]["warnings"][0]


def test_a_paused_job_stays_paused_when_its_trigger_changes(api: FlaskClient) -> None:
    data(api.post(f"{JOBS}/sync_accounts/actions/pause"))
    changed = data(api.put(f"{JOBS}/sync_accounts", json={"trigger_type": "interval", "seconds": 1}))
    assert (changed["state"], changed["next_run_time"]) == ("STATE_PAUSED", None)


def test_only_what_is_editable_is_edited(api: FlaskClient) -> None:
    trigger = {"trigger_type": "cron", "hour": 1}
    assert refusal(api.put(f"{JOBS}/nightly_note", json=trigger)) == (403, "FORBIDDEN")
    named = {**trigger, "name": "other"}
    assert refusal(api.put(f"{JOBS}/sync_accounts", json=named)) == (403, "FORBIDDEN")
    assert job(api, "sync_accounts")["revision"] == 1


def test_a_lost_race_is_412(api: FlaskClient) -> None:
    trigger = {"trigger_type": "cron", "hour": 1}
    for header in ('"1"', 'W/"1"', "*", None):
        create(api, id="raced")
        headers = {} if header is None else {"If-Match": header}
        answer = api.put(f"{JOBS}/raced", json=trigger, headers=headers)
        assert data(answer)["revision"] == 2
        assert answer.headers["ETag"] == '"2"'
        stale = {"If-Match": '"1"'}
        assert refusal(api.put(f"{JOBS}/raced", json=trigger, headers=stale)) == (412, "PRECONDITION_FAILED")
        assert refusal(api.delete(f"{JOBS}/raced", headers=stale)) == (412, "PRECONDITION_FAILED")
        data(api.delete(f"{JOBS}/raced"))
        data(api.post(f"{JOBS}/actions/reload"))
        with write_transaction(_jobstore(api)) as connection:
            connection.execute(jobs.delete().where(jobs.c.source == "own"))


def _jobstore(api: FlaskClient) -> Engine:
    runtime: Runtime = api.application.extensions["whalefall"]
    return runtime.jobstore


# Actions


def test_pause_and_resume(api: FlaskClient) -> None:
    paused = data(api.post(f"{JOBS}/sync_accounts/actions/pause", json={}))
    assert (paused["state"], paused["next_run_time"]) == ("STATE_PAUSED", None)
    resumed = data(api.post(f"{JOBS}/sync_accounts/actions/resume", json={}))
    assert resumed["state"] == "STATE_RUNNING"
    assert resumed["next_run_time"].endswith("T01:00:00+08:00")


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("pause", {"state": "STATE_PAUSED", "is_paused": True, "is_enabled": True}),
        ("resume", {"state": "STATE_RUNNING", "is_paused": False}),
        ("disable", {"state": "STATE_PAUSED", "is_enabled": False, "next_run_time": None}),
        ("enable", {"state": "STATE_RUNNING", "is_enabled": True}),
    ],
)
def test_actions(api: FlaskClient, action: str, expected: dict[str, Any]) -> None:
    answered = data(api.post(f"{JOBS}/nightly_note/action", json={"action": action}))
    assert answered.items() >= expected.items()
    assert job(api, "nightly_note").items() >= expected.items()


@pytest.mark.parametrize("how", ["actions/run", "action"])
@pytest.mark.parametrize("state", ["scheduled", "paused", "disabled"])
def test_run_now_whatever_the_jobs_state(api: FlaskClient, tmp_path: Path, how: str, state: str) -> None:
    target = tmp_path / "notes"
    create(api, kwargs={"path": str(target), "word": "鲸"})
    if state != "scheduled":
        action = "pause" if state == "paused" else "disable"
        data(api.post(f"{JOBS}/mine/action", json={"action": action}))
    started = data(api.post(f"{JOBS}/mine/{how}", json={"action": "trigger"}))
    assert started["manual_job_id"].startswith("mine")
    run = finished_run(api, started["run_id"])
    assert target.read_text() == "鲸\n"
    assert (run["outcome"], run["kind"], run["created_by"]) == ("success", "manual", "api-token")
    assert "noted 鲸 in app" in run["log"], "the task runs inside an application context"
    assert job(api, "mine")["last_run_time"] == run["started_at"]


def test_run_now_at_max_instances_is_400(api: FlaskClient, tmp_path: Path) -> None:
    create(api, task="wait", kwargs={"path": str(tmp_path / "go")}, max_instances=2)
    runs = [data(api.post(f"{JOBS}/mine/actions/run"))["run_id"] for _ in range(2)]
    assert refusal(api.post(f"{JOBS}/mine/actions/run")) == (400, "VALIDATION_ERROR")
    (tmp_path / "go").touch()
    assert {finished_run(api, run_id)["outcome"] for run_id in runs} == {"success"}
    data(api.post(f"{JOBS}/mine/actions/run"))


def test_a_failing_run_is_on_record_and_reaches_no_other_request(api: FlaskClient) -> None:
    create(api, task="fail", kwargs={})
    started = data(api.post(f"{JOBS}/mine/actions/run"))
    run = finished_run(api, started["run_id"])
    assert run["outcome"] == "failed"
    assert "this task always fails" in run["error"]
    assert data(api.get(JOBS))


def test_a_task_that_is_gone_fails_with_a_clear_message(api: FlaskClient, scheduling_runtime: Runtime) -> None:
    create(api)
    with write_transaction(scheduling_runtime.jobstore) as connection:
        connection.execute(update(jobs).where(jobs.c.id == "mine").values(task="vanished"))
    assert (job(api, "mine")["task_known"], job(api, "mine")["func"]) == (False, "")
    run = finished_run(api, data(api.post(f"{JOBS}/mine/actions/run"))["run_id"])
    assert run["outcome"] == "failed"
    assert "vanished" in run["error"]


def test_only_tasks_that_ask_for_it_learn_who_ran_them(browser: FlaskClient, api: FlaskClient, tmp_path: Path) -> None:
    create(api, task="who", kwargs={})
    run = finished_run(api, data(browser.post(f"{JOBS}/mine/actions/run"))["run_id"])
    assert "manual_run=True created_by=1" in run["log"]
    assert run["created_by"] == "1"
    create(api, id="other", kwargs={"path": str(tmp_path / "notes")})
    run = finished_run(api, data(browser.post(f"{JOBS}/other/actions/run"))["run_id"])
    assert (run["outcome"], run["created_by"]) == ("success", "1")


@pytest.mark.parametrize("task_id", ["sync_accounts", "calculate_database_size_aggregations"])
def test_the_contract_names_the_built_in_tasks_that_do(scheduling_runtime: Runtime, task_id: str) -> None:
    task = scheduling_runtime.tasks.get(task_id)
    assert task is not None
    assert task.takes_manual_context
    others = [task for task in scheduling_runtime.tasks.all() if task.takes_manual_context]
    assert {task.name for task in others} == {
        "sync_accounts",
        "calculate_database_size_aggregations",
        "who",
    }


def test_reload(api: FlaskClient, settings: Any) -> None:
    create(api)
    data(api.put(f"{JOBS}/sync_accounts", json={"trigger_type": "cron", "hour": 9}))
    data(api.post(f"{JOBS}/backup_jobstore/actions/pause"))
    data(api.post(f"{JOBS}/nightly_note/action", json={"action": "disable"}))
    answer = api.post(f"{JOBS}/actions/reload", json={})
    result = data(answer)
    expected = sorted([*BUILTIN_TASK_IDS, "nightly_note"])
    assert sorted(result["deleted"]) == sorted([*expected, "mine"])
    assert sorted(result["reloaded"]) == expected
    assert (result["deleted_count"], result["reloaded_count"]) == (7, 6)
    assert answer.get_json()["message"] == "已删除 7 个任务，重新加载 6 个任务"
    assert [item["id"] for item in data(api.get(JOBS))] == expected
    assert job(api, "sync_accounts")["trigger_args"]["hour"] == "1"
    assert job(api, "backup_jobstore")["state"] == "STATE_RUNNING"
    assert job(api, "nightly_note")["is_enabled"] is False
    export = (settings.userdata_dir / "exports" / result["export"]).read_text(encoding="utf-8")
    assert "mine" in export
    assert "sync_accounts" in export
    assert data(api.post(f"{JOBS}/mine/actions/restore"))["state"] == "STATE_RUNNING"


def test_reload_with_an_invalid_file_changes_nothing(api: FlaskClient, settings: Any) -> None:
    create(api)
    settings.scheduler_tasks_file.write_text("default_tasks:\n  - id: x\n", encoding="utf-8")
    answer = api.post(f"{JOBS}/actions/reload")
    assert refusal(answer) == (400, "VALIDATION_ERROR")
    assert "line 2" in answer.get_json()["message"]
    assert len(data(api.get(JOBS))) == 7


# Own jobs


def test_an_own_job_from_creation_to_restoration(api: FlaskClient) -> None:
    body = {
        "id": "own.1",
        "task": "note",
        "name": "记录",
        "description": "Notes",
        "kwargs": {"path": "/dev/null", "times": "3"},
        "trigger_type": "interval",
        "hours": 5,
        "misfire_grace_time": 60,
        "coalesce": False,
        "max_instances": 10,
        "priority": -5,
        "executor": "process",
        "retry_on_loss": True,
        "max_attempts": 20,
        "retry_delay": 86_400,
        "soft_time_limit": 1,
        "time_limit": 604_800,
        "ping_url": "https://hc.example/ping/0b8e3c5a?x=1",
    }
    answer = api.post(JOBS, json=body)
    created = data(answer, 201)
    assert answer.headers["Location"].endswith("/api/v1/scheduler/jobs/own.1")
    kept = {name: body[name] for name in body if name not in ("task", "kwargs", "trigger_type", "hours")}
    assert created.items() >= kept.items()
    assert created["kwargs"] == {"path": "/dev/null", "times": 3}, "coerced to the parameter's type"
    assert (created["source"], created["is_builtin"], created["created_by"]) == ("own", False, "api-token")
    assert set(created["editable_fields"]) >= {"trigger", "name", "kwargs", "is_enabled"}
    assert refusal(api.post(JOBS, json=body)) == (400, "VALIDATION_ERROR")

    change = {"trigger_type": "cron", "hour": 2, "name": "新名", "kwargs": {"path": "/dev/zero"}}
    changed = data(api.put(f"{JOBS}/own.1", json=change))
    assert (changed["name"], changed["kwargs"]) == ("新名", {"path": "/dev/zero"})
    assert (changed["priority"], changed["executor"]) == (-5, "process"), "what is left out stays"
    assert changed["revision"] == created["revision"] + 1

    assert (changed["max_attempts"], changed["soft_time_limit"]) == (20, 1)
    cleared = {"soft_time_limit": None, "time_limit": None, "ping_url": None}
    changed = data(api.put(f"{JOBS}/own.1", json={**change, **cleared}))
    assert changed.items() >= cleared.items()

    deleted = data(api.delete(f"{JOBS}/own.1"))
    assert deleted["is_active"] is False
    assert refusal(api.get(f"{JOBS}/own.1")) == (404, "NOT_FOUND")
    assert refusal(api.delete(f"{JOBS}/own.1")) == (404, "NOT_FOUND")
    assert refusal(api.post(JOBS, json=body)) == (400, "VALIDATION_ERROR"), "its id is kept for it"
    assert data(api.get(f"{JOBS}/own.1/history")) == []
    restored = data(api.post(f"{JOBS}/own.1/actions/restore"))
    assert (restored["is_active"], restored["name"], restored["state"]) == (True, "新名", "STATE_RUNNING")


def test_what_is_left_out_has_its_default(api: FlaskClient) -> None:
    create(api)
    expected = {"max_attempts": 1, "retry_delay": 60, "soft_time_limit": None, "time_limit": None, "ping_url": None}
    assert job(api, "mine").items() >= expected.items()
    listed = {item["id"]: item for item in data(api.get(JOBS))}
    assert listed["mine"].items() >= expected.items()


def test_a_limit_is_judged_with_the_one_that_stays(api: FlaskClient) -> None:
    create(api, soft_time_limit=10, time_limit=20)
    trigger = {"trigger_type": "cron", "hour": 6}
    for refused in ({"soft_time_limit": 20}, {"time_limit": 10}, {"time_limit": 5}):
        answer = api.put(f"{JOBS}/mine", json={**trigger, **refused})
        assert refusal(answer) == (400, "VALIDATION_ERROR")
        assert "soft_time_limit" in answer.get_json()["message"]
    for accepted in ({"soft_time_limit": 19}, {"time_limit": None}, {"soft_time_limit": 30}, {"time_limit": 31}):
        assert data(api.put(f"{JOBS}/mine", json={**trigger, **accepted})).items() >= accepted.items()


def test_an_id_is_made_when_none_is_given(api: FlaskClient) -> None:
    body = {"task": "note", "kwargs": {"path": "/dev/null"}, "trigger_type": "cron", "hour": 1}
    ids = {data(api.post(JOBS, json=body), 201)["id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(job_id.startswith("note-") for job_id in ids)


# History, runs, previews, state


def test_history(api: FlaskClient, scheduling_runtime: Runtime) -> None:
    create(api)
    ids = []
    for _ in range(5):
        ids.append(data(api.post(f"{JOBS}/mine/actions/run"))["run_id"])
        finished_run(api, ids[-1])
    runs = data(api.get(f"{JOBS}/mine/history"))
    assert [run["run_id"] for run in runs] == ids[::-1]
    assert all(run.keys() >= RUN_FIELDS for run in runs)
    assert (runs[0]["node"], runs[0]["attempt"], runs[0]["task"]) == ("unit-test", 1, "note")
    assert runs[0]["lateness_ms"] >= 0
    assert runs[0]["duration_ms"] >= 0

    with counted_queries(scheduling_runtime.jobstore) as queries:
        page = api.get(f"{JOBS}/mine/history?limit=3")
    assert len(queries) == 1, queries
    cursor = page.get_json()["meta"]["next_cursor"]
    rest = api.get(f"{JOBS}/mine/history?limit=3&cursor={cursor}")
    assert [run["run_id"] for run in data(page) + data(rest)] == ids[::-1]
    assert rest.get_json()["meta"]["next_cursor"] is None

    soon = (datetime.now(UTC) + timedelta(seconds=5)).isoformat().replace("+", "%2B")
    for query, count in [
        ("outcome=success", 5),
        ("outcome=failed", 0),
        ("kind=manual", 5),
        ("kind=schedule", 0),
        ("since=2020-01-01T00:00:00", 5),
        ("until=2020-01-01T00:00:00Z", 0),
        (f"since={soon}", 0),
        (f"until={soon}", 5),
    ]:
        assert len(data(api.get(f"{JOBS}/mine/history?{query}"))) == count, query


def test_history_answers_50_unless_asked_for_more(api: FlaskClient, scheduling_runtime: Runtime) -> None:
    create(api, max_instances=10)
    for _ in range(60):
        wait_until(lambda: api.post(f"{JOBS}/mine/actions/run").status_code == 200)
    assert len(data(api.get(f"{JOBS}/mine/history"))) == 50
    assert len(data(api.get(f"{JOBS}/mine/history?limit=500"))) == 60


def test_preview_marks_what_a_clock_change_moves(api: FlaskClient) -> None:
    body = {"trigger_type": "cron", "cron_expression": "30 2 * * *", "timezone": "Europe/Berlin"}
    asked = {**body, "count": 3, "after": "2026-03-28T00:00:00+01:00"}
    preview = data(api.post(f"{S}/triggers/preview", json=asked))
    assert [(fire["at"], fire["change"]) for fire in preview["fires"]] == [
        ("2026-03-28T02:30:00+01:00", None),
        ("2026-03-29T03:30:00+02:00", "moved"),
        ("2026-03-30T02:30:00+02:00", None),
    ]
    assert preview["fires"][1]["utc_offset"] == "+02:00"
    assert len(data(api.post(f"{S}/triggers/preview", json=body))["fires"]) == 5
    warned = api.post(f"{S}/triggers/preview", json={**body, "timezone": "Mars/Olympus"})
    assert "Mars/Olympus" in warned.get_json()["meta"]["warnings"][0]


def test_status(api: FlaskClient) -> None:
    create(api)
    finished_run(api, data(api.post(f"{JOBS}/mine/actions/run"))["run_id"])
    status = data(api.get(f"{S}/status"))
    assert status.keys() >= {"nodes", "queue", "lateness", "counters"}
    assert [(node["name"], node["is_alive"]) for node in status["nodes"]] == [("unit-test", True)]
    (node,) = status["nodes"]
    assert node["kind"] == "scheduler"
    assert node["stats"].keys() >= {"running", "running_count", "free", "clock_offset_ms"}
    assert status["counters"]["nodes"] == {"scheduler": 1, "worker": 0}
    assert status["problems"] == []
    assert status["queue"]["pending"] == 0
    assert status["counters"]["outcomes"] == {"success": 1}
    assert status["counters"]["jobs"].items() >= {"total": 7, "scheduled": 7, "deleted": 0}.items()


def test_tasks(api: FlaskClient) -> None:
    tasks = {task["name"]: task for task in data(api.get(f"{S}/tasks"))}
    assert tasks.keys() >= BUILTIN_TASK_IDS | {"note"}
    parameters = {parameter["name"]: parameter for parameter in tasks["note"]["parameters"]}
    assert parameters["path"]["required"] is True
    assert (parameters["times"]["type"], parameters["times"]["default"]) == ("int", 1)
    first = api.get(f"{S}/tasks?limit=2").get_json()
    rest = api.get(f"{S}/tasks?cursor={first['meta']['next_cursor']}").get_json()
    assert [task["name"] for task in first["data"] + rest["data"]] == sorted(tasks)
    assert (len(first["data"]), rest["meta"]["next_cursor"]) == (2, None)
    assert refusal(api.get(f"{S}/tasks?limit=501")) == (400, "VALIDATION_ERROR")


# Health


def test_health_of_a_turning_scheduler(scheduling_app: Flask) -> None:
    nobody = scheduling_app.test_client()
    for name in ("live", "ready"):
        assert data(nobody.get(f"{S}/health/{name}"))["status"] == "ok"


def test_health_of_a_process_without_one(client: FlaskClient) -> None:
    for name in ("live", "ready"):
        answer = client.get(f"{S}/health/{name}")
        assert refusal(answer) == (503, "SERVICE_UNAVAILABLE")
        assert int(answer.headers["Retry-After"]) > 0


def test_a_scheduler_that_is_stopping_never_answers_409(api: FlaskClient) -> None:
    stop_scheduler()
    assert data(api.get(JOBS))
    assert data(api.post(f"{JOBS}/sync_accounts/actions/run"))
    for name in ("live", "ready"):
        assert refusal(api.get(f"{S}/health/{name}")) == (503, "SERVICE_UNAVAILABLE")


def test_health_is_the_truth_not_a_flag(scheduling_app: Flask, scheduling_runtime: Runtime) -> None:
    nobody = scheduling_app.test_client()
    with write_transaction(scheduling_runtime.jobstore) as connection:
        connection.execute(text("ALTER TABLE jobs RENAME TO jobs_gone"))
    assert data(nobody.get(f"{S}/health/live"))["status"] == "ok"
    problem = wait_until(lambda: nobody.get(f"{S}/health/live").get_json()["data"].get("problem"), within_s=5)
    assert "no such table" in problem
    assert "SELECT" not in problem


# Cancelling a run


def cancel(api: FlaskClient, run_id: str) -> Any:
    return api.post(f"{S}/runs/{run_id}/actions/cancel")


def test_a_running_run_is_asked_to_stop(api: FlaskClient, tmp_path: Path) -> None:
    kwargs = {"path": str(tmp_path / "started"), "obeys_from": str(tmp_path / "asked_twice")}
    create(api, task="patient", kwargs=kwargs, time_limit=60, max_attempts=3)
    run_id = data(api.post(f"{JOBS}/mine/actions/run"))["run_id"]
    wait_until((tmp_path / "started").exists)
    answer = cancel(api, run_id)
    asked = data(answer)
    assert answer.get_json()["message"] == "已请求停止这次运行"
    assert (asked["effect"], asked["outcome"], asked["run_id"]) == ("requested", "running", run_id)
    assert asked["cancel_requested_by"] == "api-token"
    again = data(cancel(api, run_id))
    assert again["cancel_requested_at"] == asked["cancel_requested_at"], "the first one counts"
    (tmp_path / "asked_twice").touch()
    run = finished_run(api, run_id)
    assert (run["outcome"], run["time_limit"], run["max_attempts"]) == ("cancelled", 60, 3)
    assert run["attempts"] == [], "what was cancelled is not tried again"


def test_a_waiting_run_is_cancelled_at_once(token_client: FlaskClient, scheduling_app: Flask, api: FlaskClient) -> None:
    create(api)
    stop_scheduler()  # so that nobody starts it
    run_id = data(api.post(f"{JOBS}/mine/actions/run"))["run_id"]
    answer = cancel(api, run_id)
    cancelled = data(answer)
    assert answer.get_json()["message"] == "运行已取消"
    assert (cancelled["effect"], cancelled["outcome"]) == ("cancelled", "cancelled")
    assert cancelled["finished_at"]
    refused = cancel(api, run_id)
    assert refusal(refused) == (400, "VALIDATION_ERROR")
    assert refused.get_json()["context"].items() >= {"field": "run_id", "value": run_id}.items()


def test_an_ended_run_cannot_be_cancelled(api: FlaskClient) -> None:
    create(api)
    run_id = data(api.post(f"{JOBS}/mine/actions/run"))["run_id"]
    finished_run(api, run_id)
    answer = api.post(f"{S}/runs/{run_id}/actions/cancel", headers={"Accept-Language": "en"})
    assert refusal(answer) == (400, "VALIDATION_ERROR")
    assert "has ended (success)" in answer.get_json()["message"]
    assert data(api.get(f"{S}/runs/{run_id}"))["outcome"] == "success"


def test_a_cancellation_is_in_the_audit_log(
    browser: FlaskClient, api: FlaskClient, scheduling_runtime: Runtime
) -> None:
    create(api)
    stop_scheduler()
    run_id = data(api.post(f"{JOBS}/mine/actions/run"))["run_id"]
    assert data(cancel(browser, run_id))["cancel_requested_by"] == "1"
    with scheduling_runtime.database.connect() as connection:
        lines = connection.execute(text("SELECT actor, target, status FROM audit_log WHERE action LIKE '%cancel_run'"))
        assert list(lines) == [("admin", f"/api/v1/scheduler/runs/{run_id}/actions/cancel", 200)]


def test_an_action_is_in_the_audit_log_by_what_it_did(api: FlaskClient, scheduling_runtime: Runtime) -> None:
    """Whichever of the two paths asked for it."""
    create(api)
    stop_scheduler()
    for action in ("trigger", "pause", "resume", "disable", "enable", "burn"):
        api.post(f"{JOBS}/mine/action", json={"action": action})
    for action in ("run", "pause", "resume"):
        api.post(f"{JOBS}/mine/actions/{action}")
    with scheduling_runtime.database.connect() as connection:
        lines = list(
            connection.execute(
                text("SELECT action, target, status FROM audit_log WHERE target LIKE '%/mine/%' ORDER BY id")
            )
        )
    by_body = [f"scheduler.{action}_job" for action in ("run", "pause", "resume", "disable", "enable")]
    assert lines[:5] == [(action, f"{JOBS}/mine/action", 200) for action in by_body]
    assert lines[5] == ("scheduler.act_on_job", f"{JOBS}/mine/action", 400)
    by_path = [(action, status) for action, _, status in lines[6:]]
    assert by_path == [("scheduler.run_job", 400), *((action, 200) for action in by_body[1:3])]
    edits = FiresRepository(scheduling_runtime.jobstore, scheduling_runtime.database).edits("mine")
    assert [edit.kind for edit in edits] == ["pause", "resume", "disable", "enable", "pause", "resume"]


# Attempts


def test_attempts_of_a_fire_point_at_the_first(api: FlaskClient) -> None:
    create(api, task="fail", kwargs={}, max_attempts=2, retry_delay=1)
    first = data(api.post(f"{JOBS}/mine/actions/run"))["run_id"]
    runs = wait_until(
        lambda: len(found := data(api.get(f"{JOBS}/mine/history?outcome=failed"))) == 2 and found, within_s=15
    )
    second = runs[0]
    assert (second["attempt"], second["max_attempts"], second["first_run_id"]) == (2, 2, first)
    assert second["not_before"] is not None
    shown = data(api.get(f"{S}/runs/{first}"))
    assert (shown["attempt"], shown["first_run_id"], shown["not_before"]) == (1, None, None)
    assert [run["run_id"] for run in shown["attempts"]] == [second["run_id"]]
    assert [run["attempt"] for run in data(api.get(f"{S}/runs/{second['run_id']}"))["attempts"]] == [1]


# The API's description


def test_the_description_is_complete(scheduling_app: Flask) -> None:
    spec = scheduling_app.test_client().get("/api/v1/openapi.json").get_json()
    assert spec["openapi"].startswith("3.1")
    described = {(method.upper(), path) for path, methods in spec["paths"].items() for method in methods}
    for method, path, permission in ROUTES:
        template = S + path.replace("sync_accounts", "{job_id}").replace("0" * 32, "{run_id}")
        assert (method, template) in described
        assert spec["paths"][template][method.lower()]["x-permission"] == permission

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for inner in node.values():
                yield from references(inner)
        elif isinstance(node, list):
            for inner in node:
                yield from references(inner)

    known = {f"#/components/schemas/{name}" for name in spec["components"]["schemas"]}
    assert set(references(spec)) <= known
    change = spec["components"]["schemas"]["JobChangeInput"]
    assert change["required"] == ["trigger_type"]
    assert spec["components"]["schemas"]["NewJobInput"]["required"] == ["task", "trigger_type"]
