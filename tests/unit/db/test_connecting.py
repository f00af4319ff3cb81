"""Opening connections, at real sockets; e2e/faults/ha/test_database_down.py has it on a server that goes and comes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from sqlalchemy.exc import OperationalError

from app.db.engines import create_engine_for


def error_of(port: int, *, reconnect_s: float = 0.0) -> str:
    engine = create_engine_for(
        f"postgresql+psycopg://me:secret@127.0.0.1:{port}/whalefall?connect_timeout=2", reconnect_s=reconnect_s
    )
    with pytest.raises(OperationalError) as caught, engine.connect():
        pass
    return str(caught.value)


@contextmanager
def hanging_up() -> Iterator[tuple[int, list[bytes]]]:
    """A port that hears the first words of whoever comes, and hangs up; what it heard."""
    heard: list[bytes] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def listen() -> None:
            while True:
                try:
                    visitor, _ = server.accept()
                except OSError:
                    return
                with visitor:
                    heard.append(visitor.recv(64))

        listener = threading.Thread(target=listen)
        listener.start()
        yield server.getsockname()[1], heard
        server.shutdown(socket.SHUT_RDWR)
        listener.join()


def test_a_knock_comes_before_the_connection_and_says_nothing() -> None:
    with hanging_up() as (port, heard):
        assert "closed the connection" in error_of(port)
    assert heard[0] == b""
    assert all(heard[1:])
    assert len(heard) >= 2


def test_a_server_that_hangs_up_is_knocked_at_again_while_there_is_patience() -> None:
    with hanging_up() as (port, heard):
        error_of(port, reconnect_s=0.5)
    assert heard.count(b"") >= 2


def test_what_refuses_is_told_by_the_driver() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    assert "Connection refused" in error_of(port)


def test_a_door_that_stays_shut_is_left_to_the_driver() -> None:
    # A queue that is full takes no more: the packets of whoever comes then are dropped.
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as server:
        port = server.getsockname()[1]
        with closing(socket.create_connection(("127.0.0.1", port))):
            with pytest.raises(TimeoutError):
                socket.create_connection(("127.0.0.1", port), timeout=0.5)
            assert "timeout" in error_of(port)
