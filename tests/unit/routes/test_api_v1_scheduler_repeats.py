"""Idempotency-Key: a request that is sent again is carried out once, and answered as the first was."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import update

from app.db.engines import write_transaction
from app.db.jobstore_tables import idempotency_keys
from app.runtime import Runtime
from tests.unit.routes.conftest import JOBS, create, data, finished_run, refusal, script

KEY = {"Idempotency-Key": "9f1c-first"}
REPLAYED = "Idempotency-Replayed"
OWN = {"task": "note", "kwargs": {"path": "/dev/null"}, "trigger_type": "cron", "hour": 6}


def run_now(api: FlaskClient, **options: Any) -> Any:
    return api.post(f"{JOBS}/mine/actions/run", **options)


def trigger(api: FlaskClient, **options: Any) -> Any:
    return api.post(f"{JOBS}/mine/action", json={"action": "trigger"}, **options)


@pytest.mark.parametrize("ask", [run_now, trigger])
def test_a_repeated_run_now_starts_nothing(api: FlaskClient, ask: Callable[..., Any]) -> None:
    create(api, max_instances=3)
    first = ask(api, headers=KEY)
    assert REPLAYED not in first.headers
    finished_run(api, data(first)["run_id"])
    again = ask(api, headers=KEY)
    assert again.headers[REPLAYED] == "true"
    assert (again.status_code, data(again)) == (first.status_code, data(first))
    assert len(data(api.get(f"{JOBS}/mine/history"))) == 1
    other = ask(api, headers={"Idempotency-Key": "9f1c-second"})
    assert data(other)["run_id"] != data(first)["run_id"]
    assert data(ask(api))["run_id"], "without a key every request counts"


def test_twenty_at_once_start_one_run(api: FlaskClient, scheduling_app: Flask) -> None:
    create(api, max_instances=10)
    together = Barrier(20)

    def ask(_number: int) -> Any:
        client = script(scheduling_app)
        together.wait(timeout=10)
        return run_now(client, headers=KEY)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    assert len({data(answer)["run_id"] for answer in answers}) == 1
    assert sorted(answer.headers.get(REPLAYED, "") for answer in answers) == ["", *["true"] * 19]
    assert len(data(api.get(f"{JOBS}/mine/history"))) == 1


def test_twenty_at_once_create_one_job(api: FlaskClient, scheduling_app: Flask) -> None:
    together = Barrier(20)

    def ask(_number: int) -> Any:
        client = script(scheduling_app)
        together.wait(timeout=10)
        return client.post(JOBS, json=OWN, headers=KEY)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    assert len({data(answer, 201)["id"] for answer in answers}) == 1
    assert len(data(api.get(f"{JOBS}?source=own"))) == 1


def test_a_repeated_creation_answers_the_job(api: FlaskClient) -> None:
    first = api.post(JOBS, json={**OWN, "id": "twice"}, headers=KEY)
    again = api.post(JOBS, json={**OWN, "id": "twice"}, headers=KEY)
    assert (again.status_code, again.headers[REPLAYED]) == (201, "true")
    assert data(again, 201) == data(first, 201)
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["ETag"] == first.headers["ETag"]


def test_how_a_body_is_written_does_not_count(api: FlaskClient) -> None:
    data(api.post(JOBS, data='{"id":"a","task":"note","kwargs":{"path":"x"},"trigger_type":"cron","hour":6}',
                  content_type="application/json", headers=KEY), 201)  # fmt: skip
    again = api.post(JOBS, data='{ "task": "note", "id": "\\u0061", "hour": 6,\n"trigger_type": "cron",'
                     ' "kwargs": {"path": "x"} }', content_type="application/json", headers=KEY)  # fmt: skip
    assert (again.status_code, again.headers[REPLAYED]) == (201, "true")


def test_another_request_under_the_same_key_is_refused(api: FlaskClient) -> None:
    create(api)
    create(api, id="other", hour=7)
    data(run_now(api, headers=KEY))
    data(api.post(JOBS, json={**OWN, "id": "third"}, headers=KEY), 201)
    for answer in (
        api.post(f"{JOBS}/other/actions/run", headers=KEY),
        run_now(api, json={"a": 1}, headers=KEY),
        api.post(JOBS, json={**OWN, "id": "third", "hour": 7}, headers=KEY),
        api.post(JOBS, json={**OWN, "id": "fourth"}, headers=KEY),
    ):
        assert refusal(answer) == (400, "VALIDATION_ERROR")
        assert answer.get_json()["context"].items() >= {"field": "Idempotency-Key", "value": "9f1c-first"}.items()
    assert data(api.get(f"{JOBS}/other/history")) == []
    assert refusal(api.get(f"{JOBS}/fourth")) == (404, "NOT_FOUND")


def test_one_persons_key_is_not_anothers(api: FlaskClient, browser: FlaskClient) -> None:
    create(api, max_instances=2)
    runs = {data(run_now(client, headers=KEY))["run_id"] for client in (api, browser)}
    assert len(runs) == 2


def test_a_refused_request_leaves_its_key_free(api: FlaskClient, tmp_path: Path) -> None:
    create(api, task="wait", kwargs={"path": str(tmp_path / "go")})
    first = data(run_now(api))["run_id"]
    assert refusal(run_now(api, headers=KEY)) == (400, "VALIDATION_ERROR")
    (tmp_path / "go").touch()
    finished_run(api, first)
    started = run_now(api, headers=KEY)
    assert REPLAYED not in started.headers
    assert data(started)["run_id"] != first


def test_a_repeat_is_answered_though_it_would_be_refused_by_now(
    api: FlaskClient,
) -> None:
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    once = {"id": "once", "task": "note", "kwargs": {"path": "/dev/null"}, "trigger_type": "date", "run_date": soon}
    first = api.post(JOBS, json=once, headers=KEY)
    started = api.post(f"{JOBS}/once/actions/run", headers=KEY)
    finished_run(api, data(started)["run_id"])
    data(api.delete(f"{JOBS}/once"))
    replayed = api.post(JOBS, json=once, headers=KEY)
    assert data(replayed, 201)["id"] == data(first, 201)["id"]
    assert data(replayed, 201)["is_active"] is False
    assert data(api.post(f"{JOBS}/once/actions/run", headers=KEY)) == data(started)


def test_a_key_is_forgotten_after_a_day(api: FlaskClient, scheduling_runtime: Runtime) -> None:
    create(api)
    first = data(run_now(api, headers=KEY))["run_id"]
    finished_run(api, first)
    with write_transaction(scheduling_runtime.jobstore) as connection:
        day = 24 * 3600 * 1_000_000
        connection.execute(update(idempotency_keys).values(created_at=idempotency_keys.c.created_at - day))
    again = run_now(api, headers=KEY)
    assert REPLAYED not in again.headers
    assert data(again)["run_id"] != first


def test_other_actions_take_a_key_and_do_what_they_are_asked(api: FlaskClient) -> None:
    create(api)
    for action, state in [("pause", "STATE_PAUSED"), ("resume", "STATE_RUNNING"), ("pause", "STATE_PAUSED")]:
        answer = api.post(f"{JOBS}/mine/action", json={"action": action}, headers=KEY)
        assert data(answer)["state"] == state
        assert REPLAYED not in answer.headers


@pytest.mark.parametrize("key", ["!", "~" * 255, '"quoted,with=all;signs"', "550e8400-e29b-41d4-a716-446655440000"])
def test_any_visible_ascii_is_a_key(api: FlaskClient, key: str) -> None:
    create(api)
    data(run_now(api, headers={"Idempotency-Key": key}))
    assert run_now(api, headers={"Idempotency-Key": key}).headers[REPLAYED] == "true"


def test_the_description_tells_which_routes_take_it(scheduling_app: Flask) -> None:
    spec = scheduling_app.test_client().get("/api/v1/openapi.json").get_json()
    told = {
        (method, path)
        for path, methods in spec["paths"].items()
        for method, operation in methods.items()
        if any(parameter["name"] == "Idempotency-Key" for parameter in operation.get("parameters", ()))
    }
    assert told == {("post", JOBS), ("post", f"{JOBS}/{{job_id}}/actions/run"), ("post", f"{JOBS}/{{job_id}}/action")}
    created = spec["paths"][JOBS]["post"]["responses"]["201"]
    assert REPLAYED in created["headers"]
