"""Queries of the database inventory. A method is one transaction; running it twice changes nothing more."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any

from sqlalchemy import Connection, Engine, Table, and_, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.db.clock import from_us, to_us
from app.db.engines import read_transaction, write_transaction
from app.db.inventory_tables import (
    database_account_changes,
    database_accounts,
    database_instances,
    database_size_aggregations,
    database_sizes,
)
from app.inventory.aggregation import SizeAggregation, SizeReading, aggregate, period_of
from app.inventory.instances import Instance
from app.inventory.readings import Account, DatabaseSize

_OVERLAP = timedelta(days=1)
"""Readings younger than this before the last calculation are taken again: another process may have been about
to store them."""


@dataclass
class AccountChanges:
    """Names (`name@host` where there is a host) of what a sync found."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)


class InventoryRepository:
    """The inventory in the app's database. Moments are aware datetimes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def remember_instances(self, instances: Sequence[Instance], at: datetime) -> None:
        """Record `instances` as the configured ones; others that are known stay, as not configured."""
        table = database_instances
        with write_transaction(self._engine) as connection:
            names = [instance.name for instance in instances]
            connection.execute(update(table).where(table.c.name.not_in(names)).values(is_configured=False))
            for instance in instances:
                _upsert(
                    connection,
                    table,
                    [
                        {
                            "name": instance.name,
                            "kind": instance.kind,
                            "address": instance.address[:500],
                            "is_configured": True,
                            "first_seen_at": to_us(at),
                        }
                    ],
                    key=("name",),
                    keep=("first_seen_at",),
                )

    def store_accounts(
        self, instance: str, accounts: Sequence[Account], *, run_id: str, at: datetime
    ) -> AccountChanges:
        """Make the stored accounts of `instance` equal to `accounts`; record what changed under `run_id`."""
        changes = AccountChanges()
        table = database_accounts
        with write_transaction(self._engine) as connection:
            instance_id = _instance_id(connection, instance)
            rows = connection.execute(select(table).where(table.c.instance_id == instance_id)).mappings()
            stored = {(row["name"], row["host"]): row for row in rows}
            record = _ChangeRecorder(connection, run_id, to_us(at))
            for account in accounts:
                values = {**_state(account), "is_present": True, "last_seen_at": to_us(at)}
                name = f"{account.name}@{account.host}" if account.host else account.name
                row = stored.pop((account.name, account.host), None)
                if row is None:
                    new = insert(table).values(
                        instance_id=instance_id,
                        name=account.name,
                        host=account.host,
                        first_seen_at=to_us(at),
                        **values,
                    )
                    record(connection.scalars(new.returning(table.c.id)).one(), "added", None, values)
                    changes.added.append(name)
                    continue
                connection.execute(update(table).where(table.c.id == row["id"]).values(**values))
                if not row["is_present"]:
                    record(row["id"], "added", None, values)
                    changes.added.append(name)
                elif any(row[key] != values[key] for key in _STATE):
                    record(row["id"], "changed", row, values)
                    changes.changed.append(name)
                else:
                    changes.unchanged.append(name)
            for (name, host), row in sorted(stored.items()):
                if row["is_present"]:
                    connection.execute(update(table).where(table.c.id == row["id"]).values(is_present=False))
                    record(row["id"], "removed", row, None)
                    changes.removed.append(f"{name}@{host}" if host else name)
        return changes

    def store_sizes(self, instance: str, sizes: Sequence[DatabaseSize], *, at: datetime) -> None:
        """Record the sizes of an instance's databases; a reading of the same UTC hour is replaced."""
        hour = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        with write_transaction(self._engine) as connection:
            instance_id = _instance_id(connection, instance)
            rows = [
                {
                    "instance_id": instance_id,
                    "database_name": size.database,
                    "hour": to_us(hour),
                    "size_bytes": size.size_bytes,
                    "collected_at": to_us(at),
                }
                for size in sizes
            ]
            _upsert(connection, database_sizes, rows, key=("instance_id", "database_name", "hour"))

    def instances_with_sizes(self) -> list[str]:
        """Names of the instances that have readings, sorted."""
        table = database_instances
        has_sizes = select(database_sizes.c.id).where(database_sizes.c.instance_id == table.c.id).exists()
        with read_transaction(self._engine) as connection:
            return list(connection.scalars(select(table.c.name).where(has_sizes).order_by(table.c.name)))

    def calculate_aggregations(self, instance: str, *, zone: tzinfo, at: datetime) -> list[SizeAggregation]:
        """Calculate again every period of `instance` that may have changed, and return those.

        That is everything since the beginning of the quarter of the oldest reading that is newer than the
        last calculation, or of the present quarter; all of it, when the time zone is another one.
        """
        table = database_size_aggregations
        with write_transaction(self._engine) as connection:
            instance_id = _instance_id(connection, instance)
            ours = table.c.instance_id == instance_id
            since = _calculate_from(connection, instance_id, zone, at)
            aggregations = aggregate(_readings(connection, instance_id, since, zone), zone)
            if since is None:
                connection.execute(delete(table).where(ours))
            else:  # months and quarters that began earlier were read in part only, and have not changed
                aggregations = [found for found in aggregations if found.start >= since]
            rows = [
                {
                    "instance_id": instance_id,
                    "database_name": found.database,
                    "period": found.period,
                    "period_start": found.start.isoformat(),
                    "period_end": found.end.isoformat(),
                    "timezone": str(zone),
                    "readings": found.readings,
                    "min_bytes": found.min_bytes,
                    "max_bytes": found.max_bytes,
                    "avg_bytes": found.avg_bytes,
                    "first_bytes": found.first_bytes,
                    "last_bytes": found.last_bytes,
                    "growth_bytes": found.growth_bytes,
                    "growth_percent": found.growth_percent,
                    "calculated_at": to_us(at),
                }
                for found in aggregations
            ]
            key = ("instance_id", "database_name", "period", "period_start")
            _upsert(connection, table, rows, key=key)
        return aggregations


_STATE = ("is_locked", "is_superuser", "privileges")


def _state(account: Account) -> dict[str, Any]:
    return {
        "is_locked": account.is_locked,
        "is_superuser": account.is_superuser,
        "privileges": json.dumps(account.privileges, sort_keys=True, ensure_ascii=False),
    }


class _ChangeRecorder:
    def __init__(self, connection: Connection, run_id: str, at_us: int) -> None:
        self._connection = connection
        self._run_id = run_id
        self._at_us = at_us

    def __call__(self, account_id: int, change: str, before: Any, after: Any) -> None:
        row = {
            "account_id": account_id,
            "run_id": self._run_id,
            "change": change,
            "before": _state_json(before),
            "after": _state_json(after),
            "noticed_at": self._at_us,
        }
        _upsert(self._connection, database_account_changes, [row], key=("account_id", "run_id"))


def _state_json(values: Any) -> str | None:
    if values is None:
        return None
    state = {key: values[key] for key in _STATE}
    state["privileges"] = json.loads(state["privileges"])
    return json.dumps(state, sort_keys=True, ensure_ascii=False)


def _instance_id(connection: Connection, name: str) -> int:
    table = database_instances
    # Locked, where a row can be: two runs on one instance take turns.
    query = select(table.c.id).where(table.c.name == name).with_for_update()
    return int(connection.execute(query).scalar_one())


def _calculate_from(connection: Connection, instance_id: int, zone: tzinfo, at: datetime) -> date | None:
    """The day from which on periods are calculated again; None: all of them."""
    done, sizes = database_size_aggregations, database_sizes
    ours = done.c.instance_id == instance_id
    last, zones = connection.execute(
        select(func.max(done.c.calculated_at), func.count().filter(done.c.timezone != str(zone))).where(ours)
    ).one()
    if last is None or zones:
        return None
    fresh = and_(sizes.c.instance_id == instance_id, sizes.c.collected_at > to_us(from_us(last) - _OVERLAP))
    oldest = connection.execute(select(func.min(sizes.c.collected_at)).where(fresh)).scalar_one()
    moment = at if oldest is None else min(at, from_us(oldest))
    start, _ = period_of(moment.astimezone(zone).date(), "quarter")
    # The quarter's first week begins in the quarter before.
    monday, _ = period_of(start, "week")
    return monday


def _readings(connection: Connection, instance_id: int, since: date | None, zone: tzinfo) -> list[SizeReading]:
    table = database_sizes
    query = select(table.c.database_name, table.c.collected_at, table.c.size_bytes)
    query = query.where(table.c.instance_id == instance_id)
    if since is not None:
        midnight = datetime(since.year, since.month, since.day, tzinfo=zone)
        query = query.where(table.c.collected_at >= to_us(midnight))
    return [SizeReading(name, from_us(at), size) for name, at, size in connection.execute(query)]


def _upsert(
    connection: Connection,
    table: Table,
    rows: Sequence[dict[str, Any]],
    *,
    key: Sequence[str],
    keep: Sequence[str] = (),
) -> None:
    """Insert, or rewrite the row with the same unique `key`, but for the columns `keep`."""
    if not rows:
        return
    build: Callable[..., Any] = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = build(table)
    rewritten = {name: statement.excluded[name] for name in rows[0] if name not in key and name not in keep}
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=rewritten), list(rows))
