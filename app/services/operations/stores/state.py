"""Looks at the stores and says what state they are in."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from app.db.engines import create_engine_for, read_transaction, sqlite_path
from app.db.migrate import Store, current_revision
from app.db.reach import cause_of, public_url
from app.ledger.nodes import LIVING
from app.repositories.jobs_repository import JobFilter, JobsRepository
from app.runtime import Runtime
from app.services.health_service import HEARTBEAT_FRESH_S
from app.services.operations.failure import OperationFailed
from app.services.operations.stores.files import (
    STORE_NAMES,
    existing_store_file,
    finding_of,
    open_database,
    schema_version,
)
from app.settings import Settings

_HEARTBEAT_IS_FRESH_FOR = timedelta(seconds=HEARTBEAT_FRESH_S)


@dataclass(frozen=True)
class DefaultsState:
    """Which default jobs the store holds, and the scheduler that is turning on it, if one is."""

    present: tuple[str, ...]
    missing: tuple[str, ...]
    node: str | None

    @property
    def complete(self) -> bool:
        """Whether every default job is back and somebody runs them."""
        return not self.missing and self.node is not None

    def missing_text(self) -> str:
        """What is still missing, for people."""
        parts = []
        if self.missing:
            parts.append(f"default jobs not in the store: {', '.join(self.missing)}")
        if self.node is None:
            parts.append(f"no scheduler has sent a heartbeat in the last {HEARTBEAT_FRESH_S:g} s")
        return "; ".join(parts)


def defaults_state(runtime: Runtime, wanted: Sequence[str]) -> DefaultsState:
    """Compares the store with the ids of the default jobs. Raises what the database raises."""
    there = {reading.job.id for reading in JobsRepository(runtime.jobstore).page(JobFilter())}
    now = runtime.ledger.now()
    turning = [
        node.name
        for node in runtime.ledger.nodes()
        if node.state in LIVING and now - node.heartbeat_at <= _HEARTBEAT_IS_FRESH_FOR
    ]
    return DefaultsState(
        present=tuple(job_id for job_id in wanted if job_id in there),
        missing=tuple(job_id for job_id in wanted if job_id not in there),
        node=turning[0] if turning else None,
    )


@dataclass(frozen=True)
class DatabaseState:
    """One database: its file, or where its server is. `problem` is one line, None when it is sound."""

    store: Store
    file: str
    schema_version: str | None
    problem: str | None

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def check_databases(settings: Settings, stores: Sequence[Store] = STORE_NAMES) -> list[DatabaseState]:
    """Runs `integrity_check` on the files, and asks a database server for its schema, without changing anything; a
    problem is told, not raised."""
    urls = {"jobstore": settings.jobstore_url, "app": settings.database_url}
    return [
        _check_file(settings, store) if sqlite_path(urls[store]) else _check_server(urls[store], store)
        for store in stores
    ]


def _check_server(url: str, store: Store) -> DatabaseState:
    engine = create_engine_for(url)
    version: str | None = None
    problem: str | None = None
    try:
        with read_transaction(engine) as connection:
            version = current_revision(connection, store)
    except SQLAlchemyError as error:
        problem = cause_of(error)
    finally:
        engine.dispose()
    return DatabaseState(store, public_url(url), version, problem)


def _check_file(settings: Settings, store: Store) -> DatabaseState:
    file: Path | None = None
    version: str | None = None
    try:
        file = existing_store_file(settings, store)
        with open_database(file) as connection:
            problem = finding_of(connection)
            if problem is None:
                version = schema_version(connection, store)
    except (OperationFailed, sqlite3.Error) as error:
        problem = str(error)
    return DatabaseState(store, str(file or "-"), version, problem)
