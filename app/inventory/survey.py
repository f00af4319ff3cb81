"""Asks every instance, and reports on each: one that fails stops no other."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from app.inventory.connectors import connect
from app.inventory.instances import Instance
from app.inventory.readings import Connector, InstanceError

SIMULTANEOUS_INSTANCES = 8
"""Connections at once: enough that a few unreachable instances, 10 s each, do not hold up the rest."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class InstancesFailed(RuntimeError):
    """Some instances could not be read or stored; the text is the report on all of them, a line each."""


def survey(
    instances: Sequence[Instance],
    read: Callable[[Connector], T],
    store: Callable[[Instance, T], Mapping[str, Any]],
) -> None:
    """Read every instance, store what was read, log a line on each; InstancesFailed at the end if any failed.

    read runs in threads of its own, `store` in the caller's (one writer at a time, and its log belongs to the
    run). store returns what the report tells, as words without spaces -> values; it may raise InstanceError
    after it has stored what there was.
    """
    outcomes: dict[str, tuple[bool, str]] = {}
    for instance, reading in _read_all(instances, read):
        began = time.monotonic()
        facts: dict[str, Any] = {"instance": instance.name, "kind": instance.kind}
        facts["address"] = instance.address
        try:
            duration_s, value = reading.result()
            facts |= {"outcome": "success", **store(instance, value)}
            facts["duration_ms"] = round((duration_s + time.monotonic() - began) * 1000)
        except InstanceError as error:
            facts |= {"outcome": "failed", "error": str(error)}
        except Exception as error:  # a driver's surprise on one instance must not cost the others their turn
            logger.exception("instance %s: unexpected error", instance.name)
            facts |= {"outcome": "failed", "error": f"{type(error).__name__}: {error}"}
        failed = facts["outcome"] == "failed"
        outcomes[instance.name] = (failed, report_line(facts))
        logger.log(logging.ERROR if failed else logging.INFO, "%s", report_line(facts))
    failures = sum(failed for failed, _ in outcomes.values())
    if failures:
        lines = [outcomes[instance.name][1] for instance in instances]
        raise InstancesFailed("\n".join([f"{failures} of {len(instances)} instances failed", *lines]))


def report_line(facts: Mapping[str, Any]) -> str:
    """`key=value key="value with spaces"`: a line that people read and programs split."""
    return " ".join(f"{key}={_word(value)}" for key, value in facts.items())


def _word(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        value = ",".join(str(item) for item in value)
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    text = str(value)
    plain = text.isprintable() and text and not set(text) & set(" \"'=")
    return text if plain else json.dumps(text, ensure_ascii=False)


def _read_all(
    instances: Sequence[Instance], read: Callable[[Connector], T]
) -> Iterator[tuple[Instance, Future[tuple[float, T]]]]:
    def read_one(instance: Instance) -> tuple[float, T]:
        began = time.monotonic()
        with connect(instance) as connector:
            value = read(connector)
        return time.monotonic() - began, value

    if not instances:
        return
    workers = min(SIMULTANEOUS_INSTANCES, len(instances))
    with ThreadPoolExecutor(workers, thread_name_prefix="inventory") as pool:
        readings = {pool.submit(read_one, instance): instance for instance in instances}
        for reading in as_completed(readings):
            yield readings[reading], reading
