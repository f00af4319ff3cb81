"""Connectors against real things that need no container: SQLite files, and servers that never answer.

The PostgreSQL and MariaDB connectors meet real servers in e2e/test_real_databases.py.
"""

from __future__ import annotations

import socket
import sqlite3
import threading
import time

import pytest

from app.inventory import DatabaseSize, InstanceError, ServerInstance, SqliteInstance, connect
from app.inventory.deadline import SocketDeadline


def sqlite_instance(path) -> SqliteInstance:
    return SqliteInstance(name="file", kind="sqlite", path=path)


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_sqlite_size_is_that_of_its_pages(tmp_path, mode):
    path = tmp_path / "name with # and ?.db"
    with sqlite3.connect(path) as writer:
        writer.execute(f"PRAGMA journal_mode={mode}")
        writer.execute("CREATE TABLE t (x)")
        writer.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 1000)
        writer.commit()
        with connect(sqlite_instance(path)) as connector:
            assert not connector.has_accounts
            assert list(connector.accounts().rows) == []
            (size,) = connector.sizes().rows
        pages, page_size = (writer.execute(f"PRAGMA page_{what}").fetchone()[0] for what in ("count", "size"))
    writer.close()
    assert size == DatabaseSize("main", pages * page_size)
    assert path.stat().st_size == size.size_bytes  # closing checkpointed the WAL


def test_sqlite_file_is_not_made_nor_changed(tmp_path):
    with pytest.raises(InstanceError, match="no such file"):
        connect(sqlite_instance(tmp_path / "absent.db"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InstanceError, match="no such file"):
        connect(sqlite_instance(tmp_path))


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "text.db").write_text("this is no database, and long enough to be looked at" * 10)
    with (
        connect(sqlite_instance(tmp_path / "text.db")) as connector,
        pytest.raises(InstanceError, match="file is not a database"),
    ):
        connector.sizes()


@pytest.fixture
def silent_server():
    """A server that accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def server_instance(kind: str, port: int) -> ServerInstance:
    return ServerInstance.model_validate(
        {"name": "x", "kind": kind, "host": "127.0.0.1", "port": port, "user": "u", "password": "hunter2"}
    )


@pytest.mark.parametrize(
    ("kind", "module"),
    [("postgresql", "postgresql"), ("mysql", "mysql"), ("mariadb", "mysql")],
)
def test_a_server_that_never_answers_is_given_up(silent_server, monkeypatch, kind, module):
    monkeypatch.setattr(f"app.inventory.{module}.CONNECT_TIMEOUT_S", 2)  # psycopg takes 2 s for less
    began = time.monotonic()
    with pytest.raises(InstanceError) as caught:
        connect(server_instance(kind, silent_server))
    assert 1.5 < time.monotonic() - began < 6
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
def test_a_refused_connection_is_told_at_once(kind):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(InstanceError, match="refused"):
        connect(server_instance(kind, port))


@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
def test_a_server_that_talks_nonsense_is_told(kind):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            peer, _ = server.accept()
            peer.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            peer.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(InstanceError):
            connect(server_instance(kind, server.getsockname()[1]))
        thread.join()


def test_deadline_ends_a_read_that_would_never_end():
    left, right = socket.socketpair()
    with left, right:
        deadline = SocketDeadline(left.fileno(), 0.1)
        assert left.recv(1) == b""
        assert deadline.expired
        deadline.cancel()


def test_a_restarted_deadline_counts_anew():
    left, right = socket.socketpair()
    with left, right:
        deadline = SocketDeadline(left.fileno(), 60)
        deadline.restart(0.1)
        assert deadline.seconds == 0.1
        assert left.recv(1) == b""
        assert deadline.expired
        deadline.cancel()


def test_cancelled_deadline_leaves_the_connection_alone():
    left, right = socket.socketpair()
    with left, right:
        deadline = SocketDeadline(left.fileno(), 60)
        deadline.cancel()
        deadline.cancel()
        right.sendall(b"x")
        assert left.recv(1) == b"x"
        assert not deadline.expired
