"""New connections to PostgreSQL use the password that its file holds now: it may be rotated under a running process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from app.secret_files import present_secret

_files: dict[str, Path] = {}
"""By the password that a process started with, which its URLs hold: the file that it came from."""


def follow_password_file(file: Path, started_with: str) -> None:
    """From now on an engine of this process whose URL holds `started_with` connects with what `file` holds by then."""
    if not _files:
        event.listen(Engine, "do_connect", _use_present_password)
    _files[started_with] = file


def _use_present_password(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
    """Changes the parameters only; whoever else listens connects."""
    started_with = parameters.get("password")
    file = _files.get(started_with or "")
    if file is not None:
        parameters["password"] = present_secret(file, started_with)
