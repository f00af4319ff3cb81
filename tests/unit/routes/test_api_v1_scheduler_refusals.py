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


@pytest.mark.parametrize("run_id", ["x", "0" * 32, "%00", "任务"])
def test_an_unknown_run_is_404(api: FlaskClient, run_id: str) -> None:
    assert refusal(api.get(f"{S}/runs/{run_id}")) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    "fields",
    [{"count": 0}, {"count": 101}, {"count": "5"}, {"after": "soon"}, {"after": "2026-01-01T00:00:00"}, {"id": "x"}],
)
def test_bad_previews_are_400(api: FlaskClient, fields: dict[str, Any]) -> None:
    body = {"trigger_type": "cron", "hour": 1, **fields}
    assert refusal(api.post(f"{S}/triggers/preview", json=body)) == (400, "VALIDATION_ERROR")
