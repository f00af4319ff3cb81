"""What is said of stores; of damaged files, see tests/unit/test_cli.py."""

from __future__ import annotations

from dataclasses import replace

from app.services.operations.stores.state import check_databases
from app.settings import Settings


def test_a_server_out_of_reach_is_told_without_its_password(settings: Settings) -> None:
    url = "postgresql+psycopg://whalefall:secret@127.0.0.1:9/jobs"
    [state] = check_databases(replace(settings, jobstore_url=url), ["jobstore"])
    assert state.file == "postgresql://127.0.0.1:9/jobs"
    assert state.problem is not None
    assert "refused" in state.problem
    assert "secret" not in state.problem
