"""`backup_jobstore`: the nightly online backup."""

from __future__ import annotations

import logging
from typing import Annotated

from pydantic import Field

from app.runtime import current_runtime
from app.services.operations.backup.backups import back_up, verify_backup
from app.tasks import task

logger = logging.getLogger(__name__)


@task("backup_jobstore", description="Consistent online backup of the job store and the app database")
def backup_jobstore(keep: Annotated[int, Field(ge=1)] | None = None) -> None:
    """Backs up both databases and verifies the copy. keep: how many stay, `BACKUP_KEEP` when left out."""
    backup = back_up(current_runtime().settings, reason="backup_jobstore", keep=keep)
    verify_backup(backup.path)
    for name, store in backup.manifest.stores.items():
        logger.info("%s: %s bytes, schema %s, sha256 %s", name, store.bytes, store.schema_version, store.sha256)
    newest = backup.manifest.newest_run
    logger.info("backup %s, verified; newest run %s", backup.path, newest.run_id if newest else "none")
