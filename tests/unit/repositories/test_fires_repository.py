"""What is read around a fire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import insert

from app.db.clock import to_us
from app.db.engines import write_transaction
from app.db.jobstore_tables import runs
from app.repositories.fires_repository import EDITS, FiresRepository
from app.runtime import Runtime
from tests.unit.ledger.run_rows import run_row

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def fires(runtime: Runtime) -> FiresRepository:
    return FiresRepository(runtime.jobstore, runtime.database)


def add(runtime: Runtime, moment: datetime, **values: Any) -> str:
    claimed = {"claimed_at": to_us(values.pop("claimed_at", moment))}
    limits = {"max_instances": 2, "misfire_grace_time": 7}
    row = run_row(values.pop("job_id", "job"), to_us(moment), **claimed | limits | values)
    with write_transaction(runtime.jobstore) as connection:
        connection.execute(insert(runs), [row])
    return str(row["run_id"])


def test_rows_with_a_moment_in_a_stretch(runtime: Runtime, fires: FiresRepository) -> None:
    add(runtime, NOON - MINUTE)
    inside = [add(runtime, NOON), add(runtime, NOON + MINUTE, kind="manual")]
    add(runtime, NOON + 2 * MINUTE)  # the end is not in it
    add(runtime, NOON, job_id="other")
    fold = add(runtime, NOON + 9 * MINUTE, scheduled_from=to_us(NOON + MINUTE), count=9, outcome="missed")
    add(runtime, NOON + 20 * MINUTE, scheduled_from=to_us(NOON + 12 * MINUTE), count=8, outcome="missed")
    found = fires.rows_between("job", NOON, NOON + 2 * MINUTE, limit=10)
    assert [fire.run.run_id for fire in found] == [*inside, fold]
    assert (found[0].grace_s, found[0].max_instances) == (7, 2)
    assert fires.rows_between("nobody", NOON, NOON + MINUTE, limit=10) == []


def test_what_was_going_on(runtime: Runtime, fires: FiresRepository) -> None:
    def run(began: int, ended: int | None, **values: Any) -> str:
        times = {"started_at": to_us(NOON + began * MINUTE)}
        times |= {"finished_at": None if ended is None else to_us(NOON + ended * MINUTE)}
        return add(runtime, NOON + began * MINUTE, **times, **values)

    there = [run(-3, 1), run(-2, None), run(-1, 5, job_id="other", executor="process")]
    run(-5, 0)
    run(1, 2)
    add(runtime, NOON - 4 * MINUTE, outcome="skipped")
    assert [each.run_id for each in fires.going_on(NOON)] == there
    assert [each.run_id for each in fires.going_on(NOON, job_id="job")] == there[:2]
    assert [each.run_id for each in fires.going_on(NOON, executor="process")] == there[2:]


def test_claims_around_a_stretch(runtime: Runtime, fires: FiresRepository) -> None:
    around = fires.claims_around(NOON, NOON + MINUTE)
    assert (around.last_before, around.first_between) == (None, None)
    for minutes in (-9, -2, 3):
        add(runtime, NOON + minutes * MINUTE)
    add(runtime, NOON + MINUTE / 2, kind="manual")  # needs no scheduler
    around = fires.claims_around(NOON, NOON + MINUTE)
    assert (around.last_before, around.first_between) == (NOON - 2 * MINUTE, None)
    for seconds in (40, 20):
        add(runtime, NOON + timedelta(seconds=seconds), job_id="other")
    assert fires.claims_around(NOON, NOON + MINUTE).first_between == NOON + timedelta(seconds=20)


def test_what_one_look_claimed(runtime: Runtime, fires: FiresRepository) -> None:
    missed = add(runtime, NOON, claimed_at=NOON + 9 * MINUTE, outcome="missed")
    add(runtime, NOON + 9 * MINUTE, job_id="other")
    latest = add(runtime, NOON + 8 * MINUTE, claimed_at=NOON + 9 * MINUTE)
    [fire] = fires.rows_between("job", NOON, NOON + MINUTE, limit=5)
    assert fire.run.run_id == missed
    assert [run.run_id for run in fires.claimed_with(fire.run)] == [latest]
    assert len(fires.claimed_at(NOON + 9 * MINUTE)) == 3


def test_real_requests_are_found_in_the_audit_log(
    runtime: Runtime, fires: FiresRepository, token_client: FlaskClient
) -> None:
    """The endpoints and paths of the API, as the audit log writes them, are those that are looked for."""
    for job_id in ("job", "other"):
        job = f"/api/v1/scheduler/jobs/{job_id}"
        for action in ("pause", "resume", "run", "restore"):
            token_client.post(f"{job}/actions/{action}")
        token_client.put(job, json={})
        token_client.delete(job)
        token_client.post(f"{job}/action", json={"action": "enable"})
    token_client.post("/api/v1/scheduler/jobs/actions/reload")
    assert fires.edits("job") == []  # a process without a scheduler refused them all
    with write_transaction(runtime.database) as connection:
        connection.exec_driver_sql("UPDATE audit_log SET status = 200")
    edits = fires.edits("job")
    assert [edit.kind for edit in edits] == ["pause", "resume", "restore", "change", "delete", "act", "reload"]
    assert {edit.actor for edit in edits} == {"api-token"}
    # A request that is refused before its body is read may have asked for either of these.
    assert {edit.kind for edit in edits} == set(EDITS.values()) - {"enable", "disable"}
