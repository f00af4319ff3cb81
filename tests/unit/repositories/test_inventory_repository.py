"""The inventory's queries against a real database file with the release's schema."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from app.db.clock import to_us
from app.db.engines import create_engine_for, read_transaction
from app.db.inventory_tables import (
    database_account_changes,
    database_accounts,
    database_instances,
    database_size_aggregations,
    database_sizes,
)
from app.db.migrate import ensure_schema
from app.inventory import Account, DatabaseSize, SqliteInstance
from app.inventory.aggregation import PERIODS, SizeReading, aggregate
from app.repositories.inventory_repository import InventoryRepository

SHANGHAI = ZoneInfo("Asia/Shanghai")
NOW = datetime(2026, 5, 20, 3, 0, tzinfo=SHANGHAI)


@pytest.fixture
def engine(tmp_path):
    engine = create_engine_for(f"sqlite:///{tmp_path}/whalefall.db")
    ensure_schema(engine, "app")
    yield engine
    engine.dispose()


@pytest.fixture
def repository(engine):
    repository = InventoryRepository(engine)
    repository.remember_instances([instance("shop"), instance("orders")], NOW)
    return repository


def instance(name: str, path: str = "x.db") -> SqliteInstance:
    return SqliteInstance.model_validate({"name": name, "kind": "sqlite", "path": path}, context=Path("/data"))


def account(name: str, host: str = "", *, locked: bool = False, admin: bool = False, **privileges) -> Account:
    return Account(name, host, locked, admin, privileges)


def rows(engine, table, *order):
    with read_transaction(engine) as connection:
        return [dict(row) for row in connection.execute(select(table).order_by(*order)).mappings()]


def everything(engine):
    tables = (database_instances, database_accounts, database_account_changes, database_sizes)
    return {table.name: rows(engine, table) for table in (*tables, database_size_aggregations)}


# -- instances ----------------------------------------------------------------------------------------------


def test_instances_that_are_no_longer_configured_stay_known(engine, repository):
    repository.remember_instances([instance("shop", "moved.db")], NOW + timedelta(days=1))
    assert [
        (row["name"], row["address"], row["is_configured"], row["first_seen_at"])
        for row in rows(engine, database_instances, database_instances.c.name)
    ] == [("orders", "/data/x.db", False, to_us(NOW)), ("shop", "/data/moved.db", True, to_us(NOW))]
    repository.remember_instances([], NOW)
    assert not any(row["is_configured"] for row in rows(engine, database_instances))


# -- accounts -----------------------------------------------------------------------------------------------


def test_accounts_are_added_changed_and_removed(engine, repository):
    first = [account("alice", roles=["r"]), account("bob", "%"), account("bob", "10.%")]
    changes = repository.store_accounts("shop", first, run_id="run1", at=NOW)
    assert changes.added == ["alice", "bob@%", "bob@10.%"]
    later = NOW + timedelta(days=1)
    second = [account("alice", roles=["r", "s"]), account("bob", "%", locked=True), account("eve", admin=True)]
    changes = repository.store_accounts("shop", second, run_id="run2", at=later)
    assert (changes.added, changes.changed, changes.removed, changes.unchanged) == (
        ["eve"],
        ["alice", "bob@%"],
        ["bob@10.%"],
        [],
    )
    stored = rows(engine, database_accounts, database_accounts.c.name, database_accounts.c.host)
    assert [(row["name"], row["host"], row["is_present"], row["is_locked"], row["is_superuser"]) for row in stored] == [
        ("alice", "", True, False, False),
        ("bob", "%", True, True, False),
        ("bob", "10.%", False, False, False),
        ("eve", "", True, False, True),
    ]
    assert json.loads(stored[0]["privileges"]) == {"roles": ["r", "s"]}
    assert (stored[0]["first_seen_at"], stored[0]["last_seen_at"]) == (to_us(NOW), to_us(later))
    assert (stored[2]["first_seen_at"], stored[2]["last_seen_at"]) == (to_us(NOW), to_us(NOW))
    noticed = rows(engine, database_account_changes, database_account_changes.c.id)
    assert [(row["run_id"], row["change"]) for row in noticed] == [
        *(("run1", "added"),) * 3,
        ("run2", "changed"),
        ("run2", "changed"),
        ("run2", "added"),
        ("run2", "removed"),
    ]
    alice = noticed[3]
    assert json.loads(alice["before"])["privileges"] == {"roles": ["r"]}
    assert json.loads(alice["after"])["privileges"] == {"roles": ["r", "s"]}
    assert noticed[0]["before"] is None
    assert noticed[-1]["after"] is None


def test_an_account_that_comes_back_is_added_again(engine, repository):
    repository.store_accounts("shop", [account("alice")], run_id="run1", at=NOW)
    repository.store_accounts("shop", [], run_id="run2", at=NOW)
    changes = repository.store_accounts("shop", [account("alice")], run_id="run3", at=NOW)
    assert changes.added == ["alice"]
    (row,) = rows(engine, database_accounts)
    assert row["is_present"]
    assert [row["change"] for row in rows(engine, database_account_changes)] == ["added", "removed", "added"]


def test_storing_the_same_accounts_twice_changes_nothing(engine, repository):
    accounts = [account("alice", b=[1], a={"y": 1, "x": 2}), account("bob", "%")]
    repository.store_accounts("shop", accounts, run_id="run1", at=NOW)
    before = everything(engine)
    same = [account("alice", a={"x": 2, "y": 1}, b=[1]), account("bob", "%")]
    changes = repository.store_accounts("shop", same, run_id="run1", at=NOW)
    assert changes.unchanged == ["alice", "bob@%"]
    assert everything(engine) == before
    repository.store_accounts("shop", same, run_id="run2", at=NOW)
    assert everything(engine) == before


def test_instances_do_not_touch_each_others_accounts(engine, repository):
    repository.store_accounts("shop", [account("alice")], run_id="run1", at=NOW)
    repository.store_accounts("orders", [account("alice", admin=True)], run_id="run1", at=NOW)
    repository.store_accounts("shop", [], run_id="run2", at=NOW)
    present = {(row["instance_id"], row["is_present"]) for row in rows(engine, database_accounts)}
    assert len(present) == 2
    assert {is_present for _, is_present in present} == {True, False}


# -- sizes --------------------------------------------------------------------------------------------------


def test_one_size_an_hour_is_kept(engine, repository):
    for minutes, size in ((0, 10), (30, 20), (59, 30), (60, 40)):
        moment = NOW + timedelta(minutes=minutes)
        repository.store_sizes("shop", [DatabaseSize("a", size), DatabaseSize("b", 1)], at=moment)
    stored = rows(engine, database_sizes, database_sizes.c.database_name, database_sizes.c.collected_at)
    assert [(row["database_name"], row["size_bytes"], row["collected_at"]) for row in stored] == [
        ("a", 30, to_us(NOW + timedelta(minutes=59))),
        ("a", 40, to_us(NOW + timedelta(minutes=60))),
        ("b", 1, to_us(NOW + timedelta(minutes=59))),
        ("b", 1, to_us(NOW + timedelta(minutes=60))),
    ]


def test_sizes_beyond_four_gigabytes_are_kept(engine, repository):
    repository.store_sizes("shop", [DatabaseSize("big", 2**60)], at=NOW)
    assert rows(engine, database_sizes)[0]["size_bytes"] == 2**60


def test_no_sizes_are_no_error(engine, repository):
    repository.store_sizes("shop", [], at=NOW)
    assert repository.instances_with_sizes() == []


# -- aggregations -------------------------------------------------------------------------------------------


def stored_aggregations(engine):
    table = database_size_aggregations
    return {(row["database_name"], row["period"], row["period_start"]): row for row in rows(engine, table, table.c.id)}


def test_aggregations_are_stored_once_and_renewed(engine, repository):
    repository.store_sizes("shop", [DatabaseSize("a", 100)], at=NOW)
    assert repository.instances_with_sizes() == ["shop"]
    assert len(repository.calculate_aggregations("shop", zone=SHANGHAI, at=NOW)) == 4
    before = everything(engine)
    repository.calculate_aggregations("shop", zone=SHANGHAI, at=NOW)
    assert everything(engine) == before

    repository.store_sizes("shop", [DatabaseSize("a", 150)], at=NOW + timedelta(days=1))
    repository.calculate_aggregations("shop", zone=SHANGHAI, at=NOW + timedelta(days=1))
    found = stored_aggregations(engine)
    assert sorted((period, start) for _, period, start in found) == [
        ("day", "2026-05-20"),
        ("day", "2026-05-21"),
        ("month", "2026-05-01"),
        ("quarter", "2026-04-01"),
        ("week", "2026-05-18"),
    ]
    month = found["a", "month", "2026-05-01"]
    assert {key: month[key] for key in month if key not in ("id", "instance_id", "calculated_at")} == {
        "database_name": "a",
        "period": "month",
        "period_start": "2026-05-01",
        "period_end": "2026-06-01",
        "timezone": "Asia/Shanghai",
        "readings": 2,
        "min_bytes": 100,
        "max_bytes": 150,
        "avg_bytes": 125,
        "first_bytes": 100,
        "last_bytes": 150,
        "growth_bytes": 50,
        "growth_percent": 50.0,
    }


def test_another_time_zone_calculates_all_anew(engine, repository):
    evening = datetime(2025, 12, 31, 20, 0, tzinfo=UTC)
    repository.store_sizes("shop", [DatabaseSize("a", 100)], at=evening)
    repository.calculate_aggregations("shop", zone=SHANGHAI, at=NOW)
    assert ("a", "quarter", "2026-01-01") in stored_aggregations(engine)
    repository.calculate_aggregations("shop", zone=ZoneInfo("America/New_York"), at=NOW)
    found = stored_aggregations(engine)
    assert {start for _, period, start in found if period == "quarter"} == {"2025-10-01"}
    assert {row["timezone"] for row in found.values()} == {"America/New_York"}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    days=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 10**12)), min_size=1, max_size=25),
    calculate_after=st.sets(st.integers(0, 24)),
)
def test_calculating_in_parts_is_calculating_all(tmp_path_factory, days, calculate_after):
    """However often and late it runs, the stored rows are those of all readings taken together."""
    folder = tmp_path_factory.mktemp("inventory")
    engine = create_engine_for(f"sqlite:///{folder}/whalefall.db")
    ensure_schema(engine, "app")
    repository = InventoryRepository(engine)
    repository.remember_instances([instance("shop")], NOW)
    moment = NOW - timedelta(days=200)
    readings = []
    for index, (gap, size) in enumerate(days):
        moment += timedelta(days=gap, hours=1)
        repository.store_sizes("shop", [DatabaseSize("a", size)], at=moment)
        readings.append(SizeReading("a", moment, size))
        if index in calculate_after:
            repository.calculate_aggregations("shop", zone=SHANGHAI, at=moment)
    repository.calculate_aggregations("shop", zone=SHANGHAI, at=moment)
    found = stored_aggregations(engine)
    engine.dispose()
    assert {one[1] for one in found} == set(PERIODS)
    assert {
        key: (row["readings"], row["min_bytes"], row["max_bytes"], row["avg_bytes"], row["growth_bytes"])
        for key, row in found.items()
    } == {
        (one.database, one.period, one.start.isoformat()): (
            one.readings,
            one.min_bytes,
            one.max_bytes,
            one.avg_bytes,
            one.growth_bytes,
        )
        for one in aggregate(readings, SHANGHAI)
    }
