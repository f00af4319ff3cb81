"""Names of those whom the ledger knows by a number."""

from __future__ import annotations

from app.runtime import Runtime
from app.services.accounts.user_names import names_of


def test_names_of(runtime: Runtime) -> None:
    creators = ["1", None, "", "api-token", "schedule", "999", "9" * 40, "１"]
    assert names_of(runtime.database, creators) == {"1": "admin"}
    assert names_of(runtime.database, ["system"]) == {}
