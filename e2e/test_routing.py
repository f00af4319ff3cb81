"""nginx in front: which process answers which path, what it adds, and what it says when a process is away."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest
import requests

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.stack import ROOT, Program, Stack, running_stack
from e2e.harness.waiting import wait_until

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}
MIB = 1024 * 1024


def assert_envelope(answer: requests.Response, status: int, code: str) -> dict[str, object]:
    """An error envelope of section 3 of the contract; returns it."""
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["Content-Type"].startswith("application/json")
    body: dict[str, object] = answer.json()
    assert body["success"] is False
    assert body["error"] is True
    assert body["message_code"] == code
    assert body["message"]
    assert body["request_id"] == answer.headers["X-Request-ID"]
    assert datetime.fromisoformat(str(body["timestamp"])).utcoffset() is not None
    return body


@contextmanager
def stopped(stack: Stack, program: Program) -> Iterator[None]:
    """A stack whose web or scheduler is stopped, as an operator stops it."""
    name = f"whalefall_{program}"
    stack.execute("supervisorctl", "stop", name)
    try:
        yield
    finally:
        stack.execute("supervisorctl", "start", name)
        stack.wait_until_ready()


def upstream_of(stack: Stack, request_id: str) -> str:
    """The upstream that nginx logged for a request."""

    def lines() -> list[dict[str, Any]]:
        found = (json.loads(line) for line in stack.container().logs(tail=200).decode().splitlines())
        return [line for line in found if (line["program"], line.get("request_id")) == ("nginx", request_id)]

    return str(wait_until(f"nginx's line for {request_id}", lines, within=10)[0]["served_by"])


@pytest.mark.parametrize(
    ("path", "program"),
    [
        ("/", "web"),
        ("/login", "web"),
        ("/dashboard", "web"),
        ("/scheduler", "web"),
        ("/scheduler/", "web"),
        ("/api/v1/health/basic", "web"),
        ("/api/v1/openapi.json", "web"),
        ("/api/v1/auth/csrf-token", "web"),
        ("/api/v1/schedulerx", "web"),
        ("/api/v1/scheduler/", "scheduler"),
        ("/api/v1/scheduler/jobs", "scheduler"),
        ("/api/v1/scheduler/jobs/", "scheduler"),
        ("/api/v1/scheduler/jobs/nobody", "scheduler"),
        ("/api/v1/scheduler/health/live", "scheduler"),
        ("/api/v1/scheduler/status?x=/static/y", "scheduler"),
        ("/api/v1/../v1/scheduler/jobs", "scheduler"),
    ],
)
def test_each_path_reaches_its_process(stack: Stack, path: str, program: str) -> None:
    # Not through `requests`, which would tidy the path up.
    request_id = f"route-{abs(hash(path))}"
    status, _, _ = raw_request(stack, f"GET {path} HTTP/1.1", f"X-Request-ID: {request_id}")
    assert status < 500
    assert upstream_of(stack, request_id) == f"whalefall_{program}"


def raw_request(stack: Stack, *lines: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower case) and body of a request sent as it stands."""
    request = "\r\n".join([lines[0], "Host: localhost", "Connection: close", *lines[1:], "", ""])
    with socket.create_connection(("127.0.0.1", stack.port), timeout=30) as connection:
        connection.sendall(request.encode())
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    status_line, *header_lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in header_lines:
        name, _, value = line.partition(":")
        name = name.lower()
        headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
    return int(status_line.split()[1]), headers, body


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_scheduler_without_slash_is_308_and_relative(stack: Stack, method: str) -> None:
    answer = stack.anonymous().request(method, "/api/v1/scheduler?limit=5")
    assert answer.status_code == 308
    assert answer.headers["Location"] == "/api/v1/scheduler/?limit=5"


def test_redirect_of_a_page_is_relative(stack: Stack) -> None:
    answer = stack.anonymous().get("/dashboard", headers={"Accept": "text/html"})
    assert answer.status_code in (302, 303), answer.text[:300]
    assert answer.headers["Location"].startswith("/login")


@pytest.mark.parametrize("path", ["/login", "/api/v1/health/basic", f"{SCHEDULER}/health/live", f"{SCHEDULER}/jobs"])
def test_security_headers_once_on_every_answer(stack: Stack, path: str) -> None:
    answer = stack.anonymous().get(path)
    for name, value in SECURITY_HEADERS.items():
        assert value in answer.headers[name]
        # A header that both nginx and the app set is joined with a comma.
        assert answer.headers[name].count(value) == 1
    assert "Strict-Transport-Security" not in answer.headers  # plain http
    assert "/" not in answer.headers["Server"]  # no version


@pytest.mark.parametrize("given", ["order-4711.retry_2", "Root=1-67a1:f3/b+c==@edge"])
def test_request_id_passes_through_both_ways(stack: Stack, api: Client, given: str) -> None:
    for path in ("/api/v1/health/basic", f"{SCHEDULER}/jobs"):
        assert api.get(path, headers={"X-Request-ID": given}).headers["X-Request-ID"] == given
    error = api.get(f"{SCHEDULER}/jobs/nobody", headers={"X-Request-ID": given})
    assert error.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", 'a"b', "<script>", "x" * 65, "a b"])
def test_request_id_that_logs_cannot_carry_is_replaced(stack: Stack, given: str) -> None:
    answer = stack.anonymous().get(f"{SCHEDULER}/jobs", headers={"X-Request-ID": given})
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-ID"])
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


@pytest.mark.parametrize("path", [f"{SCHEDULER}/jobs", "/api/v1/auth/login"])
def test_body_over_1_mib_is_413_in_the_envelope(stack: Stack, api: Client, path: str) -> None:
    answer = api.post(path, data=b"x" * (MIB + 1), headers={"Content-Type": "application/json"})
    assert_envelope(answer, 413, "PAYLOAD_TOO_LARGE")
    fitting = api.post(path, data=b"x" * MIB, headers={"Content-Type": "application/json"})
    assert fitting.status_code == 400, fitting.text[:300]


def test_chunked_body_over_1_mib_is_413_in_the_envelope(api: Client) -> None:
    chunks = (b"x" * 65536 for _ in range(17))
    answer = api.post(f"{SCHEDULER}/jobs", data=chunks, headers={"Content-Type": "application/json"})
    assert_envelope(answer, 413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (f"{SCHEDULER}/jobs?x={'a' * 5000}", 414),
        (f"{SCHEDULER}/jobs?x={'a' * 20_000}", 414),
        (f"{SCHEDULER}/jobs/%00", 400),
    ],
    ids=["above Gunicorn's limit", "above nginx's limit", "not an address"],
)
def test_address_that_cannot_be_served_is_an_envelope(stack: Stack, target: str, status: int) -> None:
    got, headers, body = raw_request(stack, f"GET {target} HTTP/1.1")
    assert got == status
    assert headers["content-type"].startswith("application/json")
    assert json.loads(body)["message_code"] == "VALIDATION_ERROR"


@pytest.mark.parametrize(
    ("program", "path"),
    [("scheduler", f"{SCHEDULER}/jobs"), ("web", "/api/v1/health/basic")],
)
def test_api_of_a_stopped_process_is_503_envelope(private_stack_shared: Stack, program: Program, path: str) -> None:
    stack = private_stack_shared
    with stopped(stack, program):
        for method in ("GET", "POST", "PUT", "DELETE"):
            answer = stack.bearer().request(method, path)
            body = assert_envelope(answer, 503, "SERVICE_UNAVAILABLE")
            assert int(answer.headers["Retry-After"]) > 0
            assert re.search(r"[一-鿿]", str(body["message"]))
        english = stack.bearer().get(path, headers={"Accept-Language": "en-GB,en;q=0.9"})
        assert "unavailable" in english.json()["message"]
        for name, value in SECURITY_HEADERS.items():
            assert value in english.headers[name]


def test_page_of_a_stopped_web_is_an_html_error_page(private_stack_shared: Stack) -> None:
    stack = private_stack_shared
    with stopped(stack, "web"):
        answer = stack.anonymous().get("/dashboard", headers={"Accept": "text/html"})
        assert answer.status_code == 503
        assert answer.headers["Content-Type"].startswith("text/html")
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.headers["X-Request-ID"] in answer.text
        assert "服务暂时不可用" in answer.text
        # Its style obeys the policy: a file of our own.
        style = re.search(r'href="([^"]+\.css)"', answer.text)
        assert style is not None
        assert stack.anonymous().get(style[1]).status_code == 200
        # The scheduler's routes do not depend on web.
        assert stack.bearer().get(f"{SCHEDULER}/jobs").status_code == 200


@pytest.fixture(scope="module")
def private_stack_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of this module's own: its tests stop programs that other tests need."""
    with running_stack(tmp_path_factory) as own:
        yield own


def static_files() -> list[str]:
    folder = ROOT / "app" / "pages" / "static"
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_static_files_come_from_nginx(stack: Stack) -> None:
    name = next(file for file in static_files() if file.endswith(".css"))
    content = (ROOT / "app" / "pages" / "static" / name).read_bytes()
    anyone = stack.anonymous()

    plain = anyone.get(f"/static/{name}")
    assert plain.content == content
    assert plain.headers["Cache-Control"] == "no-cache"

    stem, extension = name.rsplit(".", 1)
    hashed = anyone.get(f"/static/{stem}.0123456789ab.{extension}", headers={"X-Request-ID": "static-file"})
    assert hashed.content == content
    assert "immutable" in hashed.headers["Cache-Control"]
    assert "max-age=31536000" in hashed.headers["Cache-Control"]
    assert hashed.headers["Content-Type"].startswith("text/css")
    assert hashed.headers["X-Content-Type-Options"] == "nosniff"
    assert upstream_of(stack, "static-file") == ""  # no process of the app was asked


@pytest.mark.parametrize(
    "path",
    [
        "/static/nobody.css",
        "/static/nobody.0123456789ab.css",
        "/static/",
        "/static/../views.py",
        "/static/%2e%2e/views.py",
    ],
)
def test_nothing_but_static_files_under_static(stack: Stack, path: str) -> None:
    status, _, body = raw_request(stack, f"GET {path} HTTP/1.1")
    assert status in (400, 403, 404)
    assert b"import" not in body


def test_the_address_in_a_page_is_served_with_far_future_caching(stack: Stack) -> None:
    page = stack.anonymous().get("/login")
    addresses = re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text)
    assert addresses
    for address in addresses:
        answer = stack.anonymous().get(address)
        assert answer.status_code == 200, address
        assert "immutable" in answer.headers["Cache-Control"], address


def test_text_is_compressed(stack: Stack) -> None:
    plain = raw_request(stack, "GET /api/v1/openapi.json HTTP/1.1")
    packed = raw_request(stack, "GET /api/v1/openapi.json HTTP/1.1", "Accept-Encoding: gzip")
    assert "content-encoding" not in plain[1]
    assert packed[1]["content-encoding"] == "gzip"
    assert "Accept-Encoding" in packed[1]["vary"]
    assert len(packed[2]) < len(plain[2]) / 2
    assert gzip.decompress(unchunked(packed[2]))[:1] == b"{"


def unchunked(body: bytes) -> bytes:
    """The content of a body in chunked transfer coding."""
    content = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        content += rest[:length]
        body = rest[length + 2 :]
    return content


def test_only_nginx_is_published(stack: Stack) -> None:
    ports = stack.container().attrs["NetworkSettings"]["Ports"]
    published = {inside: outside for inside, outside in ports.items() if outside}
    assert list(published) == ["8080/tcp"]
    assert {binding["HostPort"] for binding in published["8080/tcp"]} == {str(stack.port)}


@pytest.mark.parametrize("port", [5001, 5002])
def test_web_and_scheduler_cannot_be_reached_from_outside(stack: Stack, port: int) -> None:
    (network,) = stack.container().attrs["NetworkSettings"]["Networks"].values()
    with socket.create_connection((network["IPAddress"], 8080), timeout=5):
        pass  # the address is right
    with pytest.raises(ConnectionRefusedError), socket.create_connection((network["IPAddress"], port), timeout=5):
        pass


@pytest.mark.parametrize(
    "claim",
    [{"X-Forwarded-For": "203.0.113.7"}, {"X-Forwarded-Proto": "https"}, {"X-Forwarded-Host": "evil.example"}],
)
def test_forwarded_headers_of_a_stranger_are_not_believed(stack: Stack, claim: dict[str, str]) -> None:
    answer = stack.anonymous().get("/api/v1/auth/csrf-token", headers={**claim, "X-Request-ID": "stranger"})
    assert answer.status_code == 200
    assert "Secure" not in answer.headers["Set-Cookie"]
    assert "Strict-Transport-Security" not in answer.headers
    log = stack.container().logs(tail=50).decode()
    assert "203.0.113.7" not in log
    assert "evil.example" not in stack.anonymous().get("/dashboard", headers=claim).headers.get("Location", "")


def test_forwarded_headers_of_a_trusted_proxy_are_believed(private_stack: Callable[..., Stack]) -> None:
    # The test reaches the container from Docker's gateway.
    stack = private_stack(TRUSTED_PROXIES="172.16.0.0/12, 192.168.0.0/16,10.0.0.0/8")
    answer = stack.anonymous().get(
        "/api/v1/auth/csrf-token", headers={"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    )
    assert "Secure" in answer.headers["Set-Cookie"]
    assert "Strict-Transport-Security" in answer.headers
    wait_until(
        "the outer address in nginx's log",
        lambda: stack.container().logs(tail=50).decode(),
        lambda log: '"client": "203.0.113.7"' in log,
        within=10,
    )


def test_surplus_machine_starts_no_scheduler_and_answers_409(tmp_path_factory: pytest.TempPathFactory) -> None:
    stack = Stack(
        f"whalefall-e2e-{os.getpid()}-surplus", tmp_path_factory.mktemp("surplus"), {"ENABLE_SCHEDULER": "false"}
    )
    Stack.alive.append(stack)
    try:
        stack.compose("up", "--detach", "--no-build")
        wait_until(
            "healthy without a scheduler",
            lambda: stack.docker.api.inspect_container(stack.container().id)["State"]["Health"]["Status"],
            lambda status: status == "healthy",
            within=90,
        )
        assert stack.gunicorn("scheduler", "master") == []
        assert_envelope(stack.bearer().get(f"{SCHEDULER}/jobs"), 409, "CONSTRAINT_VIOLATION")
    finally:
        stack.remove()
