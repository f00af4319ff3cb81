"""Static files under content-hashed addresses: `/static/<stem>.<12 hex digits>.<extension>`.

A hashed address may be kept by browsers for ever; the plain one is asked for again each time. Nginx serves both
from the same folder by taking the hash out of the address; the handler here does the same where no Nginx is.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from threading import Lock

from flask import Response, send_from_directory

STATIC_FOLDER = Path(__file__).parent / "static"
HASH_DIGITS = 12
FOREVER_S = 365 * 24 * 3600

_HASHED = re.compile(rf"^(?P<stem>.+)\.(?P<hash>[0-9a-f]{{{HASH_DIGITS}}})(?P<extension>\.[A-Za-z0-9]+)$")

_addresses: dict[str, tuple[tuple[int, int], str]] = {}
_addresses_lock = Lock()


def static_address(name: str) -> str:
    """The hashed address of a file below `app/pages/static`, such as `app.css`; FileNotFoundError for none.

    A file is hashed again when its size or time of change differ, so that a developer's edit is seen.
    """
    path = STATIC_FOLDER / name
    found = path.stat()
    version = (found.st_mtime_ns, found.st_size)
    with _addresses_lock:
        kept = _addresses.get(name)
        if kept is None or kept[0] != version:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:HASH_DIGITS]
            address = PurePosixPath(name)
            kept = (version, f"/static/{address.with_suffix('')}.{digest}{address.suffix}")
            _addresses[name] = kept
        return kept[1]


def plain_name(filename: str) -> tuple[str, bool]:
    """The file's own name, and whether `filename` was a hashed address of it."""
    match = _HASHED.match(filename)
    if match is None:
        return filename, False
    return f"{match['stem']}{match['extension']}", True


def serve_static(filename: str) -> Response:
    """Answers `/static/<filename>`; a file that is not there is a 404."""
    name, hashed = plain_name(filename)
    response = send_from_directory(STATIC_FOLDER, name)
    if hashed:
        response.headers["Cache-Control"] = f"public, max-age={FOREVER_S}, immutable"
    else:
        response.headers["Cache-Control"] = "no-cache"
    return response
