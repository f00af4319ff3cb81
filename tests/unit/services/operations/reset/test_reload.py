"""The reload asks the API of a real server, and hands on what it says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.serving import make_server

from app import create_app
from app.ledger import NewJob
from app.runtime import Runtime, runtime_of
from app.scheduler import stop_scheduler
from app.services.operations.exports import read_export
from app.services.operations.failure import OperationFailed
from app.services.operations.reset.reload import reload_through_api
from tests.unit.services.operations.conftest import EVERY_NIGHT

Serve = Callable[[Flask], None]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serves an app where the command looks for the scheduler."""
    servers = []

    def start(app: Flask) -> None:
        server = make_server("127.0.0.1", 0, app)
        threading.Thread(target=server.serve_forever).start()
        servers.append(server)
        monkeypatch.setattr("app.services.operations.reset.reload.ADDRESS", f"http://127.0.0.1:{server.server_port}")

    yield start
    for server in servers:
        server.shutdown()


def test_defaults_are_back_and_the_export_is_named(runtime: Runtime, serve: Serve) -> None:
    scheduling = create_app(runtime.settings)
    try:
        serve(scheduling)
        ledger = runtime_of(scheduling).ledger
        ledger.add_job(NewJob(id="mine", task="purge_run_history", trigger=EVERY_NIGHT), "1")
        done = reload_through_api(runtime.settings)
        assert "mine" in done["deleted"]
        assert "mine" not in done["reloaded"]
        assert "sync_accounts" in done["reloaded"]
        assert done["failed"] == {}
        assert [job.id for job in read_export(Path(done["export"])).own_jobs] == ["mine"]
        assert ledger.get_job("mine") is None
    finally:
        stop_scheduler()


def test_process_without_a_scheduler_says_so(app: Flask, runtime: Runtime, serve: Serve) -> None:
    serve(app)
    with pytest.raises(OperationFailed, match="the scheduler refused to reload the jobs: "):
        reload_through_api(runtime.settings)
