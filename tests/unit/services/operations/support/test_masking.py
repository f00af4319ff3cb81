"""No secret is left in a text, wherever and however it is written, and what is no secret stays readable."""

from __future__ import annotations

import base64
import json
import time

import pytest
import yaml

from app.services.operations.support.masking import Masker, is_secret_name, secrets_among

PLANTED = "hunter2/Zz+9"


@pytest.mark.parametrize(
    "text",
    [
        "password=hunter2/Zz+9",
        "password = 'hunter2/Zz+9' user=x",
        'DB_PASSWORD="hunter2/Zz+9"',
        "POSTGRES_PASSWORD: hunter2/Zz+9",
        "  my.token: hunter2/Zz+9 and more",
        "copying with password hunter2: password=hunter2/Zz+9, target=/srv",
        "{'target': '/srv', 'password': 'hunter2/Zz+9'}",
        json.dumps({"api_key": "hunter2/Zz+9", "n": 1}),
        json.dumps({"event": json.dumps({"token": "hunter2/Zz+9"})}),
        json.dumps({"event": json.dumps({"inner": json.dumps({"secret": "hunter2/Zz+9"})})}),
        yaml.safe_dump({"environment": {"SMTP_PASSWORD": "hunter2/Zz+9"}}),
        "connecting to postgresql+psycopg://whalefall:hunter2/Zz+9@db:5432/whalefall",
        "redis://:hunter2/Zz+9@valkey:6379/0 refused",
        "Authorization: Bearer hunter2/Zz+9",
        "curl -H 'Authorization: Basic aHVudGVyMi9aeis5'",
        "Cookie: session=hunter2/Zz+9; lang=zh",
        "set-cookie: session=abc; x=hunter2/Zz+9",
        "https://example.org/hook?token=hunter2/Zz+9&x=1",
        "ALERT_WEBHOOK_URL=https://hooks.example.org/hunter2/Zz+9",
        '"ping_url": "https://ping.example.org/hunter2/Zz+9"',
        "-----BEGIN PRIVATE KEY-----\nhunter2/Zz+9\n-----END PRIVATE KEY-----",
        "private_key=>hunter2/Zz+9",
        "DB_PASS=hunter2/Zz+9",
        "  smtp-auth: hunter2/Zz+9",
    ],
)
def test_where_secrets_usually_stand(text: str) -> None:
    masked = Masker(()).mask(text)
    for left in (PLANTED, "hunter2/", "aHVudGVyMi9aeis5"):
        assert left not in masked
    assert "***" in masked


@pytest.mark.parametrize(
    "text",
    [
        f"the word {PLANTED} alone",
        "https://example.org/?q=hunter2%2FZz%2B9",
        json.dumps({"x": PLANTED}),
        base64.b64encode(PLANTED.encode()).decode(),
        f"x{PLANTED}y",
    ],
)
def test_a_known_secret_anywhere(text: str) -> None:
    masked = Masker([PLANTED]).mask(text)
    assert "hunter2" not in masked
    assert base64.b64encode(PLANTED.encode()).decode()[:12] not in masked


def test_a_known_secret_with_quotes_and_other_letters_in_json() -> None:
    secret = 'pä"ss\\wort'
    masker = Masker([secret])
    for text in (json.dumps({"x": secret}), json.dumps({"x": secret}, ensure_ascii=False), secret):
        assert "wort" not in masker.mask(text)


def test_a_known_secret_of_which_a_url_or_a_page_escapes_some_letters() -> None:
    masker = Masker(["a b/c&d é+f"])
    for text in (
        "GET /a%20b/c&d%20%C3%A9+f 404",
        "?x=a+b%2fc%26d+%c3%a9%2Bf",
        "a b/c&amp;d \u00e9+f",
        json.dumps(json.dumps("a b/c&d é+f")),
    ):
        assert "b/c" not in masker.mask(text), text
        assert "b%2fc" not in masker.mask(text), text


def test_the_telling_parts_of_a_secret_address() -> None:
    masker = Masker(["https://hooks.example.org/services/T0001/abcdefgh12345?key=zyxwvuts98765"])
    for text in ("POST /T0001/abcdefgh12345 200", "the key zyxwvuts98765"):
        assert "***" in masker.mask(text)
    assert masker.mask("hooks.example.org and T0001 stay") == "hooks.example.org and T0001 stay"


def test_each_line_of_a_known_secret() -> None:
    assert Masker(["first line\nsecond line\n"]).mask("a second line b") == "a *** b"


@pytest.mark.parametrize(
    "text",
    [
        "API_TOKEN_FILE: /run/secrets/api_token",
        'password authentication failed for user "whalefall"',
        "GET /api/v1/scheduler/jobs 200",
        "secrets:\n  - source: api_token\n",
        "connected to postgresql://db:5432/whalefall",
        "2026-05-01T08:00:00.123+08:00 INFO app.scheduler 5 jobs added",
        "a true story",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Masker(["true", "no"]).mask(text) == text


def test_names_of_secrets() -> None:
    named = ["password", "DB_PASSWORD", "token", "apiKey", "client.secret", "webhook_url", "db-passwd"]
    assert all(map(is_secret_name, named))
    assert not any(map(is_secret_name, ["path", "password_file", "API_TOKEN_FILE", "user", "key", ""]))


def test_secrets_in_nested_parameters() -> None:
    kwargs = {"db": {"password": "one", "host": "h"}, "tokens": ["two", {"x": 3}], "list": [{"secret": 4}], "n": None}
    assert secrets_among(kwargs) == {"one", "two", "3", "4"}


def test_a_long_text_without_blanks_takes_no_long_time() -> None:
    begin = time.monotonic()
    Masker([PLANTED]).mask("passwordx" * 100_000 + "token" * 20_000 + "A" * 500_000 + "://" + "a" * 500_000)
    assert time.monotonic() - begin < 20
