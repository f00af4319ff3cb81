"""One request, against a real server, and what its answer means."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from app.alerts import post
from app.alerts.letters import Letter
from app.alerts.post import LONGEST_RETRY_AFTER_S, Answer, judge, send
from app.version import VERSION
from e2e.harness.receiver import Receiver, Reply


def letter(url: str) -> Letter:
    return Letter(url, "告警".encode(), "text/plain; charset=utf-8")


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
        (format_datetime(datetime.now(UTC) + timedelta(seconds=300), usegmt=True), 200, 300),
        (format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), 0, 0),
        (None, 0, 0),
    ],
)
def test_retry_after(status: int, value: str | None, low: float, high: float) -> None:
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


def test_a_receiver_that_hangs_up_or_babbles() -> None:
    for said in (b"", b"\x00\xff nonsense\r\n\r\n"):
        with socket.create_server(("127.0.0.1", 0)) as server:
            import threading

            def serve(server: socket.socket = server, said: bytes = said) -> None:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(said)

            thread = threading.Thread(target=serve)
            thread.start()
            answer = send(letter(f"http://127.0.0.1:{server.getsockname()[1]}/sesame"))
            thread.join()
        assert answer.verdict == "no answer"
        assert answer.error
        assert "sesame" not in answer.error


def test_a_bad_certificate_is_no_answer(tmp_path: object) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        import threading

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        answer = send(letter(f"https://127.0.0.1:{server.getsockname()[1]}/sesame"))
        thread.join()
    assert answer.verdict == "no answer"
    assert "SSL" in answer.error
