"""A receiver of alerts and pings: a real HTTP server that keeps what it was sent and answers as it is told."""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import docker


def bridge_address() -> str:
    """The address of this machine that every container of its engine reaches."""
    (network, *_) = docker.from_env().networks.get("bridge").attrs["IPAM"]["Config"]
    # Until it is started for the second time, the engine does not name it: then it is the network's first one.
    return str(network.get("Gateway") or next(ipaddress.ip_network(network["Subnet"]).hosts()))


@dataclass(frozen=True)
class Received:
    """One request; `time` in seconds of the monotonic clock."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    time: float

    @property
    def json(self) -> dict[str, Any]:
        """The body as the JSON object that it must be."""
        body = json.loads(self.body)
        assert isinstance(body, dict), body
        return body


@dataclass(frozen=True)
class Reply:
    """What a request is answered; `after_s` keeps it waiting first."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    after_s: float = 0.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a request that is kept waiting must not keep the test

    def __init__(self, address: tuple[str, int], receiver: Receiver) -> None:
        self.receiver = receiver
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: a client that went away is what tests provoke."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def _take(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        query = parse_qs(parts.query, keep_blank_values=True)
        received = Received(self.command, parts.path, query, dict(self.headers), body, time.monotonic())
        reply = self.server.receiver.take(received)
        if reply.after_s:
            threading.Event().wait(reply.after_s)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_HEAD = do_PUT = _take

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the test looks at `received`."""


class Receiver:
    """Listens on `host` from `up()` to `down()`, always on the same port.

    `replies` are given one by one, then `reply` for ever; both may be changed at any time.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        with socket.socket() as probe:
            probe.bind((host, 0))
            self.port = int(probe.getsockname()[1])
        self.reply = Reply()
        self.replies: deque[Reply] = deque()
        self._received: list[Received] = []
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def __enter__(self) -> Receiver:
        self.up()
        return self

    def __exit__(self, *_error: object) -> None:
        self.down()

    def url(self, path: str = "/") -> str:
        return f"http://{self.host}:{self.port}{path}"

    def up(self) -> None:
        self._server = _Server((self.host, self.port), self)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        """Connections are refused from now on."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def take(self, received: Received) -> Reply:
        with self._lock:
            self._received.append(received)
            return self.replies.popleft() if self.replies else self.reply

    @property
    def received(self) -> list[Received]:
        """All requests so far, in the order of their arrival."""
        with self._lock:
            return list(self._received)

    def to(self, path: str) -> list[Received]:
        """The requests to one path."""
        return [received for received in self.received if received.path == path]
