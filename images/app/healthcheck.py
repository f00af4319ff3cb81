"""Exit 0 when this container does its work; else say why not and exit 1.

    healthcheck.py             the one container: web and scheduler through its nginx, so that a broken route is seen
    healthcheck.py PORT PATH   a process of this container, asked directly

Plain sockets: this runs every few seconds, and an HTTP library would triple its cost.
"""

import os
import socket
import sys

TIMEOUT_S = 4.0  # below the health check's own, so that the reason is reported and not cut off
NGINX = 8080
READY = ("/api/v1/health/ready", "/api/v1/scheduler/health/ready")
# A surplus machine: no scheduler turns here on purpose, and readiness would ask for one.
ALIVE = ("/api/v1/health/live",)


def get(port: int, path: str) -> tuple[bool, str]:
    """Whether GET `path` answers 200, and the answer's first line with its body."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.0\r\nHost: localhost\r\nUser-Agent: whalefall-healthcheck\r\n\r\n".encode()
        )
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, body = answer.decode(errors="replace").partition("\r\n\r\n")
    line = head.partition("\r\n")[0]
    return line.split(" ")[1:2] == ["200"], f"{line}: {body[:400]}"


def asked() -> list[tuple[int, str]]:
    """Ports and paths that must answer 200."""
    if len(sys.argv) == 3:
        return [(int(sys.argv[1]), sys.argv[2])]
    # The same words as in app/settings.py.
    enabled = os.environ.get("ENABLE_SCHEDULER", "true").strip().lower() in {"true", "1", "yes"}
    return [(NGINX, path) for path in (READY if enabled else ALIVE)]


def problem() -> str | None:
    """What is wrong, in one line; None when nothing is."""
    for port, path in asked():
        try:
            healthy, answer = get(port, path)
        except OSError as error:
            healthy, answer = False, str(error)
        if not healthy:
            return f"{path}: {answer}"
    return None


found = problem()
if found:
    sys.stdout.write(f"{found}\n")
    sys.exit(1)
