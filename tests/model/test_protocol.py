"""The ledger's protocol on SQLite: no history of faults breaks a promise, and without any of its rules one does.

The promises, checked in every history: each moment that a trigger implies, computed by arithmetic, has exactly one
outcome; no run and no fire is started twice; a later attempt follows only where the job's policy allows it, and
always where it demands it; what is on record of an end is what happened; nothing is called lost on a node that beats;
no more instances than `max_instances` work together; and when the faults are over, nothing stays pending or running.

PostgreSQL, and many more histories on both: e2e/test_protocol_model.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.model.histories import Search
from tests.model.mutants import MUTANTS, Mutant
from tests.model.scenarios import ALONE, BACKLOG, EDITED, LOCK_FILES, LONG, PLAIN, RETRIED, SCENARIOS, WAITING
from tests.model.stores import SQLiteStore
from tests.model.world import Violation


@pytest.fixture
def search(tmp_path: Path) -> Iterator[Callable[..., Search]]:
    """A search on a new store."""
    made: list[SQLiteStore] = []

    def make(*, unique_fires: bool = True) -> Search:
        store = SQLiteStore(tmp_path / f"scheduler{len(made)}.db")
        made.append(store)
        store.make_tables(unique_fires=unique_fires)
        return Search(store, tmp_path)

    yield make
    for store in made:
        store.close()


@pytest.mark.timeout(120)
def test_every_fault_at_every_step(search: Callable[..., Search]) -> None:
    made = search()
    made.sweep((PLAIN,))
    made.sweep((LOCK_FILES,), ("freeze", "crash"), stride=2)
    made.sweep((RETRIED,), ("freeze",), stride=4)
    made.sweep((ALONE,), ("error",))
    made.sweep((PLAIN,), ("stop", "lose"), stride=3)


@pytest.mark.timeout(120)
def test_every_edit_in_every_second(search: Callable[..., Search]) -> None:
    search().edit((EDITED,))


@pytest.mark.timeout(120)
def test_a_node_that_wakes_with_an_old_view(search: Callable[..., Search]) -> None:
    search().chain((WAITING, BACKLOG), gaps=(25,), stride=2)


@pytest.mark.timeout(120)
def test_a_reaper_that_froze_between_its_look_and_its_recovery(search: Callable[..., Search]) -> None:
    search().overlap((LONG,))


@pytest.mark.timeout(120)
def test_faults_in_any_order(search: Callable[..., Search]) -> None:
    search().at_random(SCENARIOS, 100)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_rule_taken_away_is_missed(search: Callable[..., Search], mutant: Mutant) -> None:
    made = search(unique_fires=mutant.unique_fires)
    with mutant.applied(), pytest.raises(Violation, match=mutant.breaks):
        mutant.seek(made)
