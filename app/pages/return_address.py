"""Where the login, or the choice of a language, sends the reader back to."""

from __future__ import annotations

from urllib.parse import urlsplit

HOME = "/dashboard"


def safe_return_address(given: str | None) -> str:
    """`given` when it is an address of this site, else HOME; never another site's, however it is written."""
    if not given or not given.startswith("/") or given.startswith("//"):
        return HOME
    # Browsers read a backslash as a slash, and drop tabs and line breaks inside an address.
    if "\\" in given or any(ord(character) < 32 for character in given):
        return HOME
    parts = urlsplit(given)
    if parts.scheme or parts.netloc or parts.path == "/login":
        return HOME
    return given
