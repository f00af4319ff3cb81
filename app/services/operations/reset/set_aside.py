"""Moves the job store out of the way, whole and reversibly, so that the next start makes a fresh one.

A SQLite file is moved; of one in PostgreSQL see set_aside_tables.

userdata/backups/aside-20260401T003000Z/
    scheduler.db  (and its -wal, -shm)  aside.json
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic import ValidationError as PydanticError

from app.services.operations.backup.backups import backups_folder
from app.services.operations.failure import OperationFailed
from app.services.operations.stores.files import (
    SIDE_FILES,
    existing_store_file,
    is_open_elsewhere,
    new_folder,
    stamp,
    sync_folder,
    utc_now,
    write_whole,
)
from app.settings import Settings

PREFIX = "aside-"
NOTE = "aside.json"


class Note(BaseModel):
    """What is known of a store that was set aside. `carried_at`: when its history went into the new store; `is_whole`
    is false while tables are still being copied."""

    model_config = ConfigDict(frozen=True)

    file: str
    set_aside_at: datetime
    reason: str
    backup: str | None = None
    carried_at: datetime | None = None
    is_whole: bool = True


@dataclass(frozen=True)
class Aside:
    """A job store that was set aside."""

    path: Path
    note: Note

    @property
    def file(self) -> Path:
        """The database in it."""
        return self.path / self.note.file

    def as_json(self) -> dict[str, Any]:
        """For programs: the note, and where it is."""
        return {"path": str(self.path), **self.note.model_dump(mode="json")}

    def noted(self, **changes: Any) -> Aside:
        """The same with its note changed on disk."""
        return write_note(self.path, self.note.model_copy(update=changes))


def refuse_where_no_scheduler_runs(settings: Settings) -> None:
    """OperationFailed on a machine whose next start would bring no default jobs back."""
    if not settings.enable_scheduler:
        raise OperationFailed(
            "ENABLE_SCHEDULER is off here, so no scheduler would bring the default jobs back;"
            " reset the job store where the scheduler runs"
        )


def check_can_be_set_aside(settings: Settings) -> Path:
    """The job store's file, when the next start would make a new one; OperationFailed when not."""
    refuse_where_no_scheduler_runs(settings)
    return existing_store_file(settings, "jobstore")


def set_aside(settings: Settings, *, reason: str, backup: str | None = None) -> Aside:
    """Moves the job store with its -wal and -shm into a new folder below `backups/`.

    Nothing is opened or copied, so that a damaged store is kept exactly as it is. OperationFailed, with
    nothing moved, while any process on this host has the store open. The caller has closed its own connections.
    """
    file = check_can_be_set_aside(settings)
    if is_open_elsewhere(file):
        raise OperationFailed(
            f"{file} is open in another process; stop every web and scheduler process that uses it,"
            " in other containers too, and try again"
        )
    sources = [source for suffix in (*SIDE_FILES, "") if (source := file.with_name(file.name + suffix)).exists()]
    aside = _cut_short(settings, sources)
    if aside is None:
        moment = utc_now()
        note = Note(file=file.name, set_aside_at=moment, reason=reason, backup=backup)
        aside = write_note(new_folder(backups_folder(settings), PREFIX + stamp(moment)), note)
    # The database last: an orphaned -wal would be replayed into the empty store that the app makes.
    for source in sources:
        _move(source, aside.path / source.name)
    sync_folder(aside.path)
    sync_folder(file.parent)
    return aside


def asides(settings: Settings) -> list[Aside]:
    """The stores that were set aside and are still there, newest first."""
    return sorted(
        (aside for aside in all_asides(settings) if aside.note.is_whole and aside.file.is_file()),
        key=lambda aside: aside.note.set_aside_at,
        reverse=True,
    )


def all_asides(settings: Settings) -> list[Aside]:
    """Every folder of a store that was set aside, in no order; also those whose work was cut short."""
    folder = backups_folder(settings)
    if not folder.is_dir():
        return []
    found = [_read(path) for path in folder.iterdir() if path.name.startswith(PREFIX) and path.is_dir()]
    return [aside for aside in found if aside is not None]


def _cut_short(settings: Settings, sources: list[Path]) -> Aside | None:
    """An attempt that was killed between two files: what is left belongs into its folder."""
    for aside in all_asides(settings):
        left_over = aside.note.carried_at is None and not aside.file.exists()
        if left_over and not any((aside.path / source.name).exists() for source in sources):
            return aside
    return None


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        raise OperationFailed(
            f"{source} cannot be moved to {target}: {error.strerror}; both must be on the same volume"
        ) from error


def write_note(path: Path, note: Note) -> Aside:
    """Puts the note into the folder of an aside."""
    write_whole(path / NOTE, json.dumps(note.model_dump(mode="json"), indent=2) + "\n")
    return Aside(path, note)


def _read(path: Path) -> Aside | None:
    try:
        return Aside(path, Note.model_validate_json((path / NOTE).read_text(encoding="utf-8")))
    except (OSError, ValueError, PydanticError):
        return None
