"""The release this code belongs to; `pyproject.toml` reads it from here."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

VERSION = "0.2.0"


def code_fingerprint(task_names: Iterable[str]) -> str:
    """Twelve hex digits that are the same on two nodes whose app and tasks are the same.

    Of the app's own source, not of its version alone: a local build may carry the same version and other code.
    """
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode())
        digest.update(file.read_bytes())
    digest.update("\n".join(sorted(task_names)).encode())
    return digest.hexdigest()[:12]
