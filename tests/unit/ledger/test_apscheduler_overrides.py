"""Fails when a release of APScheduler changes what app/ledger/apscheduler_overrides.py replaces or relies on."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from app.ledger.apscheduler_overrides import RELIED_ON, REPLACED

# When one differs: read the change, adapt the overrides, then put the new digest here.
DIGESTS: dict[str, str] = {
    "BlockingScheduler._main_loop": "e21b0684f3caa8f3",
    "BaseScheduler._process_jobs": "efd3944de4e2c69e",
    "BackgroundScheduler.start": "2767bdd39968aa57",
    "BackgroundScheduler.shutdown": "e002a9867a3afaf5",
    "BaseScheduler.pause_job": "c4eda49c8fb7e644",
    "BaseScheduler.resume_job": "e524187d4b3b467c",
    "BaseScheduler.remove_job": "3bbe875a9900db55",
    "BaseScheduler.start": "d340ef5e45032490",
    "BaseScheduler.shutdown": "ef18d868a76d8e0f",
    "BaseScheduler._dispatch_event": "7531aec39aecb774",
    "BaseScheduler._lookup_job": "ea6e36863d323a05",
    "BaseScheduler._real_add_job": "062c57317a039fb5",
    "BaseScheduler.modify_job": "b3e92f12da6dc69c",
    "Job.__setstate__": "d06f31a6c88e92db",
    "Job._modify": "e222f8aad3cd688a",
    "ThreadPoolExecutor.__init__": "ca19648d583f5207",
    "ProcessPoolExecutor.__init__": "2577572598894335",
}


def digest(function: Callable[..., Any]) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


@pytest.mark.parametrize("function", [*REPLACED, *RELIED_ON], ids=lambda function: function.__qualname__)
def test_apschedulers_source_is_what_the_overrides_were_written_for(function: Callable[..., Any]) -> None:
    assert digest(function) == DIGESTS[function.__qualname__]
