"""Counts the requests of the processes of one container, each in a file of its own, so that one answer has them all.

prometheus-client keeps such files by process id: one more for every worker that was ever started. Here a process takes
a place, the first that nobody holds, and goes on with the counts of whoever had it before.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from flask import Flask, request
from prometheus_client import CollectorRegistry, Counter, Histogram, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.values import MultiProcessValue, MutexValue

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from prometheus_client.registry import Collector

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0)
UNMATCHED = "none"
"""The route of a request that has none: what a scanner asks for must not become a time series."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

FILE_BYTES = {"counter": 64 * 1024, "histogram": 256 * 1024}
"""Room for all routes. Taken at once: memory that turns out to be full when it is first used ends the process."""
_MOST_PLACES = 256
_NO_PLACE = "none"
_ROUTE = "whalefall.route"

log = structlog.get_logger(__name__)


class Places:
    """Gives each process the number of its place in `folder`; held until the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pid = 0
        self._place = _NO_PLACE
        self._is_open = False

    def open(self) -> None:
        """From now on a process that asks takes a place; the one that only forks others never does."""
        self._is_open = True

    def __call__(self) -> str:
        if self._is_open and self._pid != os.getpid():
            self._place = self._take()
            self._pid = os.getpid()
        return self._place

    def _take(self) -> str:
        for number in range(_MOST_PLACES):
            held = os.open(self._folder / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(held)
                continue
            # Left open: the lock ends with the process.
            for kind, size in FILE_BYTES.items():
                _reserve(self._folder / f"{kind}_{number}.db", size)
            return str(number)
        raise OSError(f"all {_MOST_PLACES} places in {self._folder} are taken")


def _reserve(file: Path, size: int) -> None:
    if file.exists():  # of whoever had the place before
        return
    unfinished = file.with_suffix(".new")  # an empty file would fail those who read all of them
    try:
        with unfinished.open("wb") as opened:
            os.posix_fallocate(opened.fileno(), 0, size)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    unfinished.rename(file)


class RequestCounts:
    """Requests of this process's container by route, method and status, and how long they took.

    folder: where the processes keep their counts, as PROMETHEUS_MULTIPROC_DIR says it, which the library reads by
    itself; None counts those of this process alone. node, program: labels.
    """

    def __init__(self, *, folder: Path | None, node: str, program: str) -> None:
        self._folder = folder
        self._works = True
        # The library's own way to say how values are kept; it holds for every metric made from now on.
        values.ValueClass = MutexValue if folder is None else _kept_in(folder)
        self._own = CollectorRegistry()
        labels = ("node", "program", "route", "method", "status")
        requests = Counter("whalefall_http_requests", "Requests answered", labels, registry=self._own)
        seconds = Histogram(
            "whalefall_http_request_duration_seconds",
            "Seconds to the answer",
            ("node", "program", "route"),
            buckets=BUCKETS_S,
            registry=self._own,
        )
        self._count: Callable[[str, str, str], Any] = lambda route, method, status: requests.labels(
            node, program, route, method, status
        ).inc()
        self._time: Callable[[str, float], Any] = lambda route, took: seconds.labels(node, program, route).observe(took)

    def add(self, *, route: str, method: str, status: str, seconds: float) -> None:
        """Counts one request. Never raises: what cannot be counted is served all the same."""
        if not self._works:
            return
        try:
            self._count(route, method, status)
            self._time(route, seconds)
        except OSError as error:
            self._works = False
            log.warning("requests are not counted any more", folder=str(self._folder), error=str(error))

    def collector(self) -> Collector:
        """What gives the counts of all processes of the container."""
        if self._folder is None:
            return self._own
        return MultiProcessCollector(None, str(self._folder))  # type: ignore[no-untyped-call]


def _kept_in(folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    places = Places(folder)
    made = MultiProcessValue(places)  # type: ignore[no-untyped-call]
    places.open()
    return made


def count_requests(app: Flask, counts: RequestCounts) -> None:
    """Has every request of `app` counted once, also one that was done twice for its one answer."""
    app.wsgi_app = _Counted(app.wsgi_app, counts)  # type: ignore[method-assign]
    app.before_request(_note_route)


def _note_route() -> None:
    if request.url_rule is not None and _ROUTE in request.environ:
        request.environ[_ROUTE].append(request.url_rule.rule)


class _Counted:
    def __init__(self, inner: WSGIApplication, counts: RequestCounts) -> None:
        self._inner, self._counts = inner, counts

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        begin = time.perf_counter()
        routes: list[str] = []
        environ[_ROUTE] = routes  # a list, because app.http.store_outage copies the environment
        statuses: list[str] = []

        def noting(status: str, *rest: Any) -> Any:
            statuses.append(status)
            return start_response(status, *rest)

        try:
            return self._inner(environ, noting)
        finally:
            method = environ["REQUEST_METHOD"]
            self._counts.add(
                route=routes[-1] if routes else UNMATCHED,
                method=method if method in METHODS else "other",
                status=statuses[-1][:3] if statuses else "500",
                seconds=time.perf_counter() - begin,
            )
