"""Gunicorn for the scheduler: APScheduler and /api/v1/scheduler/**, in exactly one worker.

The number of workers is fixed here and does not read WEB_CONCURRENCY. Settings of this file: DRAIN_SECONDS,
GUNICORN_WORKER_TMP_DIR, LISTEN_ADDRESS.
"""

import ctypes
import os
import signal
import sys

from gunicorn.glogging import Logger

from app.log_lines import formatter_in, refuse  # the one part of the app that the master loads: no more than logging

ONE_WORKER = (
    "the scheduler runs in exactly one worker: another one would be a second scheduler process beside the first"
    " (more nodes are more containers on one store, never more workers)"
)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class SchedulerLogger(Logger):
    """Gunicorn's own lines in the form of the app's, and where those are."""

    def setup(self, cfg):
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setStream(sys.stdout)
            handler.setFormatter(formatter_in(os.environ, "scheduler"))


def drain_seconds() -> float:
    """DRAIN_SECONDS, read without app.settings: the master stays small as long as it does not load the app."""
    value = os.environ.get("DRAIN_SECONDS", "").strip() or "30"
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= 3600:
        refuse(os.environ, "scheduler", f"DRAIN_SECONDS is {value!r}; accepted: a number of seconds from 0 to 3600")
    return seconds


proc_name = "whalefall-scheduler"
# Bound where only nginx reaches it: in its own container, or (the image whalefall/app sets the variable) on the compose
# network, which publishes none of it.
listen_address = os.environ.get("LISTEN_ADDRESS") or "127.0.0.1"
bind = [f"{listen_address}:5002"]
workers = 1
# gthread: its main loop sends the heartbeat, however long a request takes.
worker_class = "gthread"
threads = 4

# Threads do not survive a fork: the scheduler must start in the worker.
preload_app = False
# Ending the worker after so many requests would end the runs in it.
max_requests = 0
# The drain, and time to write down what did not finish.
graceful_timeout = int(drain_seconds()) + 10
# Above the watchdog's 60 s, which knows better when the loop hangs and says so in the log; and above the drain, during
# which a worker that HUP replaces sends no heartbeat.
timeout = max(120, graceful_timeout + 20)
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
logger_class = SchedulerLogger


def on_starting(server):
    """Refuse `-w N` and GUNICORN_CMD_ARGS: they win over this file."""
    if server.cfg.workers != 1:
        refuse(os.environ, "scheduler", f"refused to start with {server.cfg.workers} workers: {ONE_WORKER}")


def nworkers_changed(server, new_value, old_value):
    """Refuse TTIN; Gunicorn itself ignores TTOU at one worker."""
    if old_value is not None and new_value != 1:
        # The attribute behind the property: setting the property would call this hook again.
        server._num_workers = 1
        server.log.error("refused to change the number of workers to %s: %s", new_value, ONE_WORKER)


def post_fork(_server, _worker):
    """Have the kernel send SIGTERM when the master dies, however it dies: the next master needs the port,
    and fires while this worker drains.

    Gunicorn alone would notice, yet keep the port for as long as clients use their open connections.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def post_worker_init(_worker):
    """From SIGTERM on, claim nothing more, while Gunicorn still serves the requests in flight."""
    from app.scheduler import get_scheduler  # noqa: PLC0415 - the app is loaded in the worker, not in the master

    stop_serving = signal.getsignal(signal.SIGTERM)

    def stop(number, frame):
        scheduler = get_scheduler()
        if scheduler is not None:
            scheduler.begin_stop()  # only sets a flag, so it may be called in a signal handler
        stop_serving(number, frame)

    signal.signal(signal.SIGTERM, stop)
    # As Gunicorn sets it: system calls of requests and runs go on undisturbed.
    signal.siginterrupt(signal.SIGTERM, False)


def worker_exit(_server, worker):
    """Drain: wait up to DRAIN_SECONDS for the runs in flight, release what never started.

    Here and not at the interpreter's exit: that would first wait for the executor's threads, without a deadline.
    """
    if worker.pid != os.getpid() or not worker.booted:
        return  # the master calls this too, for a worker that is already gone; and nothing runs in one that never began
    from app.scheduler import stop_scheduler  # noqa: PLC0415 - as above

    if not stop_scheduler():
        # The interpreter's exit would wait for the threads that are called lost already.
        sys.stdout.flush()
        os._exit(0)
