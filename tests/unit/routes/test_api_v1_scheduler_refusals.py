"""What the scheduler API refuses: with which status, naming which field, and without changing anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from app.settings import Settings
from tests.unit.conftest import ADMIN_PASSWORD, API_TOKEN
from tests.unit.routes.conftest import JOBS, create, data, refusal, running, script, with_tasks

S = "/api/v1/scheduler"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    """One app for all tests of this file: none of them changes anything."""
    folder = tmp_path_factory.mktemp("refusals")
    environment = {
        "USERDATA_DIR": str(folder / "userdata"),
        "SECRET_KEY": "secret key of the tests",
        "ADMIN_PASSWORD": ADMIN_PASSWORD,
        "API_TOKEN": API_TOKEN,
    }
    with running(Settings.load(with_tasks(environment, folder))) as app:
        made = script(app)
        create(made)
        yield made


@pytest.fixture(autouse=True)
def _nothing_changes(api: FlaskClient) -> Iterator[None]:
    before = data(api.get(JOBS))
    yield
    assert data(api.get(JOBS)) == before


@pytest.mark.parametrize("job_id", ["nothing", "任务", "a b", "%00", "x" * 5000, "..", "' OR 1=1 --"])
def test_an_unknown_job_is_404_everywhere(api: FlaskClient, job_id: str) -> None:
    trigger = {"trigger_type": "cron", "hour": 1}
    for method, path, body in [
        ("GET", "", None),
        ("GET", "/history", None),
        ("PUT", "", trigger),
        ("DELETE", "", None),
        ("POST", "/action", {"action": "pause"}),
        *(("POST", f"/actions/{action}", {}) for action in ("pause", "resume", "run", "restore")),
    ]:
        answer = api.open(f"{JOBS}/{job_id}{path}", method=method, json=body)
        assert refusal(answer) == (404, "NOT_FOUND"), (method, path)
        if job_id == "nothing" and path != "/actions/restore":
            assert answer.get_json()["message"] == "任务不存在"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"hour": "1"}, "trigger_type"),
        ({"trigger_type": ""}, "trigger_type"),
        ({"trigger_type": "crontab", "hour": "1"}, "trigger_type"),
        ({"trigger_type": ["cron"], "hour": "1"}, "trigger_type"),
        ({"trigger_type": "cron"}, "cron_expression"),
        ({"trigger_type": "cron", "cron_expression": "1 2 3"}, "cron_expression"),
        ({"trigger_type": "cron", "cron_expression": "* " * 200}, "cron_expression"),
        ({"trigger_type": "cron", "cron_expression": "x" * 10_000}, "cron_expression"),
        ({"trigger_type": "cron", "hour": "24"}, "hour"),
        ({"trigger_type": "cron", "minute": {"a": 1}}, "minute"),
        ({"trigger_type": "cron", "cron_day": "三"}, "cron_day"),
        ({"trigger_type": "interval"}, "seconds"),
        ({"trigger_type": "interval", "hours": -1}, "hours"),
        ({"trigger_type": "interval", "hours": "often"}, "hours"),
        ({"trigger_type": "interval", "hours": True}, "hours"),
        ({"trigger_type": "interval", "hours": 1, "start_date": "soon"}, "start_date"),
        ({"trigger_type": "date"}, "run_date"),
        ({"trigger_type": "date", "run_date": 20300101}, "run_date"),
        ({"trigger_type": "cron", "hour": "1", "hours_": 2}, "hours_"),
    ],
)
def test_a_trigger_that_cannot_be_built_changes_nothing(api: FlaskClient, body: dict[str, Any], field: str) -> None:
    answer = api.put(f"{JOBS}/sync_accounts", json=body)
    assert refusal(answer) == (400, "VALIDATION_ERROR")
    context = answer.get_json()["context"]
    assert context["field"] == field
    assert "value" in context
    assert context["accepted"]


@pytest.mark.parametrize("body", ["", "null", "[]", "{}", '"text"', "1", "{", "\xff", '{"a": NaN}', "[" * 100_000])
def test_a_body_that_is_no_object_is_400(api: FlaskClient, body: str) -> None:
    for method, path in [
        ("PUT", "/jobs/sync_accounts"),
        ("POST", "/jobs"),
        ("POST", "/triggers/preview"),
        ("POST", "/jobs/sync_accounts/action"),
    ]:
        answer = api.open(S + path, method=method, data=body.encode("latin-1"), content_type="application/json")
        assert refusal(answer) == (400, "VALIDATION_ERROR"), path


@pytest.mark.parametrize(
    "body", [{}, {"action": "explode"}, {"action": 1}, {"action": "pause", "x": 1}, {"action": None}]
)
def test_an_unknown_action_is_400(api: FlaskClient, body: dict[str, Any]) -> None:
    assert refusal(api.post(f"{JOBS}/sync_accounts/action", json=body)) == (400, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"id": ""}, "id"),
        ({"id": "a/b"}, "id"),
        ({"id": "x" * 129}, "id"),
        ({"id": "sync_accounts"}, "id"),
        ({"id": 7}, "id"),
        ({"task": "nothing"}, "task"),
        ({"task": None}, "task"),
        ({"kwargs": {}}, "kwargs.path"),
        ({"kwargs": {"path": 3}}, "kwargs.path"),
        ({"kwargs": {"path": "x", "times": "many"}}, "kwargs.times"),
        ({"kwargs": {"path": "x", "colour": "red"}}, "kwargs.colour"),
        ({"kwargs": []}, "kwargs"),
        ({"max_instances": 0}, "max_instances"),
        ({"max_instances": 11}, "max_instances"),
        ({"max_instances": "2"}, "max_instances"),
        ({"max_instances": True}, "max_instances"),
        ({"misfire_grace_time": 0}, "misfire_grace_time"),
        ({"misfire_grace_time": 10**30}, "misfire_grace_time"),
        ({"priority": 1.5}, "priority"),
        ({"coalesce": "yes"}, "coalesce"),
        ({"executor": "celery"}, "executor"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 21}, "max_attempts"),
        ({"max_attempts": "3"}, "max_attempts"),
        ({"max_attempts": None}, "max_attempts"),
        ({"retry_delay": 0}, "retry_delay"),
        ({"retry_delay": 86_401}, "retry_delay"),
        ({"retry_delay": 1.5}, "retry_delay"),
        ({"soft_time_limit": 0}, "soft_time_limit"),
        ({"soft_time_limit": 604_801}, "soft_time_limit"),
        ({"soft_time_limit": "60"}, "soft_time_limit"),
        ({"time_limit": -1}, "time_limit"),
        ({"time_limit": 10**30}, "time_limit"),
        ({"time_limit": True}, "time_limit"),
        ({"soft_time_limit": 60, "time_limit": 60}, "soft_time_limit"),
        ({"soft_time_limit": 61, "time_limit": 60}, "soft_time_limit"),
        ({"ping_url": ""}, "ping_url"),
        ({"ping_url": "hc.example/ping"}, "ping_url"),
        ({"ping_url": "ftp://hc.example/ping"}, "ping_url"),
        ({"ping_url": "https://"}, "ping_url"),
        ({"ping_url": "https://hc.example/a b"}, "ping_url"),
        ({"ping_url": "https://hc.example/\n"}, "ping_url"),
        ({"ping_url": "https://hc.example:99999/"}, "ping_url"),
        ({"ping_url": "https://hc.example/" + "x" * 2000}, "ping_url"),
        ({"ping_url": ["https://hc.example/"]}, "ping_url"),
        ({"name": "x" * 256}, "name"),
        ({"name": None}, "name"),
        ({"source": "builtin"}, "source"),
        ({"hour": "99"}, "hour"),
    ],
)
def test_a_bad_own_job_is_refused_by_field(api: FlaskClient, fields: dict[str, Any], field: str) -> None:
    body = {"task": "note", "kwargs": {"path": "/dev/null"}, "trigger_type": "cron", "hour": 1}
    answer = api.post(JOBS, json={**body, **fields})
    assert refusal(answer) == (400, "VALIDATION_ERROR")
    assert answer.get_json()["context"]["field"] == field
    changed = api.put(f"{JOBS}/mine", json={"trigger_type": "cron", "hour": 1, **fields})
    assert refusal(changed) == (400, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "a\0b"}, "name"),
        ({"description": "\0"}, "description"),
        ({"description": "\ud800"}, None),  # no JSON parser of the app lets it through
        ({"task": "\0"}, "task"),
        ({"id": "a\0"}, "id"),
        ({"kwargs": {"path": "\0"}}, "kwargs"),
        ({"kwargs": {"path": {"a": [["\0"]]}}}, "kwargs"),
        ({"kwargs": {"\0": 1}}, "kwargs"),
        ({"hour": "\0"}, "hour"),
        ({"timezone": "a\0b", "hour": "\0"}, "hour"),
    ],
)
def test_text_that_no_store_keeps_is_refused(api: FlaskClient, fields: dict[str, Any], field: str | None) -> None:
    body = {"task": "note", "kwargs": {"path": "/dev/null"}, "trigger_type": "cron", "hour": 1}
    answer = api.post(JOBS, json={**body, **fields})
    assert refusal(answer) == (400, "VALIDATION_ERROR")
    assert answer.get_json().get("context", {}).get("field") == field


@pytest.mark.parametrize("job_id", ["sync_accounts", "nightly_note"])
def test_only_own_jobs_are_deleted(api: FlaskClient, job_id: str) -> None:
    assert refusal(api.delete(f"{JOBS}/{job_id}")) == (403, "FORBIDDEN")


@pytest.mark.parametrize("path", ["/jobs", "/jobs/sync_accounts/history"])
@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=501", "limit=-1", "limit=x", "limit=", "limit=1e9", "limit=٣", "page=2", "cursor=%00"],
)
def test_bad_options_are_400(api: FlaskClient, path: str, query: str) -> None:
    if query == "limit=٣":  # a digit, but not one of ASCII: pydantic decides, 500 it must not be
        assert api.get(f"{S}{path}?{query}").status_code in (200, 400)
        return
    assert refusal(api.get(f"{S}{path}?{query}")) == (400, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    "query",
    ["state=x", "source=x", "is_active=maybe", "q=%00", f"q={'x' * 300}", "cursor=" + "x" * 300],
)
def test_bad_filters_of_the_list_are_400(api: FlaskClient, query: str) -> None:
    assert refusal(api.get(f"{JOBS}?{query}")) == (400, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    "query",
    [
        *("cursor=x", "cursor=" + "G" * 32, "outcome=x", "kind=x", "since=x", "until=9999-12-31T23:59:59"),
        *("since=1e400", "since=-99999999999999", "since=nan", "since=0001-01-01"),
    ],
)
def test_bad_filters_of_the_history_are_400(api: FlaskClient, query: str) -> None:
    assert refusal(api.get(f"{JOBS}/sync_accounts/history?{query}")) == (400, "VALIDATION_ERROR")


@pytest.mark.parametrize("run_id", ["x", "0" * 32, "%00", "任务", "x" * 3000])
def test_an_unknown_run_is_404(api: FlaskClient, run_id: str) -> None:
    assert refusal(api.get(f"{S}/runs/{run_id}")) == (404, "NOT_FOUND")
    assert refusal(api.post(f"{S}/runs/{run_id}/actions/cancel")) == (404, "NOT_FOUND")


def test_a_refused_pair_of_limits_names_both(api: FlaskClient) -> None:
    body = {"task": "note", "kwargs": {"path": "/dev/null"}, "trigger_type": "cron", "hour": 1}
    answer = api.post(JOBS, json={**body, "soft_time_limit": 90, "time_limit": 60}, headers={"Accept-Language": "en"})
    refused = answer.get_json()
    assert "soft_time_limit (90 s)" in refused["message"]
    assert "time_limit (60 s)" in refused["message"]
    assert refused["context"].items() >= {"field": "soft_time_limit", "value": 90, "time_limit": 60}.items()


def test_the_fleet_is_refused_where_there_is_none(api: FlaskClient) -> None:
    answer = api.put(f"{JOBS}/mine", json={"trigger_type": "cron", "hour": 6, "executor": "celery"})
    assert refusal(answer) == (400, "VALIDATION_ERROR")
    assert "CELERY_BROKER_URL" in answer.get_json()["message"]
    assert answer.get_json()["context"]["accepted"] == ["default", "process"]


@pytest.mark.parametrize(
    "key", ["", "x" * 256, "a b", "a\tb", "schl\u00fcssel", "鲸".encode().decode("latin-1"), "\x7f"]
)
def test_a_bad_idempotency_key_is_400(api: FlaskClient, key: str) -> None:
    own = {"task": "note", "kwargs": {"path": "/dev/null"}, "trigger_type": "cron", "hour": 1}
    for path, body in [
        ("/jobs", own),
        ("/jobs/mine/actions/run", None),
        ("/jobs/mine/action", {"action": "trigger"}),
    ]:
        answer = api.post(S + path, json=body, headers={"Idempotency-Key": key})
        assert refusal(answer) == (400, "VALIDATION_ERROR"), path
        assert answer.get_json()["context"]["field"] == "Idempotency-Key"


@pytest.mark.parametrize(
    "fields",
    [{"count": 0}, {"count": 101}, {"count": "5"}, {"after": "soon"}, {"after": "2026-01-01T00:00:00"}, {"id": "x"}],
)
def test_bad_previews_are_400(api: FlaskClient, fields: dict[str, Any]) -> None:
    body = {"trigger_type": "cron", "hour": 1, **fields}
    assert refusal(api.post(f"{S}/triggers/preview", json=body)) == (400, "VALIDATION_ERROR")
