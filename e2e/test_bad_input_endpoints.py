"""Whatever a client sends, it gets an envelope with the right status, and never a 500.

Two ways: a systematic list of bad bodies, paths and options, sent to every operation of the API; and
schemathesis, which makes up inputs from the OpenAPI document. The stack is a private one: refused logins
count against the rate limit of the tests' own address.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from typing import Any
from urllib.parse import quote

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.stack import Stack, running_stack

JSON = {"Content-Type": "application/json"}
#: Statuses by which an API may refuse bad input.
REFUSALS = {400, 401, 403, 404, 405, 412, 413, 415, 422, 429}
numbers = count(1)
METHODS = {"get", "put", "post", "delete", "patch"}


def of_every_field(value: object) -> bytes:
    """A JSON object that gives every field that some operation reads the same value."""
    fields = ("id", "task", "name", "trigger_type", "kwargs", "action", "username", "password")
    return json.dumps({field: value for field in fields}).encode()  # noqa: C420 - the value may be mutable


#: What is wrong with each body is in its name: (content, headers).
BAD_BODIES: dict[str, tuple[bytes | None, dict[str, str]]] = {
    "nothing": (None, {}),
    "nothing-called-json": (b"", JSON),
    "not-json": (b"{trigger_type: cron", JSON),
    "not-utf8": (b'{"name": "\xff\xfe"}', JSON),
    "null": (b"null", JSON),
    "number": (b"7", JSON),
    "string": (b'"cron"', JSON),
    "list": (b"[]", JSON),
    "list-of-objects": (b'[{"trigger_type": "cron"}]', JSON),
    "empty-object": (b"{}", JSON),
    "not-a-number": (b'{"trigger_type": "interval", "seconds": NaN}', JSON),
    "infinity": (b'{"trigger_type": "interval", "seconds": 1e999}', JSON),
    "huge-integer": (b'{"trigger_type": "interval", "seconds": ' + b"9" * 5000 + b"}", JSON),
    "deep": (b'{"kwargs":' + b'{"a":' * 5000 + b"1" + b"}" * 5001, JSON),
    "lone-surrogate": (b'{"id": "\\ud800", "name": "\\udfff", "action": "\\ud800"}', JSON),
    "nul": (b'{"id": "a\\u0000b", "task": "a\\u0000b", "action": "a\\u0000b"}', JSON),
    "wrong-types": (of_every_field([{"a": [1]}]), JSON),
    "unicode": (of_every_field("🐳任务\u202e"), JSON),
    "csrf-in-the-body": (b'{"csrf_token": "x", "trigger_type": "cron", "minute": "5"}', JSON),
    "form": (b"trigger_type=cron&minute=5", {"Content-Type": "application/x-www-form-urlencoded"}),
    "xml": (b"<trigger/>", {"Content-Type": "application/xml"}),
    "half-a-multipart": (b"--x\r\nContent-Disposi", {"Content-Type": "multipart/form-data; boundary=x"}),
    "unknown-charset": (b"{}", {"Content-Type": "application/json; charset=nonsense"}),
}
BAD_IDS: dict[str, str | bytes] = {
    "unknown": "no-such-job",
    "unicode": "不存在的任务🐳",
    "space": " ",
    "dots": "..",
    "encoded-slash": "a/b",
    "encoded-percent": "%",
    "quote": "' OR 1=1 --",
    "nul": "a\0b",
    "newline": "a\r\nSet-Cookie: x=y",
    "not-utf8": b"\xff\xfe",
    "long": "x" * 2000,
}
BAD_TRIGGERS: dict[str, dict[str, Any]] = {
    "no-type": {"minute": "5"},
    "unknown-type": {"trigger_type": "sometimes"},
    "type-is-a-list": {"trigger_type": ["cron"]},
    "cron-without-fields": {"trigger_type": "cron"},
    "cron-of-four-parts": {"trigger_type": "cron", "cron_expression": "1 2 3 4"},
    "cron-of-10000-characters": {"trigger_type": "cron", "cron_expression": "* " * 5000},
    "cron-minute-of-10000-characters": {"trigger_type": "cron", "minute": "1," * 5000},
    "cron-words": {"trigger_type": "cron", "cron_expression": "every day at noon please"},
    "cron-minute-out-of-range": {"trigger_type": "cron", "minute": "61"},
    "cron-weekday-out-of-range": {"trigger_type": "cron", "weekday": "9"},
    "cron-minute-is-an-object": {"trigger_type": "cron", "minute": {"at": 5}},
    "cron-minute-is-true": {"trigger_type": "cron", "minute": True},
    "cron-expression-is-a-number": {"trigger_type": "cron", "cron_expression": 5},
    "cron-fullwidth-digits": {"trigger_type": "cron", "minute": "５x"},
    "interval-without-fields": {"trigger_type": "interval"},
    "interval-of-zero": {"trigger_type": "interval", "seconds": 0, "minutes": ""},
    "interval-negative": {"trigger_type": "interval", "seconds": -5},
    "interval-overflow": {"trigger_type": "interval", "weeks": 10**12},
    "interval-words": {"trigger_type": "interval", "seconds": "ten"},
    "interval-bad-start": {"trigger_type": "interval", "seconds": 5, "start_date": "yesterday"},
    "interval-bad-jitter": {"trigger_type": "interval", "seconds": 5, "jitter": "much"},
    "date-without-date": {"trigger_type": "date"},
    "date-impossible": {"trigger_type": "date", "run_date": "2026-02-30T00:00:00"},
    "date-year-0": {"trigger_type": "date", "run_date": "0000-01-01"},
    "date-number": {"trigger_type": "date", "run_date": 10**30},
}
BAD_OPTIONS = {
    "limit-word": {"limit": "many"},
    "limit-zero": {"limit": "0"},
    "limit-negative": {"limit": "-1"},
    "limit-above": {"limit": "501"},
    "limit-huge": {"limit": "9" * 400},
    "limit-float": {"limit": "1.5"},
    "cursor-nonsense": {"limit": "5", "cursor": "../../etc/passwd"},
    "cursor-unicode": {"limit": "5", "cursor": "游标🐳"},
    "cursor-nul": {"limit": "5", "cursor": "\0"},
    "unknown-option": {"order_by": "id; drop table jobs"},
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory) as stack:
        yield stack


@pytest.fixture(scope="module")
def client(hostile: Stack) -> Client:
    return hostile.bearer()


@pytest.fixture(scope="module")
def document(client: Client) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/api/v1/openapi.json").json()
    return document


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Every (method, path template) of the API."""
    found = [(method.upper(), path) for path, item in document["paths"].items() for method in item if method in METHODS]
    assert len(found) >= 15, f"the document lists too little: {found}"
    return found


@pytest.fixture
def own_job(client: Client) -> Iterator[str]:
    # An id stays taken after its job is deleted: the job could be restored.
    job_id = f"target-{next(numbers)}"
    client.create_job(job_id, "oracle_fire", {"trigger_type": "cron", "cron_expression": "0 0 1 1 *"})
    yield job_id
    client.delete_job(job_id)


def fill(path: str, job_id: str = "no-such-job") -> str:
    """A path template with every parameter replaced."""
    return "/".join(job_id if part.startswith("{") else part for part in path.split("/"))


def complaint(call: str, answer: requests.Response) -> str | None:
    """What is wrong with an answer to bad input; None when nothing is."""
    said = f"{call}: {answer.status_code} {answer.text[:300]!r}"
    if answer.status_code >= 500:
        return said
    if answer.status_code < 400:
        # Some bad input is merely ignored; what is answered then must still be an answer.
        return None if answer.status_code in (200, 201, 308) else said
    if answer.status_code not in REFUSALS:
        return said
    if not answer.headers.get("Content-Type", "").startswith("application/json"):
        return f"{said} is no JSON"
    body = answer.json()
    right = (
        body.get("success") is False
        and body.get("error") is True
        and isinstance(body.get("message"), str)
        and body.get("message")
        and isinstance(body.get("message_code"), str)
        and body.get("timestamp")
        and body.get("request_id")
    )
    return None if right else f"{said} is no error envelope"


def refused(call: str, answer: requests.Response, status: int, message_code: str) -> str | None:
    wrong = complaint(call, answer)
    if wrong is None and (answer.status_code, answer.json().get("message_code")) != (status, message_code):
        wrong = f"{call}: {answer.status_code} {answer.text[:300]!r} where {status} {message_code} was due"
    return wrong


def report(complaints: list[str | None]) -> None:
    wrong = [complaint for complaint in complaints if complaint is not None]
    assert not wrong, f"{len(wrong)} of {len(complaints)} answers are wrong:\n" + "\n".join(wrong[:40])


@pytest.mark.parametrize("body", BAD_BODIES)
def test_bad_bodies(client: Client, operations: list[tuple[str, str]], own_job: str, body: str) -> None:
    content, headers = BAD_BODIES[body]
    complaints = []
    for method, path in operations:
        if method == "GET" or path.endswith("/actions/reload") or (method == "DELETE" and body != "deep"):
            # A reload ignores its body and would delete the target; a delete would too.
            job_id = "no-such-job"
        else:
            job_id = own_job
        call = f"{method} {fill(path, job_id)} with {body}"
        complaints.append(complaint(call, client.request(method, fill(path, job_id), data=content, headers=headers)))
    report(complaints)


@pytest.mark.parametrize("body", [name for name in BAD_BODIES if name not in ("unicode", "csrf-in-the-body")])
def test_bad_body_of_a_change_is_400_and_changes_nothing(client: Client, own_job: str, body: str) -> None:
    path = f"{SCHEDULER}/jobs/{own_job}"
    before = client.job(own_job)
    content, headers = BAD_BODIES[body]
    answer = client.put(path, data=content, headers=headers)
    report([refused(f"PUT with {body}", answer, 400, "VALIDATION_ERROR")])
    assert client.job(own_job) == before


@pytest.mark.parametrize("trigger", BAD_TRIGGERS)
def test_bad_trigger_is_400_and_changes_nothing(client: Client, own_job: str, trigger: str) -> None:
    before = client.job(own_job)
    body = BAD_TRIGGERS[trigger]
    creation = {"id": "never-made", "task": "oracle_fire", **body}
    report(
        [
            refused("PUT", client.put(f"{SCHEDULER}/jobs/{own_job}", json=body), 400, "VALIDATION_ERROR"),
            refused("PUT", client.put(f"{SCHEDULER}/jobs/sync_accounts", json=body), 400, "VALIDATION_ERROR"),
            refused("POST", client.post(f"{SCHEDULER}/jobs", json=creation), 400, "VALIDATION_ERROR"),
            refused("preview", client.post(f"{SCHEDULER}/triggers/preview", json=body), 400, "VALIDATION_ERROR"),
        ]
    )
    assert client.job(own_job) == before
    report([refused("GET", client.get(f"{SCHEDULER}/jobs/never-made"), 404, "NOT_FOUND")])


@pytest.mark.parametrize("name", BAD_IDS)
def test_unknown_ids(client: Client, operations: list[tuple[str, str]], name: str) -> None:
    job_id = quote(BAD_IDS[name], safe="")
    report(
        [
            complaint(
                f"{method} {path} of {name}",
                client.request(method, fill(path, job_id), json={"action": "pause"}),
            )
            for method, path in operations
            if "{" in path
        ]
    )


def test_job_that_does_not_exist_is_404(client: Client) -> None:
    for path in ("", "/history"):
        answer = client.get(f"{SCHEDULER}/jobs/no-such-job{path}")
        report([refused(path, answer, 404, "NOT_FOUND")])
        assert answer.json()["message"] == "任务不存在"


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_bad_options(client: Client, operations: list[tuple[str, str]], own_job: str, options: str) -> None:
    query = BAD_OPTIONS[options]
    report(
        [
            complaint(f"GET {path} with {options}", client.get(fill(path, own_job), params=query))
            for method, path in operations
            if method == "GET"
        ]
    )


@pytest.mark.parametrize("limit", ["many", "0", "-1", "501", "1.5"])
def test_bad_limit_is_400(client: Client, own_job: str, limit: str) -> None:
    for path in (f"{SCHEDULER}/jobs", f"{SCHEDULER}/jobs/{own_job}/history"):
        answer = client.get(path, params={"limit": limit})
        report([refused(path, answer, 400, "VALIDATION_ERROR")])
        assert answer.json()["context"]["field"] == "limit"


def test_body_above_the_limit_is_413(client: Client, operations: list[tuple[str, str]]) -> None:
    body = b'{"name": "' + b"x" * (2 * 1024 * 1024) + b'"}'
    report(
        [
            refused(
                f"{method} {path}",
                client.request(method, fill(path), data=body, headers=JSON),
                413,
                "PAYLOAD_TOO_LARGE",
            )
            for method, path in operations
            if method in ("POST", "PUT", "PATCH")
        ]
    )


def test_methods_that_a_path_does_not_have(client: Client, document: dict[str, Any]) -> None:
    report(
        [
            refused(f"{method} {path}", client.request(method.upper(), fill(path)), 405, "METHOD_NOT_ALLOWED")
            for path, item in document["paths"].items()
            for method in METHODS - set(item)
        ]
    )


@pytest.mark.parametrize("path", ["/api/v1/nothing", "/api/v1/scheduler/nothing", "/api/nothing"])
def test_unknown_api_paths_are_404(client: Client, path: str) -> None:
    report([refused(path, client.get(path), 404, "NOT_FOUND")])


def test_nobody_gets_in_without_a_login(hostile: Stack, operations: list[tuple[str, str]]) -> None:
    """Everything but health, the document and the login asks who is there; a wrong token is nobody."""
    open_to_all = ("/health/", "/openapi.json", "/auth/")
    complaints = []
    for stranger in (hostile.anonymous(), Client(hostile.base_url, token="wrong" * 10)):
        for method, path in operations:
            if any(part in path for part in open_to_all):
                continue
            answer = stranger.request(method, fill(path), json={})
            due = "AUTHENTICATION_REQUIRED" if answer.status_code == 401 else "CSRF_INVALID"
            status = 401 if answer.status_code == 401 else 403
            complaints.append(refused(f"{method} {path}", answer, status, due))
    report(complaints)


def test_writes_of_a_session_need_the_csrf_header(hostile: Stack, operations: list[tuple[str, str]]) -> None:
    admin = hostile.admin()
    complaints = []
    for token in (None, "wrong", "游标".encode().decode("latin-1")):
        admin.csrf_token = token
        complaints += [
            refused(f"{method} {path}", admin.request(method, fill(path), json={}), 403, "CSRF_INVALID")
            for method, path in operations
            if method != "GET" and "/auth/" not in path
        ]
    report(complaints)


def test_bad_logins(hostile: Stack) -> None:
    nobody = hostile.anonymous()
    nobody.fetch_csrf_token()
    path = "/api/v1/auth/login"
    wrong = {"username": "nobody", "password": "guess"}
    first = nobody.post(path, json=wrong)
    complaints = [refused("a wrong password", first, 401, "INVALID_CREDENTIALS")]
    for name, (content, headers) in BAD_BODIES.items():
        complaints.append(complaint(f"login with {name}", nobody.post(path, data=content, headers=headers)))
    complaints.append(complaint("a long name", nobody.post(path, json=wrong | {"username": "x" * 100_000})))
    report(complaints)


@pytest.mark.timeout(400)
def test_made_up_inputs(hostile: Stack, document: dict[str, Any]) -> None:
    """Inputs that schemathesis makes up from the document, right ones and wrong ones, for each operation."""
    schema = schemathesis.openapi.from_dict(document)
    # Of the OpenAPI document's servers, the one that this test may shoot at.
    schema.config.update(base_url=hostile.base_url)
    headers = {"Authorization": f"Bearer {hostile.secrets['api_token']}"}
    complaints: list[str | None] = []
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()

        @settings(
            max_examples=25,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case[Any]) -> None:
            call = case.as_transport_kwargs(headers=headers) | {"timeout": 60, "allow_redirects": False}
            said = f"{call['method']} {call['url']} {call.get('json', '')!r:.500}"
            complaints.append(complaint(said, requests.request(**call)))

        ask()
    assert len(complaints) > 100, "schemathesis made up next to nothing"
    report(complaints)
