"""What an engine connects with follows the password's file, and only where its URL got the password from there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.exc import DBAPIError

from app.db import password_file
from app.db.password_file import follow_password_file


@pytest.fixture(autouse=True)
def _no_files() -> Iterator[None]:
    known = dict(password_file._files)
    yield
    password_file._files.clear()
    password_file._files.update(known)


def used_password(url: str) -> Any:
    """The password that a connection would be made with; no server is asked."""
    seen: dict[str, Any] = {}
    engine = create_engine(url, connect_args={"connect_timeout": "1"})

    def stop(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> Any:
        seen.update(parameters)
        raise engine.dialect.dbapi.OperationalError("seen")  # type: ignore[union-attr]

    event.listen(engine, "do_connect", stop)
    with pytest.raises(DBAPIError):
        engine.connect()
    return seen.get("password")


def test_a_connection_takes_what_the_file_holds_now(tmp_path: Path) -> None:
    file = tmp_path / "postgres_password"
    file.write_text("at-the-start")
    follow_password_file(file, "at-the-start")
    url = "postgresql+psycopg://whalefall:at-the-start@nowhere.invalid/whalefall"
    assert used_password(url) == "at-the-start"
    file.write_text("rotated-pass")
    os.utime(file, ns=(1, 1))
    assert used_password(url) == "rotated-pass"


def test_a_password_of_the_url_itself_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "postgres_password"
    file.write_text("from the file")
    follow_password_file(file, "from the file")
    assert used_password("postgresql+psycopg://whalefall:its-own@nowhere.invalid/whalefall") == "its-own"
    assert used_password("postgresql+psycopg://whalefall@nowhere.invalid/whalefall") is None
