"""What one process of the app holds: its settings, stores, ledger, tasks and, maybe, its scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from flask import Flask, current_app

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from app.ledger import Ledger, LedgerScheduler
    from app.settings import Settings
    from app.tasks import TaskRegistry

EXTENSION_KEY = "whalefall"


@dataclass
class Runtime:
    """Built once by create_app; shared by the threads of a process.

    jobstore: jobs, runs, nodes; the engine of requests, which waits up to 30 s for a lock.
    database: users, audit log, inventory.
    scheduler: None in a process that runs none (web, command line, ENABLE_SCHEDULER=false).
    """

    settings: Settings
    jobstore: Engine
    database: Engine
    ledger: Ledger
    tasks: TaskRegistry
    scheduler: LedgerScheduler | None = None


def runtime_of(app: Flask) -> Runtime:
    """The runtime of this app."""
    return cast(Runtime, app.extensions[EXTENSION_KEY])


def current_runtime() -> Runtime:
    """The runtime of the app whose context is active; RuntimeError outside an application context."""
    return cast(Runtime, current_app.extensions[EXTENSION_KEY])
