"""Exit 0 when this container does its work; else says why not and exits 1.

Asks the two processes themselves through nginx, so that a broken route is seen too. Plain sockets: this runs every
few seconds, and an HTTP library would triple its cost.
"""

import os
import socket
import sys

TIMEOUT_S = 4.0  # below the health check's own, so that the reason is reported and not cut off


def status_line(path: str) -> str:
    """The status line and, where it is not 200, the body of GET `path`."""
    with socket.create_connection(("127.0.0.1", 8080), timeout=TIMEOUT_S) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.0\r\nHost: localhost\r\nUser-Agent: whalefall-healthcheck\r\n\r\n".encode()
        )
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    line = head.split(b"\r\n")[0].decode(errors="replace")
    return line if " 200 " in line + " " else f"{line}: {body[:400].decode(errors='replace')}"


def main() -> int:
    if os.environ.get("ENABLE_SCHEDULER", "true").strip().lower() in {"true", "1", "yes"}:
        paths = ["/api/v1/health/ready", "/api/v1/scheduler/health/ready"]
    else:
        # No scheduler turns here, on purpose; readiness would ask for one.
        paths = ["/api/v1/health/live"]
    for path in paths:
        try:
            answer = status_line(path)
        except OSError as error:
            answer = str(error)
        if " 200 " not in answer.split(":")[0] + " ":
            print(f"{path}: {answer}")
            return 1
    return 0


sys.exit(main())
