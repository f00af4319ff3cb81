"""One request, against a real server, and what its answer means."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from app.alerts import post
from app.alerts.letters import Letter
from app.alerts.post import LONGEST_RETRY_AFTER_S, Answer, judge, send
from app.version import VERSION
from e2e.harness.receiver import Receiver, Reply

BODY = "告警".encode()


def letter(url: str) -> Letter:
    return Letter(url, BODY, "text/plain; charset=utf-8")


def test_a_request_says_who_sends_it(receiver: Receiver) -> None:
    assert send(letter(receiver.url("/a?b=c"))) == Answer("delivered")
    [got] = receiver.received
    assert (got.method, got.path, got.query, got.body) == ("POST", "/a", {"b": ["c"]}, "告警".encode())
    assert got.headers["User-Agent"] == f"WhaleFall-Scheduler/{VERSION}"
    assert got.headers["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, "delivered"),
        (204, "delivered"),
        (299, "delivered"),
        (304, "refused"),
        (400, "refused"),
        (404, "refused"),
        (410, "refused"),
        (408, "not now"),
        (425, "not now"),
        (429, "not now"),
        (500, "not now"),
        (503, "not now"),
    ],
)
def test_what_answers_mean(status: int, verdict: str) -> None:
    assert judge(status, "word", None).verdict == verdict


def test_no_redirect_is_followed(receiver: Receiver) -> None:
    receiver.reply = Reply(307, {"Location": receiver.url("/elsewhere")})
    answer = send(letter(receiver.url("/a")))
    assert answer.verdict == "refused"
    assert "redirect" in answer.error
    assert [got.path for got in receiver.received] == ["/a"]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("120", 120, 120),
        ("0", 0, 0),
        ("-5", 0, 0),
        ("999999999", LONGEST_RETRY_AFTER_S, LONGEST_RETRY_AFTER_S),
        ("soon", 0, 0),
        ("nan", 0, 0),
        ("inf", 0, 0),
        (timedelta(seconds=300), 200, 300),
        (timedelta(days=-1), 0, 0),
        (None, 0, 0),
    ],
)
def test_retry_after(status: int, value: str | timedelta | None, low: float, high: float) -> None:
    if isinstance(value, timedelta):
        value = format_datetime(datetime.now(UTC) + value, usegmt=True)
    assert low <= judge(status, "", value).retry_after_s <= high


def test_retry_after_counts_only_where_it_means_that() -> None:
    assert judge(500, "", "100").retry_after_s == 0


def test_a_receivers_words_are_kept_short_and_printable() -> None:
    assert judge(500, "a\0b\x1b[31m" + "c" * 1000, None).error == "500 ab[31m" + "c" * 94


def test_a_refused_connection_is_told_without_the_address(receiver: Receiver) -> None:
    receiver.down()
    assert send(letter(receiver.url("/sesame"))) == Answer("no answer", "Connection refused")


def test_a_name_that_is_unknown() -> None:
    answer = send(letter("http://no-such-host.invalid/sesame"))
    assert answer.verdict == "no answer"
    assert "sesame" not in answer.error
    assert answer.error


def test_a_receiver_that_never_answers(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post, "ANSWER_S", 0.2)
    receiver.reply = Reply(after_s=2)
    assert send(letter(receiver.url("/sesame"))) == Answer("no answer", "no answer within 0.2 s")


@contextmanager
def raw_server(serve: Callable[[socket.socket], object]) -> Iterator[int]:
    """The port of a server that hands its first connection to `serve`, once the request has come (of TLS, a part)."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                request = connection.recv(65536)
                while request.startswith(b"POST") and not request.endswith(BODY):
                    request += connection.recv(65536)  # hanging up on what was not read would be a reset
                serve(connection)

        server.settimeout(10)
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("said", [b"", b"\x00\xff nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Le"])
def test_a_receiver_that_hangs_up_or_babbles(said: bytes) -> None:
    with raw_server(lambda connection: connection.sendall(said)) as port:
        answer = send(letter(f"http://127.0.0.1:{port}/sesame"))
    if said.startswith(b"HTTP"):
        assert answer.verdict == "delivered", "it said so, and the rest does not matter"
    else:
        assert answer.verdict == "no answer"
        assert answer.error
        assert "sesame" not in answer.error


def test_a_bad_certificate_is_no_answer() -> None:
    with raw_server(lambda connection: connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")) as port:
        answer = send(letter(f"https://127.0.0.1:{port}/sesame"))
    assert answer.verdict == "no answer"
    assert "SSL" in answer.error


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"HTTP/1.1 ", Answer("no answer", "no whole answer within 1.5 s")),
        (b"HTTP/1.1 200 OK\r\nX-Filler: ", Answer("delivered")),
        (b"HTTP/1.1 500 No\r\nX-Filler: ", Answer("not now", "500 No")),
    ],
)
def test_an_answer_that_comes_byte_by_byte_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, said: bytes, expected: Answer
) -> None:
    monkeypatch.setattr(post, "LONGEST_S", 1.5)

    def dribble(connection: socket.socket) -> None:
        pause = threading.Event()
        connection.sendall(said)
        for byte in b"x" * 100:
            connection.sendall(bytes([byte]))
            pause.wait(0.1)

    with raw_server(dribble) as port:
        began = time.monotonic()
        assert send(letter(f"http://127.0.0.1:{port}/sesame")) == expected
        assert time.monotonic() - began < 5


def test_a_body_without_an_end_is_not_read() -> None:
    def pour(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:  # until the other side hangs up
            connection.sendall(b"x" * 65536)

    with raw_server(pour) as port:
        assert send(letter(f"http://127.0.0.1:{port}/sesame")) == Answer("delivered")
