"""What is posted: the request that a row of the outbox stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit
from uuid import UUID

from app.alerts.outbox import Message
from app.web_address import web_address

LONGEST_PING_BODY = 10_000
"""Bytes of a log that a ping carries, the last ones; Healthchecks keeps no more of it by default."""

_ENDINGS = {"start": "/start", "success": "", "fail": "/fail"}


class UnreadableMessage(ValueError):
    """A row that no request can be made of."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A request: a POST of `body` to `url`."""

    url: str
    body: bytes
    content_type: str


def alert_letter(message: Message, webhook_url: str) -> Letter:
    """The alert's JSON with the row's id in front: the same id however often it is sent."""
    body = {"id": message.id, **_payload(message)}
    return Letter(webhook_url, json.dumps(body, ensure_ascii=False).encode(), "application/json; charset=utf-8")


def ping_letter(message: Message) -> Letter:
    """A dead-man ping as Healthchecks takes it: the run's log goes along, and its id pairs start and end."""
    payload = _payload(message)
    try:
        ending = _ENDINGS[payload["signal"]]
        run = str(UUID(hex=payload["run_id"]))
        log = str(payload.get("log") or "")
        url = ping_url(web_address(message.url or ""), ending, rid=run)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UnreadableMessage(f"not a ping: {type(error).__name__}: {error}") from error
    return Letter(url, last_bytes(log, LONGEST_PING_BODY), "text/plain; charset=utf-8")


def job_of(message: Message) -> str:
    """The id of the job that a message tells of."""
    return str(_payload(message).get("job_id"))


def ping_url(url: str, ending: str = "", **query: str) -> str:
    """`url` with `ending` behind its path, and its query options kept before `query`."""
    parts = urlsplit(url)
    options = "&".join(option for option in (parts.query, urlencode(query)) if option)
    path = parts.path.rstrip("/") + ending if ending else parts.path
    return urlunsplit(parts._replace(path=path, query=options))


def last_bytes(text: str, limit: int) -> bytes:
    """The end of `text` in UTF-8, at most `limit` bytes, no character cut in two."""
    encoded = text.encode("utf-8", "backslashreplace")[-limit:]
    return encoded.decode("utf-8", "ignore").encode()


def _payload(message: Message) -> Mapping[str, Any]:
    try:
        payload = json.loads(message.payload)
    except ValueError as error:
        raise UnreadableMessage(f"not JSON: {error}") from error
    if not isinstance(payload, dict):
        raise UnreadableMessage("not a JSON object")
    return payload
