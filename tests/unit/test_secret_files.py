"""A secret whose file changes is known at once; one whose file is away, or being written, stays what it was."""

from __future__ import annotations

import os
from pathlib import Path

from flask import Flask

from app import create_app
from app.secret_files import present_secret
from app.settings import Settings


def write_in_place(file: Path, text: str) -> None:
    with file.open("r+") as held:
        held.write(text)
        held.truncate()


def test_the_file_decides(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first-token\n")
    assert present_secret(file, "at the start") == "first-token"
    write_in_place(file, "other-token\n")
    os.utime(file, ns=(1, 1))  # whatever the clock of the file system resolves
    assert present_secret(file, "at the start") == "other-token"


def test_without_a_file_or_content_it_stays(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"\xff\xfe")
    for file in (None, tmp_path / "missing", empty, damaged, tmp_path):
        assert present_secret(file, "at the start") == "at the start"


def test_an_api_token_is_rotated_under_a_running_app(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "api_token"
    file.write_text("first-token")
    del environment["API_TOKEN"]
    app = create_app(Settings.load(environment | {"API_TOKEN_FILE": str(file)}), init_scheduler_on_start=False)
    assert status_with(app, "first-token") == 200
    write_in_place(file, "second-one!")
    os.utime(file, ns=(1, 1))
    assert status_with(app, "first-token") == 401
    assert status_with(app, "second-one!") == 200


def status_with(app: Flask, token: str) -> int:
    return app.test_client().get("/api/v1/auth/me", headers={"Authorization": f"Bearer {token}"}).status_code
