"""Readings of /metrics, and the library's way to keep values, which every app sets anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client import values
from prometheus_client.parser import text_string_to_metric_families

Reading = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(autouse=True)
def values_as_before() -> Iterator[None]:
    before = values.ValueClass
    yield
    values.ValueClass = before


@pytest.fixture
def read(client: FlaskClient) -> Callable[..., float | None]:
    """The value of one sample, asked for anew: `read("whalefall_jobs", state="total")`; None when there is none."""

    def one(name: str, **labels: Any) -> float | None:
        answer = client.get("/metrics")
        assert answer.status_code == 200
        wanted = {label: str(value) for label, value in labels.items()}
        found = [
            sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
            if sample.name == name and wanted.items() <= sample.labels.items()
        ]
        assert len(found) <= 1, f"{name} {labels}: {len(found)} samples"
        return found[0] if found else None

    return one
