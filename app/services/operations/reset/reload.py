"""Asks this machine's scheduler, through its API, to register the default jobs anew."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from app.services.operations.exports import exports_folder
from app.services.operations.failure import OperationFailed
from app.settings import Settings

ADDRESS = "http://127.0.0.1:5002"
"""Where the scheduler of the same container listens, in every shape (gunicorn/gunicorn-scheduler.conf.py)."""
PATIENCE_S = 120.0
"""It deletes and registers job by job."""


def reload_through_api(settings: Settings) -> dict[str, Any]:
    """What the API answers: the ids `deleted` and `reloaded`, why those in `failed` stayed, and the path of the
    `export` that was made before. OperationFailed when it refuses, or nobody answers."""
    request = urllib.request.Request(  # noqa: S310 - a fixed address
        f"{ADDRESS}/api/v1/scheduler/jobs/actions/reload",
        method="POST",
        headers={"Authorization": f"Bearer {settings.api_token}", "Accept-Language": "en"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the container was given
    try:
        with direct.open(request, timeout=PATIENCE_S) as answer:
            data: dict[str, Any] = json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        raise OperationFailed(f"the scheduler refused to reload the jobs: {_message(error)}") from error
    except (OSError, ValueError, KeyError) as error:
        raise OperationFailed(
            f"the scheduler of this container gave no answer: {error};"
            " what it did is in its log and in userdata/exports/"
        ) from error
    return {**data, "export": str(exports_folder(settings) / data["export"])}


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"
