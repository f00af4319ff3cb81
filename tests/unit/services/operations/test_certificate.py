"""The certificate that is served: what is read of it, and what is said about its time."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.services.operations.certificate import Certificate, CertificateUnknown, read_certificate, served_certificate
from e2e.harness.certificates import make_certificate, write_certificate

START = datetime(2026, 1, 1, tzinfo=UTC)
END = datetime(2026, 4, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "problem"),
    [
        (START - timedelta(seconds=1), "it is not valid before 2026-01-01T00:00:00+00:00"),
        (START, None),
        (END - timedelta(days=14), None),
        (END - timedelta(days=14, seconds=-1), "it expires in 13 days, on 2026-04-01T00:00:00+00:00"),
        (END - timedelta(seconds=1), "it expires in 0 days, on 2026-04-01T00:00:00+00:00"),
        (END, "it expired on 2026-04-01T00:00:00+00:00"),
    ],
)
def test_its_time(now: datetime, problem: str | None) -> None:
    certificate = Certificate("a", "b", (), START, END)
    assert certificate.problem(now) == problem
    assert not certificate.is_self_signed


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server that shows a certificate, to whoever asks."""
    write_certificate(tmp_path, *make_certificate(valid_for=timedelta(days=-1)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with suppress(OSError), connection:
                    context.wrap_socket(connection, server_side=True).close()

    server = threading.Thread(target=serve)
    server.start()
    yield f"127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    server.join()


def test_an_expired_one_is_read_too(address: str) -> None:
    found = served_certificate(address)
    assert (found.subject, found.issuer, found.names) == ("localhost", "localhost", ("localhost",))
    assert found.is_self_signed
    assert (found.problem() or "").startswith("it expired on")


def test_nobody_there_is_said() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(CertificateUnknown, match=f"nobody serves https at 127.0.0.1:{port}"):
            served_certificate(f"127.0.0.1:{port}")


def test_what_is_no_certificate_is_refused() -> None:
    with pytest.raises(CertificateUnknown):
        read_certificate(b"no certificate")
