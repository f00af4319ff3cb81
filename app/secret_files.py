"""Secrets whose files change under a running process (scripts/rotate_secrets.sh writes in place)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path


def present_secret(file: Path | None, started_with: str | None) -> str | None:
    """What the file holds now; what this process `started_with` where there is no file, or nothing in it.

    The file is read when it has changed; otherwise this costs one look at its times.
    """
    if file is None:
        return started_with
    try:
        state = file.stat()
        return _read(file, state.st_mtime_ns, state.st_ino, state.st_size) or started_with
    except (OSError, ValueError):
        return started_with


@lru_cache(maxsize=8)
def _read(file: Path, _changed_at: int, _inode: int, _size: int) -> str:
    return file.read_text(encoding="utf-8").rstrip("\r\n")
