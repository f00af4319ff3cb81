"""A limit that holds even against a server that accepts a connection and never answers."""

from __future__ import annotations

import contextlib
import os
import socket
import threading


class SocketDeadline:
    """Shuts a socket down after `seconds`, unless cancelled before; whoever reads from it then gets an error.

    Statement timeouts are kept by the server, and keepalives by its kernel: neither helps when the server
    process itself is frozen, and a read that never ends would hold its job's only instance for ever.
    """

    def __init__(self, fileno: int, seconds: float) -> None:
        # A duplicate: the connection's own number may belong to another socket by the time it is used.
        self._socket = socket.socket(fileno=os.dup(fileno))
        self._lock = threading.Lock()
        self.expired = False
        self._timer = self._started(seconds)

    @property
    def seconds(self) -> float:
        """The limit that holds now."""
        return self._timer.interval

    def restart(self, seconds: float) -> None:
        """Allow `seconds` from now on instead. An expired deadline stays expired."""
        self._timer.cancel()
        if not self.expired:
            self._timer = self._started(seconds)

    def cancel(self) -> None:
        """Forget it. Can be called twice."""
        self._timer.cancel()
        with self._lock:
            self._socket.close()

    def _started(self, seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        return timer

    def _expire(self) -> None:
        with self._lock:
            if self._socket.fileno() != -1:
                self.expired = True
                with contextlib.suppress(OSError):  # the peer was faster
                    self._socket.shutdown(socket.SHUT_RDWR)
