"""Keys of repeated requests."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from sqlalchemy import update

from app.db.engines import write_transaction
from app.db.jobstore_tables import idempotency_keys
from app.errors import NotFound, ValidationError
from app.ledger import NewJob, RepeatedRequest, RepeatKey
from app.ledger.repeats import KEPT_S

from .conftest import EVERY_SECOND, Store

KEY = RepeatKey("run:alice", "k1", "f" * 64)


def test_a_repeat_starts_nothing_and_tells_what_came_of_the_first(store: Store) -> None:
    store.add(max_instances=3)
    run = store.ledger.request_run("job", "alice", repeat=KEY)
    with pytest.raises(RepeatedRequest) as told:
        store.ledger.request_run("job", "alice", repeat=KEY)
    assert told.value.resource == run.run_id
    assert len(store.runs(kind="manual")) == 1


def test_another_key_and_another_scope_are_other_requests(store: Store) -> None:
    store.add(max_instances=5)
    for repeat in (KEY, replace(KEY, key="k2"), replace(KEY, scope="run:bob")):
        store.ledger.request_run("job", "alice", repeat=repeat)
    assert len(store.runs(kind="manual")) == 3


def test_a_key_that_was_used_for_another_request_is_refused(store: Store) -> None:
    store.add(max_instances=3)
    store.ledger.request_run("job", "alice", repeat=KEY)
    with pytest.raises(ValidationError) as refusal:
        store.ledger.request_run("job", "alice", repeat=replace(KEY, fingerprint="0" * 64))
    assert refusal.value.field == "Idempotency-Key"
    assert len(store.runs(kind="manual")) == 1


def test_a_refused_request_leaves_its_key_free(store: Store) -> None:
    with pytest.raises(NotFound):
        store.ledger.request_run("job", "alice", repeat=KEY)
    store.add()
    store.ledger.request_run("job", "alice", repeat=KEY)


def test_a_created_job_is_created_once(store: Store) -> None:
    new = NewJob(id="own", task="sample", trigger=EVERY_SECOND)
    store.ledger.add_job(new, "alice", repeat=KEY)
    with pytest.raises(RepeatedRequest) as told:
        store.ledger.add_job(new, "alice", repeat=KEY)
    assert told.value.resource == "own"


def test_a_key_is_forgotten_after_a_day(store: Store) -> None:
    store.add(max_instances=3)
    store.ledger.request_run("job", "alice", repeat=KEY)
    with write_transaction(store.engine) as connection:
        aged = idempotency_keys.c.created_at - (KEPT_S + 1) * 1_000_000
        connection.execute(update(idempotency_keys).values(created_at=aged))
    store.ledger.request_run("job", "alice", repeat=KEY)
    assert len(store.runs(kind="manual")) == 2


def test_of_many_at_once_one_is_carried_out(store: Store) -> None:
    store.add(max_instances=10)
    ids: list[str] = []

    def ask() -> None:
        try:
            ids.append(store.ledger.request_run("job", "alice", repeat=KEY).run_id)
        except RepeatedRequest as told:
            ids.append(told.resource)

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 10
    assert len(set(ids)) == 1
    assert len(store.runs(kind="manual")) == 1
