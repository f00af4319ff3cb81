"""GET /metrics, and who may read it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator

import structlog
from flask import Flask, Response, request
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from app.errors import _N, AuthenticationRequired, Forbidden, ValidationError
from app.metrics.deployment import Deployment
from app.metrics.request_counts import RequestCounts, count_requests
from app.runtime import runtime_of

PATH = "/metrics"
GATE_HEADER = "X-Metrics-Gate"
"""Set by nginx on every request, whatever its client says: `open` where METRICS_ALLOW or the port says so. Without it
the request did not come through nginx, and so not from outside."""
PARTS = ("deployment", "requests")

log = structlog.get_logger(__name__)


class _Part(Collector):
    """Gives nothing where its source fails, so that the others still tell what they know."""

    def __init__(self, name: str, source: Callable[[], Iterator[Metric]]) -> None:
        self._name, self._source = name, source

    def collect(self) -> Iterator[Metric]:
        try:
            yield from list(self._source())
        except Exception:
            log.exception("a part of the metrics is missing", part=self._name)


def init_metrics(app: Flask, *, program: str) -> None:
    """Count the requests of `app`, which is `program` (web, scheduler), and serve the metrics."""
    runtime = runtime_of(app)
    settings = runtime.settings
    counts = RequestCounts(folder=settings.metrics_dir, node=settings.node_name, program=program)
    count_requests(app, counts)
    deployment = Deployment(runtime)
    sources = {"deployment": deployment.collect, "requests": lambda: iter(counts.collector().collect())}

    @app.get(PATH)
    def metrics() -> Response:
        _check_access(settings.metrics_token)
        registry = CollectorRegistry()
        for name in _wanted():
            registry.register(_Part(name, sources[name]))
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _check_access(token: str | None) -> None:
    gate = request.headers.get(GATE_HEADER)
    if gate is None or gate == "open":
        return
    if token is None:
        raise Forbidden(_N("此端口不提供指标；请设置 METRICS_ALLOW 或 METRICS_TOKEN（docs/metrics.md）"))
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not _same(given.strip(), token):
        raise AuthenticationRequired


def _same(given: str, token: str) -> bool:
    # Digests have one length, so that the comparison does not tell the token's.
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (given, token)]
    return hmac.compare_digest(*digests)


def _wanted() -> list[str]:
    """The parts that the option `collect[]` names; all without it."""
    named = request.args.getlist("collect[]")
    for name in named:
        if name not in PARTS:
            raise ValidationError(field="collect[]", value=name, accepted=", ".join(PARTS))
    return [name for name in PARTS if not named or name in named]
