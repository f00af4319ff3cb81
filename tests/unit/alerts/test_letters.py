"""The requests that rows of the outbox stand for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.alerts.letters import (
    LONGEST_PING_BODY,
    UnreadableMessage,
    alert_letter,
    last_bytes,
    ping_letter,
    ping_url,
)
from app.alerts.outbox import Message

from .conftest import RUN_ID

RID = "0193f0a0-c0de-7abc-8def-0123456789ab"


def message(payload: Any, url: str | None = None) -> Message:
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return Message(id="1" * 32, url=url, payload=text, attempts=0, leased_until=0)


def test_an_alert_carries_its_rows_id_and_all_of_its_payload() -> None:
    payload = {"event": "run.failed", "job_id": "夜间", "error": "x\ny", "run_id": None, "count": 3}
    letter = alert_letter(message(payload), "http://hooks.example/t?k=v")
    assert letter.url == "http://hooks.example/t?k=v"
    assert json.loads(letter.body) == {"id": "1" * 32, **payload}
    assert letter.content_type.startswith("application/json")


@pytest.mark.parametrize(
    ("signal", "url", "expected"),
    [
        ("start", "https://hc.example/ping/u", f"https://hc.example/ping/u/start?rid={RID}"),
        ("success", "https://hc.example/ping/u", f"https://hc.example/ping/u?rid={RID}"),
        ("fail", "https://hc.example/ping/u", f"https://hc.example/ping/u/fail?rid={RID}"),
        ("fail", "https://hc.example/ping/u/", f"https://hc.example/ping/u/fail?rid={RID}"),
        ("success", "https://hc.example/ping/u/", f"https://hc.example/ping/u/?rid={RID}"),
        ("start", "https://hc.example/k/slug?create=1", f"https://hc.example/k/slug/start?create=1&rid={RID}"),
        ("success", "https://hc.example?a=%2F&b", f"https://hc.example?a=%2F&b&rid={RID}"),
    ],
)
def test_pings_take_the_forms_of_healthchecks(signal: str, url: str, expected: str) -> None:
    letter = ping_letter(message({"signal": signal, "run_id": RUN_ID, "job_id": "job", "log": "line\n"}, url))
    assert (letter.url, letter.body) == (expected, b"line\n")


def test_a_ping_carries_the_end_of_a_long_log() -> None:
    log = "日" * LONGEST_PING_BODY + "end"
    body = ping_letter(message({"signal": "fail", "run_id": RUN_ID, "log": log}, "http://hc.example/u")).body
    assert len(body) <= LONGEST_PING_BODY
    assert body.decode().endswith("日end")


def test_no_character_is_cut_in_two() -> None:
    assert last_bytes("a日b", 4) == "日b".encode()
    assert last_bytes("a日b", 3) == b"b"
    assert last_bytes("", 3) == b""


def test_a_ping_without_more_options_keeps_its_address() -> None:
    assert ping_url("https://hc.example/u?a=1") == "https://hc.example/u?a=1"


@pytest.mark.parametrize(
    ("payload", "url"),
    [
        ("{", "http://hc.example/u"),
        ("[]", "http://hc.example/u"),
        ({"signal": "dance", "run_id": RUN_ID}, "http://hc.example/u"),
        ({"signal": "start", "run_id": "no id"}, "http://hc.example/u"),
        ({"signal": "start", "run_id": None}, "http://hc.example/u"),
        ({"run_id": RUN_ID}, "http://hc.example/u"),
        ({"signal": "start", "run_id": RUN_ID}, None),
        ({"signal": "start", "run_id": RUN_ID}, "file:///etc/passwd"),
    ],
)
def test_a_row_that_is_no_ping_is_named(payload: Any, url: str | None) -> None:
    with pytest.raises(UnreadableMessage):
        ping_letter(message(payload, url))
