"""Addresses of the web that alerts and pings are sent to: one check for settings, API and files."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from urllib.parse import urlsplit

ACCEPTED = "an address that begins with http:// or https://, in ASCII and without blanks"
LONGEST = 2000

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")


def web_address(value: str) -> str:
    """`value` itself; ValueError for what is no address of the web: http or https, a host, and nothing that a request
    cannot carry. The message does not repeat the address, which may hold a token."""
    if not value.isascii() or not value.isprintable() or re.search(r'[\s"<>\\^`{|}]', value):
        raise ValueError(ACCEPTED)
    try:
        parts = urlsplit(value)
        reachable = parts.scheme in ("http", "https") and parts.port != 0 and _is_host(parts.hostname or "")
    except ValueError:  # a port that is no number, brackets that do not close
        reachable = False
    if not reachable:
        raise ValueError(ACCEPTED)
    if "#" in value:
        raise ValueError(f"{ACCEPTED}; nothing after a '#', which is never sent")
    if len(value) > LONGEST:
        raise ValueError(f"{ACCEPTED}; at most {LONGEST} characters")
    return value


def origin_of(address: str) -> str:
    """Scheme, host and port of an address: what may be shown of it, because the rest may hold a token."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _is_host(host: str) -> bool:
    if ":" in host:
        return bool(IPv6Address(host.partition("%")[0]))  # ValueError for what is none
    return len(host) <= 253 and _HOST_NAME.fullmatch(host) is not None
