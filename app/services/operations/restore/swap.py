"""Puts database files in the place of the present ones: all of them, also when the power fails in between.

What is to be done is written down first. Whoever starts next on this volume finishes it before a store is opened, so
that nobody ever finds one new file beside one old, or none.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from pydantic import ValidationError as PydanticError

from app.db.reach import StoreUnusable
from app.ledger import failpoints
from app.services.operations.stores.files import SIDE_FILES, sync_folder, write_whole
from app.settings import Settings

NOTE = "restore-swap.json"


class Replacement(BaseModel):
    """`staged` takes the place of `live`, which goes with its side files to the folder `aside`, or is gone."""

    model_config = ConfigDict(frozen=True)

    staged: Path
    live: Path
    aside: Path | None


class _Swap(BaseModel):
    model_config = ConfigDict(frozen=True)

    files: list[Replacement]


def swap(settings: Settings, files: Sequence[Replacement]) -> None:
    """Puts every staged file in its place. Nobody has any of them open; staged and live are on one volume."""
    write_whole(settings.userdata_dir / NOTE, _Swap(files=list(files)).model_dump_json(indent=2) + "\n")
    failpoints.reach("restore.noted")
    finish_swap(settings)


def is_swap_open(settings: Settings) -> bool:
    """Whether a swap has begun and is not finished: staged files are still needed."""
    return (settings.userdata_dir / NOTE).exists()


def finish_swap(settings: Settings) -> None:
    """Finishes what a swap began; does nothing where none was interrupted. Safe in any number of processes.

    StoreUnusable when it cannot be finished: the stores must not be opened then.
    """
    note = settings.userdata_dir / NOTE
    try:
        descriptor = os.open(note, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not note.exists():  # another process was faster
            return
        for file in _Swap.model_validate_json(note.read_text(encoding="utf-8")).files:
            _put_in_place(file)
            failpoints.reach("restore.half")
        note.unlink()
        sync_folder(settings.userdata_dir)
    except (OSError, PydanticError) as error:
        raise StoreUnusable(
            f"{note}: a restore was interrupted and cannot be finished: {' '.join(str(error).split())[:300]}"
        ) from error
    finally:
        os.close(descriptor)


def _put_in_place(file: Replacement) -> None:
    if not file.staged.exists():  # it was put there before the interruption
        return
    # The side files belong to the old content; the new one must not meet them.
    for suffix in (*SIDE_FILES, ""):
        old = file.live.with_name(file.live.name + suffix)
        if file.aside is not None and old.exists():
            old.rename(file.aside / old.name)
        elif suffix:
            old.unlink(missing_ok=True)
    if file.aside is not None:
        sync_folder(file.aside)
    file.staged.replace(file.live)
    sync_folder(file.live.parent)
