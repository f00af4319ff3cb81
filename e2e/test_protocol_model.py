"""The model of tests/model on a real PostgreSQL: transactions are open side by side, and every statement is a step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from e2e.harness.postgres_server import PostgresServer
from tests.model.histories import SINGLE, Search
from tests.model.mutants import CONCURRENT_MUTANTS, CORE_MUTANTS, Mutant
from tests.model.scenarios import BACKLOG, EDITED, LONG, PLAIN, RETRIED, SCENARIOS, WAITING
from tests.model.stores import PostgreSQLStore, SQLiteStore
from tests.model.world import Violation


@pytest.fixture(autouse=True)
def _no_logs() -> Iterator[None]:
    """A search logs hundreds of thousands of lines about faults that it made itself."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def search(server: PostgresServer, tmp_path: Path) -> Iterator[Callable[..., Search]]:
    """A search on a new database."""
    made: list[PostgreSQLStore] = []
    numbers = count()

    def make(*, unique_fires: bool = True) -> Search:
        store = PostgreSQLStore(server.new_database(f"model{next(numbers)}"))
        made.append(store)
        store.make_tables(unique_fires=unique_fires)
        return Search(store, tmp_path)

    yield make
    for store in made:
        store.close()


@pytest.mark.timeout(300)
def test_another_node_goes_first_at_any_statement(search: Callable[..., Search]) -> None:
    search().race((PLAIN,), stride=2)


@pytest.mark.timeout(300)
def test_faults_at_any_statement(search: Callable[..., Search]) -> None:
    search().sweep((PLAIN,), ("freeze",), stride=2)
    search().sweep((RETRIED,), ("error",), stride=5)


@pytest.mark.timeout(300)
def test_faults_in_any_order(search: Callable[..., Search]) -> None:
    search().at_random((PLAIN, EDITED, RETRIED), 50)


@pytest.mark.faults_long
@pytest.mark.timeout(1800)
def test_many_more_histories(search: Callable[..., Search]) -> None:
    made = search()
    made.race((PLAIN, EDITED, WAITING))
    made.sweep(SCENARIOS, stride=3)
    made.chain((WAITING, BACKLOG), gaps=(40,), stride=3)
    made.overlap((LONG, PLAIN))
    made.edit((EDITED, RETRIED))
    made.at_random(SCENARIOS, 500)


@pytest.mark.faults_long
@pytest.mark.timeout(1800)
def test_many_more_histories_on_sqlite(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "scheduler.db")
    store.make_tables()
    made = Search(store, tmp_path)
    made.sweep(SCENARIOS, (*SINGLE, "stop", "lose", "join"))
    made.chain(SCENARIOS, stride=2)
    made.overlap((LONG, PLAIN, RETRIED))
    made.edit(SCENARIOS)
    made.at_random(SCENARIOS, 1500)
    store.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", [*CONCURRENT_MUTANTS, *CORE_MUTANTS], ids=lambda mutant: mutant.name)
def test_a_rule_taken_away_is_missed(search: Callable[..., Search], mutant: Mutant) -> None:
    made = search(unique_fires=mutant.unique_fires)
    with mutant.applied(), pytest.raises(Violation, match=mutant.breaks):
        mutant.seek(made)
