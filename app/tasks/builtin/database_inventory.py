"""sync_accounts, collect_database_sizes, calculate_database_size_aggregations.

The first two read every instance that `userdata/databases.yaml` declares, anew at each run. Each logs a line
an instance (`instance=... outcome=...`), goes on after one that fails, and raises at the end if any did.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from app.inventory import Account, DatabaseSize, InstanceError, Reading, load_instances
from app.inventory.instances import Instance
from app.inventory.readings import Connector
from app.inventory.survey import InstancesFailed, report_line, survey
from app.repositories.inventory_repository import InventoryRepository
from app.runtime import current_runtime
from app.tasks import task

if TYPE_CHECKING:
    from app.ledger import RunContext

INSTANCES_FILE = "databases.yaml"

logger = logging.getLogger(__name__)


@task(
    "sync_accounts",
    description="Reads the accounts and privileges of every configured database instance and stores them",
    takes_manual_context=True,
)
def sync_accounts(manual_run: bool = False, created_by: int | str | None = None, *, run: RunContext) -> None:
    """manual_run, created_by: who asked for the run, for its log; a scheduled run has neither."""
    _log_request(manual_run, created_by)
    repository = InventoryRepository(current_runtime().database)
    instances = _configured_instances(repository)

    def read(connector: Connector) -> Reading[Account] | None:
        return connector.accounts() if connector.has_accounts else None

    def store(instance: Instance, reading: Reading[Account] | None) -> Mapping[str, Any]:
        if reading is None:
            return {"accounts": 0, "note": f"{instance.kind} has no accounts"}
        changes = repository.store_accounts(instance.name, reading.rows, run_id=run.id, at=datetime.now(UTC))
        for change, names in (
            ("added", changes.added),
            ("changed", changes.changed),
            ("removed", changes.removed),
        ):
            for name in names:
                logger.info("%s", report_line({"instance": instance.name, "account": name, "change": change}))
        if reading.unread:
            logger.warning(
                "instance %s: no right to connect to %s, so grants inside are not known",
                instance.name,
                ", ".join(reading.unread),
            )
        return {
            "accounts": len(reading.rows),
            "added": len(changes.added),
            "changed": len(changes.changed),
            "removed": len(changes.removed),
        }

    survey(instances, read, store)


@task("collect_database_sizes", description="Records the size of every database of every configured instance")
def collect_database_sizes() -> None:
    """One reading an hour is kept for each database."""
    repository = InventoryRepository(current_runtime().database)
    instances = _configured_instances(repository)

    def store(instance: Instance, reading: Reading[DatabaseSize]) -> Mapping[str, Any]:
        repository.store_sizes(instance.name, reading.rows, at=datetime.now(UTC))
        for size in reading.rows:
            facts = {"instance": instance.name, "database": size.database, "size_bytes": size.size_bytes}
            logger.info("%s", report_line(facts))
        if reading.unread:
            raise InstanceError(
                f"the sizes of {len(reading.rows)} databases were recorded, but the user has no right to read"
                f" that of {', '.join(reading.unread)}: grant it pg_read_all_stats, or CONNECT on them"
            )
        total = sum(size.size_bytes for size in reading.rows)
        return {"databases": len(reading.rows), "total_bytes": total}

    survey(instances, lambda connector: connector.sizes(), store)


@task(
    "calculate_database_size_aggregations",
    description="Calculates day, week, month and quarter statistics of the recorded database sizes",
    takes_manual_context=True,
)
def calculate_database_size_aggregations(manual_run: bool = False, created_by: int | str | None = None) -> None:
    """Periods are those of SCHEDULER_TIMEZONE. manual_run, created_by: as for sync_accounts."""
    _log_request(manual_run, created_by)
    runtime = current_runtime()
    repository = InventoryRepository(runtime.database)
    zone = ZoneInfo(runtime.settings.scheduler_timezone)
    instances = repository.instances_with_sizes()
    if not instances:
        logger.info("no database sizes are recorded yet: nothing to calculate")
    failed = []
    for instance in instances:
        facts: dict[str, Any] = {"instance": instance}
        try:
            found = repository.calculate_aggregations(instance, zone=zone, at=datetime.now(UTC))
        except Exception as error:  # the other instances are still calculated
            logger.exception("instance %s: unexpected error", instance)
            facts |= {"outcome": "failed", "error": f"{type(error).__name__}: {error}"}
            failed.append(report_line(facts))
            continue
        databases = len({aggregation.database for aggregation in found})
        facts |= {"outcome": "success", "databases": databases, "periods": len(found)}
        logger.info("%s timezone=%s", report_line(facts), zone)
    if failed:
        heading = f"{len(failed)} of {len(instances)} instances failed"
        raise InstancesFailed("\n".join([heading, *failed]))


def _configured_instances(repository: InventoryRepository) -> list[Instance]:
    path = current_runtime().settings.userdata_dir / INSTANCES_FILE
    instances = load_instances(path)
    repository.remember_instances(instances, at=datetime.now(UTC))
    if not instances:
        logger.info("no database instances are configured in %s: nothing to do", path)
    return instances


def _log_request(manual_run: bool, created_by: int | str | None) -> None:
    if manual_run:
        logger.info("manual run, asked for by %s", created_by)
