"""A session of `requests` whose requests end in time, whatever the receiver does.

The timeouts of `requests` bound each wait for a byte. One receiver that sends a byte now and then would hold up all
messages behind it for ever.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool


@contextmanager
def bounded_session(longest_s: float) -> Iterator[tuple[requests.Session, Callable[[], bool]]]:
    """A session whose connections are cut after `longest_s` seconds, and whether that has come to pass."""
    connections: list[Any] = []  # urllib3's
    is_over = threading.Event()

    def cut() -> None:
        is_over.set()
        for connection in connections:
            sock: socket.socket | None = getattr(connection, "sock", None)
            if sock is not None:
                with suppress(OSError):  # not connected any more
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the plain socket's, also below TLS

    timer = threading.Timer(longest_s, cut)
    timer.daemon = True
    with requests.Session() as session:
        adapter = _WatchedAdapter(connections)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        timer.start()
        try:
            yield session, is_over.is_set
        finally:
            timer.cancel()


class _WatchedAdapter(HTTPAdapter):
    """Keeps the connections that it makes where they can be cut."""

    def __init__(self, connections: list[Any]) -> None:
        self._connections = connections
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        connections = self._connections

        class Plain(HTTPConnectionPool):
            def _new_conn(self) -> Any:
                connections.append(made := super()._new_conn())
                return made

        class Secure(HTTPSConnectionPool):
            def _new_conn(self) -> Any:
                connections.append(made := super()._new_conn())
                return made

        self.poolmanager.pool_classes_by_scheme = {"http": Plain, "https": Secure}
