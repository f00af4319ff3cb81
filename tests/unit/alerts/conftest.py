"""A real store with an outbox, a real receiver, and senders that a test starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, update

from app.alerts import sender as sender_module
from app.alerts.letters import alert_letter, ping_letter
from app.alerts.outbox import Kind
from app.alerts.sender import Sender
from app.db.clock import now_us
from app.db.engines import create_engine_for, write_transaction
from app.db.jobstore_tables import outbox
from app.db.migrate import ensure_schema
from app.ledger.run_ids import new_run_id
from e2e.harness.receiver import Receiver

RUN_ID = "0193f0a0c0de7abc8def0123456789ab"


@dataclass
class Outbox:
    """The table under test."""

    engine: Engine

    def put(self, kind: Kind, payload: dict[str, Any] | str, *, url: str | None = None, age_s: float = 0.0) -> str:
        """A row as the ledger writes it; its id."""
        at = now_us() - round(age_s * 1_000_000)
        row_id = new_run_id(at)
        with write_transaction(self.engine) as connection:
            connection.execute(
                insert(outbox).values(
                    id=row_id,
                    kind=kind,
                    url=url,
                    payload=payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False),
                    created_at=at,
                    next_try_at=at,
                )
            )
        return row_id

    def put_alert(self, number: int = 0, **options: Any) -> str:
        return self.put("alert", {"event": "run.failed", "job_id": "job", "error": f"第 {number}"}, **options)

    def put_ping(self, url: str, signal: str = "success", **options: Any) -> str:
        payload = {"signal": signal, "run_id": RUN_ID, "job_id": "job", "log": "done\n"}
        return self.put("ping", payload, url=url, **options)

    def rows(self) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(select(outbox).order_by(outbox.c.id)).mappings()]

    def is_empty(self) -> bool:
        return not self.rows()

    def make_due(self) -> None:
        """As if the time of every next try had come."""
        with write_transaction(self.engine) as connection:
            connection.execute(update(outbox).values(next_try_at=0))


def open_store(folder: Path) -> Engine:
    engine = create_engine_for(f"sqlite:///{folder}/scheduler.db", busy_timeout_s=5)
    ensure_schema(engine, "jobstore")
    return engine


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Outbox]:
    engine = open_store(tmp_path)
    yield Outbox(engine)
    engine.dispose()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as listening:
        yield listening


@pytest.fixture
def start_sender(box: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Sender]]:
    """Starts a sender of alerts to the receiver, or of pings; all are stopped at the end."""
    monkeypatch.setattr(sender_module, "LOOK_S", 0.05)
    started: list[Sender] = []

    def start(kind: Kind = "alert", engine: Engine | None = None) -> Sender:
        webhook = receiver.url("/hook?token=sesame")
        made = Sender(
            engine or box.engine,
            kind,
            letter=ping_letter if kind == "ping" else partial(alert_letter, webhook_url=webhook),
            address=(lambda message: message.url or "") if kind == "ping" else (lambda _message: webhook),
        )
        made.start()
        started.append(made)
        return made

    yield start
    for one in started:
        one.begin_stop(0)
        one.join(20)
