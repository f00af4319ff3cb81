"""An app without a scheduler, as the web process has it, with jobs and runs in its store."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import insert

from app import create_app
from app.db.account_tables import users
from app.db.clock import to_us
from app.db.engines import write_transaction
from app.db.jobstore_tables import nodes, run_logs, runs
from app.ledger import NewJob
from app.runtime import Runtime, runtime_of
from app.services.accounts.passwords import hash_password
from app.settings import Settings
from tests.unit.ledger.run_rows import run_row

PASSWORD = "whale-fall-of-tests"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    settings = Settings.load(
        {
            "USERDATA_DIR": str(tmp_path),
            "SECRET_KEY": "0123456789abcdef0123456789abcdef",
            "ADMIN_PASSWORD": PASSWORD,
            "API_TOKEN": "token-0123456789abcdef",
        }
    )
    return create_app(settings, init_scheduler_on_start=False)


@pytest.fixture
def runtime(app: Flask) -> Runtime:
    return runtime_of(app)


@pytest.fixture
def visitor(app: Flask) -> FlaskClient:
    """A browser without a session."""
    return app.test_client()


@pytest.fixture
def reader(app: Flask) -> FlaskClient:
    """A browser with the admin's session, reading Chinese."""
    client = app.test_client()
    answer = client.post("/api/v1/auth/login", json={"username": "admin", "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    return client


@pytest.fixture
def onlooker(app: Flask, runtime: Runtime) -> FlaskClient:
    """A browser with the session of a user who may look but not change."""
    now = to_us(datetime.now(UTC))
    with write_transaction(runtime.database) as connection:
        connection.execute(
            insert(users).values(
                username="onlooker",
                password_hash=hash_password(PASSWORD),
                session_stamp="stamp",
                role="view",
                is_active=True,
                created_at=now,
                updated_at=now,
            )
        )
    client = app.test_client()
    answer = client.post("/api/v1/auth/login", json={"username": "onlooker", "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    return client


@pytest.fixture
def add_job(runtime: Runtime) -> Callable[..., None]:
    def add(job_id: str, **settings: Any) -> None:
        trigger = settings.pop("trigger", {"type": "cron", "hour": "3", "timezone": "Asia/Shanghai"})
        task = settings.pop("task", "sync_accounts")
        runtime.ledger.add_job(NewJob(id=job_id, task=task, trigger=trigger, **settings), by="test")

    return add


@pytest.fixture
def add_run(runtime: Runtime) -> Callable[..., str]:
    """Puts a row into the ledger: `add_run("job", outcome="failed", log="...")`; its id."""
    made = 0

    def add(job_id: str, *, log: str = "", at: datetime | None = None, **fields: Any) -> str:
        nonlocal made
        made += 1
        at = at or datetime.now(UTC) - timedelta(minutes=10)
        run_id = f"{int(at.timestamp() * 1000):012x}7{made:03x}{'8':0<16}"
        outcome = fields.pop("outcome", "success")
        row = run_row(
            job_id,
            to_us(at) + made,
            **{
                "run_id": run_id,
                "task": "sync_accounts",
                "outcome": outcome,
                "node": "node-1",
                "claimed_at": to_us(at),
                "started_at": to_us(at) + 2_000,
                "finished_at": None if outcome in ("pending", "running") else to_us(at) + 1_502_000,
                **fields,
            },
        )
        with write_transaction(runtime.jobstore) as connection:
            connection.execute(insert(runs).values(row))
            if log:
                connection.execute(insert(run_logs).values(run_id=run_id, log=log))
        return run_id

    return add


@pytest.fixture
def add_node(runtime: Runtime) -> Callable[..., None]:
    def add(name: str, *, state: str = "running", silent_s: float = 0.0, stats: Any = None, **fields: Any) -> None:
        now = to_us(datetime.now(UTC))
        with write_transaction(runtime.jobstore) as connection:
            connection.execute(
                insert(nodes).values(
                    {
                        "node_id": f"{name:0<32}"[:32],
                        "name": name,
                        "version": "0.1.0",
                        "state": state,
                        "started_at": now - 3_600_000_000,
                        "heartbeat_at": now - int(silent_s * 1_000_000),
                        "stats": json.dumps(stats or {}),
                        **fields,
                    }
                )
            )

    return add
