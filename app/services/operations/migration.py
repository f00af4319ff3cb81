"""The migration of an upgrade: in one transaction a store, in which nothing may get lost, and after which the release
that is still running can go on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from sqlalchemy import Connection, Engine, func, inspect, select, table, text
from sqlalchemy.exc import OperationalError

from app.db.engines import create_engine_for, read_transaction
from app.db.jobstore_tables import holds
from app.db.migrate import (
    COMPATIBILITY_TABLES,
    HEADS,
    VERSION_TABLES,
    Store,
    current_revision,
    is_newer_and_usable,
    schema_transaction,
    upgrade_schema,
)
from app.services.operations.failure import OperationFailed
from app.services.operations.stores.files import store_url
from app.settings import Settings
from app.version import VERSION

STORES: tuple[Store, ...] = get_args(Store)
_HOLDS_SINCE = "0003"
_DEADLOCK = "40P01"
_ATTEMPTS = 5
_PAUSE_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Migrated:
    """What became of one store; `before` is None where it held nothing. `rows` are those of every table before and
    after, which are the same; empty where nothing was to be done."""

    store: Store
    before: str | None
    after: str
    rows: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def parse_revisions(words: str) -> dict[Store, str]:
    """`jobstore=0002,app=0001` as a release says it of itself; OperationFailed for anything else."""
    found: dict[Store, str] = {}
    for word in words.split(","):
        name, _, revision = word.strip().partition("=")
        store = next((store for store in STORES if store == name), None)
        if store is None or not (revision.isascii() and revision.isdigit() and len(revision) == 4):
            raise OperationFailed(f"revisions are {words!r}; accepted: such as jobstore=0002,app=0001")
        found[store] = revision
    if set(found) != set(STORES):
        raise OperationFailed(f"revisions are {words!r}; accepted: one of each of {', '.join(STORES)}")
    return found


def migrate_stores(settings: Settings, *, usable_for: Mapping[Store, str]) -> list[Migrated]:
    """Brings both stores to this release's schema.

    Each in one transaction, which is taken back, with OperationFailed, where a table lost or gained rows, or where the
    schema would not be usable for code that knows the revisions `usable_for`: that of the release that is running
    meanwhile, and to which a rollback leads. Nothing to do is no failure.
    """
    return [_migrate(create_engine_for(store_url(settings, store)), store, usable_for[store]) for store in STORES]


def unusable_reason(settings: Settings, revisions: Mapping[Store, str]) -> str | None:
    """Why code that knows these revisions could not work with the present stores; None when it can."""
    for store in STORES:
        with read_transaction(create_engine_for(store_url(settings, store))) as connection:
            reason = _why_unusable(connection, store, revisions[store])
            if reason is None and store == "jobstore" and revisions[store] < _HOLDS_SINCE:
                reason = _why_not_while_held(connection)
            if reason is not None:
                return reason
    return None


def _migrate(engine: Engine, store: Store, usable_for: str) -> Migrated:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _migrate_once(engine, store, usable_for)
        except OperationalError as error:
            # Its locks met those of the release that is running.
            if getattr(error.orig, "sqlstate", None) != _DEADLOCK or attempt == _ATTEMPTS:
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError("unreachable")


def _migrate_once(engine: Engine, store: Store, usable_for: str) -> Migrated:
    with schema_transaction(engine) as connection:
        before = current_revision(connection, store)
        if before == HEADS[store] or is_newer_and_usable(connection, store):
            return Migrated(store=store, before=before, after=str(before), rows={})
        rows = _count_rows(connection, store)
        upgrade_schema(connection, store)
        after = current_revision(connection, store)
        for name, count in _count_rows(connection, store, only=rows).items():
            if count != rows[name]:
                raise OperationFailed(
                    f"the migration of the {store} database from {before} to {after} would leave {count} of"
                    f" {rows[name]} rows in the table {name}; nothing was changed"
                )
        if before is not None:
            reason = _why_unusable(connection, store, usable_for)
            if reason is not None:
                raise OperationFailed(
                    f"the release that is running could not go on with the schema of {VERSION}: {reason}. Upgrade to a"
                    " release between the two first; nothing was changed"
                )
        return Migrated(store=store, before=before, after=str(after), rows=rows)


def _why_unusable(connection: Connection, store: Store, revision: str) -> str | None:
    present = current_revision(connection, store)
    if present is None or present <= revision:
        return None  # it migrates what is older itself
    note = COMPATIBILITY_TABLES[store]
    oldest = None
    if inspect(connection).has_table(note):
        oldest = connection.execute(text(f"SELECT usable_from FROM {note}")).scalar_one_or_none()  # noqa: S608
    if oldest is not None and oldest <= revision:
        return None
    return f"the {store} database is at schema {present}, usable from {oldest or present} on, and it knows {revision}"


def _why_not_while_held(connection: Connection) -> str | None:
    if not inspect(connection).has_table(holds.name) or connection.execute(select(holds.c.name)).first() is None:
        return None
    return "all jobs are held, which it does not know of: it would fire them; release the hold first"


def _count_rows(connection: Connection, store: Store, only: Mapping[str, int] | None = None) -> dict[str, int]:
    ours = {VERSION_TABLES[each] for each in STORES} | {COMPATIBILITY_TABLES[each] for each in STORES}
    if only is None:
        names = sorted(set(inspect(connection).get_table_names()) - ours)
        if names and connection.dialect.name == "postgresql":
            # Until the commit nobody else writes, so that the counts are comparable. Readers are let through.
            quoted = ", ".join(connection.dialect.identifier_preparer.quote(name) for name in names)
            connection.execute(text(f"LOCK TABLE {quoted} IN SHARE ROW EXCLUSIVE MODE"))
    else:
        there = set(inspect(connection).get_table_names())
        missing = sorted(set(only) - there)
        if missing:
            raise OperationFailed(
                f"the migration of the {store} database would drop the tables {', '.join(missing)}; nothing was changed"
            )
        names = list(only)
    return {name: int(connection.execute(select(func.count()).select_from(table(name))).scalar_one()) for name in names}
