"""How connections to a PostgreSQL server are opened, so that one that comes back is found within about a second.

A packet that is sent while the server's address comes up is lost, and what the system does about that takes seconds, up
to ten after the restart of a container. So a short knock at the server's door comes first, and is repeated.
"""

from __future__ import annotations

import socket
import time
from typing import Any

KNOCK_S = 1.0
"""How long a knock waits for the server to take it."""
KNOCKS = 2
"""After so many in vain the connection is opened all the same: a network may be slower than a knock."""
TRUSTED_S = 5.0
"""So long after a connection was opened the server is known to be there, unless the next one fails."""

REFUSALS = (
    "password authentication failed",
    "no password supplied",
    "does not exist",
    "no pg_hba.conf entry",
)
"""Words of a server that answers and refuses: waiting is useless. What says none of them is waited for, because the
driver gives no code for a failed connection."""
_PAUSE_S = 0.1
_PORT = 5432


class Connector:
    """Opens the connections of one engine: a listener of SQLAlchemy's event `do_connect`.

    A server that is away is waited for up to `patience_s` seconds.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._opened_at = float("-inf")

    def __call__(self, dialect: Any, _record: Any, args: Any, parameters: dict[str, Any]) -> Any:
        """A connection of the driver; its OperationalError when there is none."""
        deadline = time.monotonic() + self._patience_s
        while True:
            if time.monotonic() - self._opened_at > TRUSTED_S:
                _knock(parameters)
            try:
                connection = dialect.connect(*args, **parameters)
            except dialect.dbapi.OperationalError as error:
                self._opened_at = float("-inf")
                if time.monotonic() >= deadline or any(words in str(error) for words in REFUSALS):
                    raise
                time.sleep(_PAUSE_S)
            else:
                self._opened_at = time.monotonic()
                return connection


def _knock(parameters: dict[str, Any]) -> None:
    """Returns when the server's door opens, or when waiting for it is useless."""
    host, port = parameters.get("host"), parameters.get("port", _PORT)
    if not host or host.startswith(("/", "@")) or "," in f"{host}{port}" or "hostaddr" in parameters:
        return  # a socket file, or several servers, of which the driver takes one
    for _ in range(KNOCKS):
        try:
            socket.create_connection((host, int(port)), timeout=KNOCK_S).close()
        except TimeoutError:
            continue
        except OSError:
            pass  # the driver says it better
        return
