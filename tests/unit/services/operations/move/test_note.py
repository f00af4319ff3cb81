from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from app import create_app
from app.db.reach import StoreUnusable
from app.services.operations.move.note import MovedNote, note_path, read_note, refuse_moved_store, write_note
from app.settings import Settings

NOTE = MovedNote(
    moved_at=datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
    sources={"jobstore": "scheduler.db", "app": "whalefall.db"},
    targets={"jobstore": "postgresql://postgres/whalefall", "app": "postgresql://postgres/whalefall"},
    rows={"jobs": 5},
)


@pytest.fixture
def moved(settings: Settings) -> Settings:
    settings.userdata_dir.mkdir()
    write_note(settings, NOTE)
    return settings


def test_the_note_is_read_as_it_was_written(moved: Settings) -> None:
    assert read_note(moved) == NOTE
    assert [path.name for path in moved.userdata_dir.iterdir()] == ["moved_to_postgres.json"]


def test_no_note_refuses_nobody(settings: Settings) -> None:
    assert read_note(settings) is None
    refuse_moved_store(settings)


def test_the_moved_files_are_refused_in_one_line(moved: Settings) -> None:
    with pytest.raises(StoreUnusable) as refused:
        create_app(moved)
    line = str(refused.value)
    assert "\n" not in line
    for words in (
        "scheduler.db",
        "postgresql://postgres/whalefall",
        "2026-03-01T12:00:00",
        "runbooks/move-to-postgres.md",
    ):
        assert words in line
    assert not (moved.userdata_dir / "scheduler.db").exists(), "the refused start made a new store"


def test_other_stores_are_not(moved: Settings, environment: dict[str, str], tmp_path: Path) -> None:
    refuse_moved_store(
        Settings.load(environment | {"JOBSTORE_URL": "postgresql://db/x", "DATABASE_URL": "postgresql://db/x"})
    )
    elsewhere = {"JOBSTORE_URL": f"sqlite:///{tmp_path}/a.db", "DATABASE_URL": f"sqlite:///{tmp_path}/b.db"}
    refuse_moved_store(Settings.load(environment | elsewhere))


def test_half_of_it_is_refused_too(moved: Settings, environment: dict[str, str]) -> None:
    with pytest.raises(StoreUnusable, match=r"whalefall\.db was moved"):
        refuse_moved_store(Settings.load(environment | {"JOBSTORE_URL": "postgresql://db/x"}))


def test_a_note_that_cannot_be_read_stops_the_start(moved: Settings) -> None:
    note_path(moved).write_text("{")
    with pytest.raises(StoreUnusable, match="cannot be read"):
        refuse_moved_store(moved)


def test_commands_still_work_on_the_moved_files(moved: Settings, environment: dict[str, str]) -> None:
    settings = Settings.load(environment | {"FLASK_RUN_FROM_CLI": "true"})
    create_app(settings, init_scheduler_on_start=False)
