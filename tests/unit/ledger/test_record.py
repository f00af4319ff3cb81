"""The start's door, and the ends of runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from app.db.clock import to_us
from app.db.engines import write_transaction
from app.db.jobstore_tables import runs
from app.ledger.record import ERROR_LENGTH, Finish, record_finishes, record_missed, record_starts
from app.ledger.runs import Ticket

from .conftest import START, Store, seconds

T1 = to_us(START + seconds(1))


@pytest.fixture
def ticket(store: Store) -> Ticket:
    store.add()
    store.due_at(START)
    (claimed,) = store.claim(START).tickets
    return claimed


def start(store: Store, *tickets: Ticket, owner: str = "n1") -> Collection[str]:
    with write_transaction(store.engine) as connection:
        return record_starts(connection, tickets, owner=owner, node=f"name-of-{owner}", now=T1)


def finish(store: Store, ticket: Ticket, owner: str = "n1", **fields: Any) -> None:
    values: dict[str, Any] = {"outcome": "success", "duration": 5, **fields}
    with write_transaction(store.engine) as connection:
        record_finishes(connection, [Finish(ticket, **values)], owner=owner, now=T1)


def set_run(store: Store, **values: Any) -> None:
    with write_transaction(store.engine) as connection:
        connection.execute(update(runs).values(**values))


def test_the_door_opens_for_the_owner(store: Store, ticket: Ticket) -> None:
    assert start(store, ticket) == {ticket.run_id}
    (run,) = store.runs()
    assert (run["outcome"], run["started_at"], run["node"]) == ("running", T1, "name-of-n1")


@pytest.mark.parametrize(
    "meanwhile",
    [{"epoch": 2}, {"owner": "n2"}, {"outcome": "lost"}, {"outcome": "success"}, {"outcome": "cancelled"}],
)
def test_the_door_is_shut_when_the_run_is_no_longer_this_nodes(
    store: Store, ticket: Ticket, meanwhile: dict[str, Any]
) -> None:
    set_run(store, **meanwhile)
    assert start(store, ticket) == set()


def test_the_door_opens_once(store: Store, ticket: Ticket) -> None:
    start(store, ticket)
    assert start(store, ticket, owner="n2") == set()


def test_a_start_that_was_recorded_without_the_node_knowing_is_found(store: Store, ticket: Ticket) -> None:
    start(store, ticket)  # the commit came through, its answer did not
    assert start(store, ticket) == {ticket.run_id}


def test_a_batch_tells_the_open_doors_from_the_shut_ones(store: Store) -> None:
    for name in "abc":
        store.add(name)
        store.due_at(START, name)
    tickets = store.claim(START).tickets
    stale = replace(tickets[1], epoch=7)
    assert start(store, tickets[0], stale, tickets[2]) == {tickets[0].run_id, tickets[2].run_id}


def test_an_end_is_recorded_with_its_log(store: Store, ticket: Ticket) -> None:
    start(store, ticket)
    finish(store, ticket, outcome="failed", error="ValueError: no", log="line\n")
    (run,) = store.runs()
    assert (run["outcome"], run["error"], run["finished_at"]) == ("failed", "ValueError: no", T1 + 5)
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT log FROM run_logs").scalar_one() == "line\n"


def test_an_end_that_comes_twice_changes_nothing(store: Store, ticket: Ticket) -> None:
    start(store, ticket)
    finish(store, ticket, log="first")
    finish(store, ticket, outcome="failed", log="second")
    (run,) = store.runs()
    assert run["outcome"] == "success"


def test_a_long_error_is_cut(store: Store, ticket: Ticket) -> None:
    start(store, ticket)
    finish(store, ticket, outcome="failed", error="x" * 100_000)
    assert len(store.runs()[0]["error"]) < ERROR_LENGTH + 100


def test_a_run_presumed_lost_that_finishes_keeps_its_real_end(store: Store, ticket: Ticket) -> None:
    start(store, ticket)
    set_run(store, outcome="lost", reason="silent")
    finish(store, ticket)
    (run,) = store.runs()
    assert run["outcome"] == "success"
    assert "presumed lost" in run["reason"]


def test_a_run_presumed_lost_that_was_run_again_stays_lost(store: Store, ticket: Ticket) -> None:
    start(store, ticket)
    set_run(store, outcome="lost")
    again = {**store.runs()[0], "run_id": "f" * 32, "attempt": 2, "outcome": "pending"}
    with write_transaction(store.engine) as connection:
        connection.execute(runs.insert().values(**again))
    finish(store, ticket)
    assert [run["outcome"] for run in store.runs()] == ["lost", "pending"]


def test_a_run_that_could_not_start_in_time_is_missed(store: Store, ticket: Ticket) -> None:
    with write_transaction(store.engine) as connection:
        record_missed(connection, [ticket], owner="n1", now=T1)
    (run,) = store.runs()
    assert run["outcome"] == "missed"
    assert "grace time" in run["reason"]
    assert start(store, ticket) == set()


@pytest.mark.parametrize(("text", "kept"), [("a\0b", "a\\x00b"), ("no file \udcff", "no file \\udcff")])
def test_an_end_is_recorded_whatever_characters_it_brings(store: Store, ticket: Ticket, text: str, kept: str) -> None:
    start(store, ticket)
    finish(store, ticket, outcome="failed", error=text, log=text)
    (run,) = store.runs()
    assert (run["outcome"], run["error"]) == ("failed", kept)
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT log FROM run_logs").scalar_one() == kept


def test_a_run_that_is_on_record_as_started_is_not_missed(store: Store, ticket: Ticket) -> None:
    start(store, ticket)
    with write_transaction(store.engine) as connection:
        assert record_missed(connection, [ticket], owner="n1", now=T1).started == {ticket.run_id}
        assert record_missed(connection, [replace(ticket, epoch=2)], owner="n1", now=T1) == (set(), set())
    assert store.runs()[0]["outcome"] == "running"
