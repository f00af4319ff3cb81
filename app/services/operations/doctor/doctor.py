"""The doctor: looks at everything a process of the app can see, and says what is wrong, what it means and what to do.

It builds no app: what it looks at may be what keeps the app from starting, and looking must neither make nor migrate a
store.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from app.db.engines import create_engine_for
from app.db.reach import cause_of
from app.errors import DomainError
from app.i18n import english
from app.ledger import Ledger
from app.runtime import Runtime
from app.services.operations.doctor.findings import SEVERITIES, Finding, Place, make_finding
from app.services.operations.doctor.jobs import broker_findings, job_findings, way_in_findings
from app.services.operations.doctor.stores import store_findings, usable_stores, volume_findings
from app.settings import Settings, SettingsError
from app.tasks import TaskRegistry


def examine(place: Place) -> list[Finding]:
    """Everything that is wrong, the worst first; empty when nothing is. Reads the settings from the environment."""
    try:
        settings = Settings.load()
        settings.require_secrets()
    except SettingsError as error:
        return [make_finding("settings-refused", str(error), place)]
    found = [*volume_findings(settings, place), *store_findings(settings, place)]
    with opened(settings) as runtime:
        if usable_stores(found, settings):
            try:
                found += job_findings(runtime, place)
            except (SQLAlchemyError, DomainError) as error:
                # Its files were found to be sound: it is the server, or a schema that nobody has made yet.
                if not any(finding.id == "disk-full" for finding in found):
                    found.append(make_finding("store-unreachable", _words(error), place))
        found += broker_findings(runtime, place)
        found += way_in_findings(runtime, place)
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _words(error: SQLAlchemyError | DomainError) -> str:
    return cause_of(error) if isinstance(error, SQLAlchemyError) else english(error.message, error.params)


@contextmanager
def opened(settings: Settings) -> Iterator[Runtime]:
    """A runtime on the present stores as they are."""
    jobstore, database = create_engine_for(settings.jobstore_url), create_engine_for(settings.database_url)
    tasks = TaskRegistry()
    tasks.load_builtin()
    tasks.load_folder(settings.tasks_dir)
    try:
        yield Runtime(settings=settings, jobstore=jobstore, database=database, ledger=Ledger(jobstore), tasks=tasks)
    finally:
        jobstore.dispose()
        database.dispose()
