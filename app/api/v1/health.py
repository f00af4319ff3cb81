"""Health of the app as its users see it: asked of any process that serves the business API."""

from __future__ import annotations

from apiflask import APIBlueprint
from flask import Response

from app.api.v1.envelope import success
from app.errors import _N, ServiceUnavailable
from app.services.health_service import readiness

RETRY_AFTER_S = 2  # a scheduler that was restarted beats again within about this time

health = APIBlueprint("health", __name__, url_prefix="/api/v1/health", tag="health")


@health.get("/basic")
@health.doc(summary="200 as soon as the web answers")
def basic() -> Response:
    return success({"status": "ok"})


@health.get("/live")
@health.doc(summary="200 while this process serves requests")
def live() -> Response:
    return success({"status": "ok"})


@health.get("/ready")
@health.doc(summary="200 while the stores answer and a scheduler is turning, else 503")
def ready() -> Response:
    found = readiness()
    checks = {
        "jobstore": "ok" if found.jobstore else "unreachable",
        "database": "ok" if found.database else "unreachable",
        "scheduler": "ok" if found.scheduler else "silent",
        "heartbeat_age_s": None if found.heartbeat_age_s is None else round(found.heartbeat_age_s, 3),
    }
    if not found.ready:
        raise ServiceUnavailable(_N("服务尚未就绪"), context=checks, retry_after=RETRY_AFTER_S)
    return success({"status": "ok", **checks})
