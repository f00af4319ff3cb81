"""Whatever a body holds: an envelope, 200 or 400, and nothing half changed. Never a 500."""

from __future__ import annotations

from typing import Any

from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.services.scheduler.job_input import JobChangeInput, TriggerPreviewInput
from tests.unit.routes.conftest import JOBS, create, data

# Half surrogate pairs, NaN and numbers of any size too: all of them can be sent.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**400), max_value=10**400),
    st.floats(),
    st.text(max_size=20),
    st.text(alphabet="\0\ud800\udfff鲸0*/-,: ", max_size=20),
    st.sampled_from(["*/5", "0", "1-5", "mon", "2030-01-01T00:00:00Z", "x" * 10_000, "9" * 400, "Asia/Shanghai"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


def bodies(fields: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """A trigger of some type, with up to five fields that hold anything."""
    types = st.fixed_dictionaries({"trigger_type": st.sampled_from(["cron", "interval", "date"])})
    others = st.dictionaries(st.sampled_from(fields), VALUES, max_size=5)
    return st.tuples(types, others).map(lambda both: {**both[0], **both[1]})


CHANGES = bodies(sorted(JobChangeInput.model_fields))
PREVIEWS = bodies(sorted(TriggerPreviewInput.model_fields))
FUZZ = settings(
    max_examples=150,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZ
@given(body=CHANGES)
def test_changes(api: FlaskClient, body: dict[str, Any]) -> None:
    listed = {item["id"]: item for item in data(api.get(f"{JOBS}?source=own"))}
    before = listed.get("mine") or create(api)
    answer = api.put(f"{JOBS}/mine", json=body)
    assert answer.status_code in (200, 400), answer.get_data(as_text=True)
    after = data(api.get(f"{JOBS}/mine"))
    assert after["revision"] == before["revision"] + (answer.status_code == 200)


@FUZZ
@given(body=CHANGES)
def test_creations(api: FlaskClient, body: dict[str, Any]) -> None:
    body = {"task": "note", "kwargs": {"path": "/dev/null"}, **body}
    answer = api.post(JOBS, json=body)
    assert answer.status_code in (201, 400), answer.get_data(as_text=True)
    if answer.status_code == 201:
        assert data(api.get(f"{JOBS}/{answer.get_json()['data']['id']}"))["trigger"]


@FUZZ
@given(body=PREVIEWS)
def test_previews(api: FlaskClient, body: dict[str, Any]) -> None:
    answer = api.post("/api/v1/scheduler/triggers/preview", json=body)
    assert answer.status_code in (200, 400), answer.get_data(as_text=True)


@FUZZ
@given(
    name=st.sampled_from(["limit", "cursor", "state", "task", "q", "source", "is_enabled", "is_active", "other"]),
    value=SCALARS.map(str),
)
def test_options(api: FlaskClient, name: str, value: str) -> None:
    text = value.encode("utf-8", "replace").decode()
    for path in (JOBS, f"{JOBS}/sync_accounts/history"):
        answer = api.get(path, query_string={name: text})
        assert answer.status_code in (200, 400), answer.get_data(as_text=True)
