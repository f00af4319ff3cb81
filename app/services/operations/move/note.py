"""The note that a move to PostgreSQL leaves beside the old files: whoever would still use them does not start.

The old files stay as they were. A scheduler on them, beside the one on PostgreSQL, would fire everything twice.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from pydantic import ValidationError as PydanticError

from app.db.engines import sqlite_path
from app.db.reach import StoreUnusable
from app.services.operations.stores.files import write_whole
from app.settings import Settings

NOTE = "moved_to_postgres.json"


class MovedNote(BaseModel):
    """When the stores were moved, from which file to which database (without its password), and how many rows each
    table had."""

    model_config = ConfigDict(frozen=True)

    moved_at: datetime
    sources: dict[str, str]
    targets: dict[str, str]
    rows: dict[str, int]


def note_path(settings: Settings) -> Path:
    """Where the note lies, or would lie."""
    return settings.userdata_dir / NOTE


def read_note(settings: Settings) -> MovedNote | None:
    """The note, None where there is none; ValueError for one that cannot be read."""
    try:
        return MovedNote.model_validate_json(note_path(settings).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, PydanticError) as error:
        raise ValueError(f"{note_path(settings)} cannot be read: {' '.join(str(error).split())[:200]}") from error


def write_note(settings: Settings, note: MovedNote) -> None:
    """Puts the note in its place; it is there in full or not at all."""
    write_whole(note_path(settings), note.model_dump_json(indent=2) + "\n")


def refuse_moved_store(settings: Settings) -> None:
    """StoreUnusable when this process would use a SQLite file that was moved to PostgreSQL."""
    paths = [sqlite_path(url) for url in (settings.jobstore_url, settings.database_url)]
    files = [path for path in paths if path is not None]
    if not files:
        return
    try:
        note = read_note(settings)
    except ValueError as error:
        raise StoreUnusable(f"{error}; it says whether the SQLite files were moved to PostgreSQL") from error
    if note is None:
        return
    moved = {settings.userdata_dir / source for source in note.sources.values()}
    for file in files:
        if file in moved:
            raise StoreUnusable(
                f"{file} was moved to PostgreSQL ({note.targets.get('jobstore', '')}) at"
                f" {note.moved_at.isoformat(timespec='seconds')} and is only kept: two stores would fire everything"
                " twice. Start the shape ha; runbooks/move-to-postgres.md says how to go back"
            )
