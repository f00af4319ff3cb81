"""Health as the web tells it: the truth about stores and scheduler, not a flag."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask.testing import FlaskClient
from sqlalchemy import insert

from app.db.clock import now_us
from app.db.engines import create_engine_for, write_transaction
from app.db.jobstore_tables import nodes
from app.runtime import Runtime
from app.services.health_service import HEARTBEAT_FRESH_S

READY = "/api/v1/health/ready"


def add_node(
    runtime: Runtime, *, silent_s: float = 0.0, state: str = "running", node_id: str = "n1", kind: str = "scheduler"
) -> None:
    beat = now_us() - int(silent_s * 1_000_000)
    with write_transaction(runtime.jobstore) as connection:
        connection.execute(
            insert(nodes).values(
                node_id=node_id,
                kind=kind,
                name="n",
                version="0",
                state=state,
                started_at=beat,
                heartbeat_at=beat,
                stats="{}",
            )
        )


def test_ready_while_a_scheduler_beats(client: FlaskClient, runtime: Runtime) -> None:
    add_node(runtime)
    answer = client.get(READY)
    assert answer.status_code == 200
    data = answer.get_json()["data"]
    assert (data["jobstore"], data["database"], data["scheduler"]) == ("ok", "ok", "ok")
    assert 0 <= data["heartbeat_age_s"] < HEARTBEAT_FRESH_S


def test_not_ready_without_any_scheduler(client: FlaskClient) -> None:
    answer = client.get(READY)
    body = answer.get_json()
    assert (answer.status_code, body["message_code"]) == (503, "SERVICE_UNAVAILABLE")
    assert int(answer.headers["Retry-After"]) > 0
    assert body["context"] == {"jobstore": "ok", "database": "ok", "scheduler": "silent", "heartbeat_age_s": None}


@pytest.mark.parametrize(("silent_s", "state"), [(HEARTBEAT_FRESH_S + 1, "running"), (0.0, "stopped"), (0.0, "dead")])
def test_a_scheduler_that_is_gone_does_not_count(
    client: FlaskClient, runtime: Runtime, silent_s: float, state: str
) -> None:
    add_node(runtime, silent_s=silent_s, state=state)
    assert client.get(READY).get_json()["context"]["scheduler"] == "silent"


def test_a_worker_is_no_scheduler(client: FlaskClient, runtime: Runtime) -> None:
    add_node(runtime, kind="worker")
    assert client.get(READY).get_json()["context"]["scheduler"] == "silent"


def test_one_of_several_schedulers_is_enough(client: FlaskClient, runtime: Runtime) -> None:
    add_node(runtime, silent_s=3600)
    add_node(runtime, node_id="n2")
    assert client.get(READY).status_code == 200


@pytest.mark.parametrize("store", ["jobstore", "database"])
def test_a_store_out_of_reach_is_named(client: FlaskClient, runtime: Runtime, store: str, tmp_path: Path) -> None:
    add_node(runtime)
    folder = tmp_path / "not-a-file.db"
    folder.mkdir()
    getattr(runtime, store).dispose()
    setattr(runtime, store, create_engine_for(f"sqlite:///{folder}"))

    answer = client.get(READY)

    assert answer.status_code == 503
    assert answer.get_json()["context"][store] == "unreachable"
    assert str(folder) not in answer.get_data(as_text=True)
    for path in ("/api/v1/health/basic", "/api/v1/health/live"):
        assert client.get(path).status_code == 200


def test_a_request_to_a_store_out_of_reach_is_503(client: FlaskClient, runtime: Runtime, tmp_path: Path) -> None:
    runtime.database.dispose()
    runtime.database = create_engine_for(f"sqlite:///{tmp_path}")
    answer = client.post("/api/v1/auth/login", json={"username": "admin", "password": "x"})
    assert (answer.status_code, answer.get_json()["message_code"]) == (503, "SERVICE_UNAVAILABLE")
    assert int(answer.headers["Retry-After"]) > 0


def test_health_asks_for_no_login_and_sets_no_cookie(client: FlaskClient) -> None:
    answer = client.get("/api/v1/health/basic")
    assert answer.get_json()["success"] is True
    assert "Set-Cookie" not in answer.headers
