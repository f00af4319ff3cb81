"""Brings a database to the schema of this release, once, however many processes start together.

Revisions are numbers of four digits in the order of their making. A migration that leaves older releases able to work
says so in the table `<store>_schema_compatibility`: its one row holds the oldest revision whose code may use the
database. That is what makes the way back to the release before possible.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from sqlalchemy import Connection, Engine, MetaData, inspect, text

from app.db.engines import read_transaction, write_transaction
from app.db.metadata import app_metadata, jobstore_metadata

Store = Literal["jobstore", "app"]

METADATA: dict[Store, MetaData] = {"jobstore": jobstore_metadata, "app": app_metadata}
HEADS: dict[Store, str] = {"jobstore": "0004", "app": "0001"}
"""The newest revision in `migrations/<store>`: known here so that a start need not load Alembic."""

VERSION_TABLES: dict[Store, str] = {"jobstore": "jobstore_schema_version", "app": "app_schema_version"}
"""One a store, so that both stores may lie in one database."""

COMPATIBILITY_TABLES: dict[Store, str] = {
    "jobstore": "jobstore_schema_compatibility",
    "app": "app_schema_compatibility",
}

_ADVISORY_LOCK = 0x5748414C  # "WHAL": any constant that every release shares


logger = logging.getLogger(__name__)


class NewerSchema(Exception):
    """The database was written by a newer release, with which this one cannot share it. Nothing was changed."""


def script_location(store: Store) -> Path:
    """The folder of the store's Alembic scripts."""
    return Path(__file__).parent / "migrations" / store


def current_revision(connection: Connection, store: Store) -> str | None:
    """The revision that the database is at; None for one without our tables."""
    table = VERSION_TABLES[store]
    if not inspect(connection).has_table(table):
        return None
    return connection.execute(text(f"SELECT version_num FROM {table}")).scalar_one_or_none()  # noqa: S608


def is_newer_and_usable(connection: Connection, store: Store) -> bool:
    """Whether a newer release wrote the database and left it usable for this one, as after a rollback."""
    revision = current_revision(connection, store)
    table = COMPATIBILITY_TABLES[store]
    if revision is None or revision <= HEADS[store] or not inspect(connection).has_table(table):
        return False
    oldest = connection.execute(text(f"SELECT usable_from FROM {table}")).scalar_one_or_none()  # noqa: S608
    return oldest is not None and oldest <= HEADS[store]


def ensure_schema(engine: Engine, store: Store) -> None:
    """Migrates the database behind `engine` to this release's schema; one query when it is there already.

    Raises NewerSchema when the database is of a newer release that did not leave it usable for this one.
    """
    with read_transaction(engine) as connection:
        if current_revision(connection, store) == HEADS[store]:
            return
        if is_newer_and_usable(connection, store):
            logger.warning("the %s database is of a newer release, which left it usable for this one", store)
            return
    with schema_transaction(engine) as connection:
        revision = current_revision(connection, store)  # another process may have been here first
        if revision != HEADS[store]:
            upgrade_schema(connection, store)


@contextmanager
def schema_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction in which no other process changes a schema, however many want to."""
    with write_transaction(engine) as connection:
        if connection.dialect.name == "postgresql":
            # A migration may take its time, and the processes that wait for it too.
            for limit in ("idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout"):
                connection.execute(text(f"SET LOCAL {limit} = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        yield connection


def upgrade_schema(connection: Connection, store: Store, *, to: str = "head") -> None:
    """Brings the store to this release's newest revision, in a transaction of schema_transaction; or to one before it.

    Raises NewerSchema when it is at a revision that this release does not know.
    """
    # Alembic is loaded for the rare start that migrates, not in every process for good.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(script_location(store)))
    config.attributes["connection"] = connection
    config.attributes["target_metadata"] = METADATA[store]
    config.attributes["version_table"] = VERSION_TABLES[store]
    revision = current_revision(connection, store)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise NewerSchema(
            f"The {store} database is at schema {revision}, which this release does not know "
            f"(its newest is {HEADS[store]}). Run the release that wrote it, or restore a backup."
        )
    command.upgrade(config, to)
