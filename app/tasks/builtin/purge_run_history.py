"""`purge_run_history`: keeps the ledger to its retention."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import Field

from app.runtime import current_runtime
from app.tasks import task

logger = logging.getLogger(__name__)


@task("purge_run_history", description="Drops runs older than the retention, and jobs past restoring")
def purge_run_history(retention_days: Annotated[int, Field(ge=1)] | None = None) -> None:
    """Drops what is too old. retention_days: `RUN_RETENTION_DAYS` when left out."""
    runtime = current_runtime()
    days = runtime.settings.run_retention_days if retention_days is None else retention_days
    older_than = datetime.now(UTC) - timedelta(days=days)
    runs = runtime.ledger.purge_runs(older_than)
    jobs = runtime.ledger.purge_deleted_jobs()
    logger.info(
        "dropped %s runs from before %s (%s days) and %s deleted jobs that could no longer be restored",
        runs,
        older_than.isoformat(timespec="seconds"),
        days,
        jobs,
    )
