"""Gunicorn for web: pages and the business API. Settings of this file: WEB_CONCURRENCY, GUNICORN_WORKER_TMP_DIR,
LISTEN_ADDRESS."""

import ctypes
import gc
import os
import re
import signal
import sys

from gunicorn.glogging import Logger

from app.log_lines import formatter_in, refuse  # the one part of the app that the master loads: no more than logging

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class WebLogger(Logger):
    """Gunicorn's own lines in the form of the app's, and where those are."""

    def setup(self, cfg):
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setStream(sys.stdout)
            handler.setFormatter(formatter_in(os.environ, "web"))


def worker_count() -> int:
    """WEB_CONCURRENCY, 2 when unset; ends the process with one line on anything but 1 to 64."""
    value = os.environ.get("WEB_CONCURRENCY", "").strip() or "2"
    if not re.fullmatch("[0-9]{1,2}", value) or not 1 <= int(value) <= 64:
        refuse(os.environ, "web", f"WEB_CONCURRENCY is {value!r}; accepted: a whole number from 1 to 64")
    return int(value)


proc_name = "whalefall-web"
# Bound where only nginx reaches it: in its own container, or (the image whalefall/app sets the variable) on the compose
# network, which publishes none of it.
listen_address = os.environ.get("LISTEN_ADDRESS") or "127.0.0.1"
bind = [f"{listen_address}:5001"]
workers = worker_count()
worker_class = "gthread"
threads = 4

# The app is loaded once and its memory shared by the workers.
preload_app = True
timeout = 60
# Below supervisor's stopwaitsecs for this program.
graceful_timeout = 15
# Longer than nginx keeps an idle connection (20 s), so that it never sends into one that closes.
keepalive = 30

limit_request_line = 4094
limit_request_fields = 100
limit_request_field_size = 8190

# nginx sets one header and drops what clients claim; nobody else can connect. In a container of its own nginx has an
# address that changes.
forwarded_allow_ips = "127.0.0.1" if listen_address == "127.0.0.1" else "*"
secure_scheme_headers = {"X-FORWARDED-PROTO": "https"}
forwarder_headers = ""

# A disk can block the heartbeat file's fchmod for longer than the timeout.
worker_tmp_dir = os.environ.get("GUNICORN_WORKER_TMP_DIR") or "/dev/shm"  # noqa: S108 - the name in it is random
# Nobody administers Gunicorn through a socket; signals do.
control_socket_disable = True

# nginx logs every request once, with its id and its upstream.
accesslog = None
errorlog = "-"
logger_class = WebLogger


def when_ready(_server):
    """Keep the collector off what was loaded before the fork: touching it would copy the shared pages."""
    gc.collect()
    gc.freeze()


def post_fork(_server, _worker):
    """Have the kernel send SIGTERM when the master dies, however it dies: the next master needs the port.

    Gunicorn alone would notice, yet keep the port for as long as clients use their open connections.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
