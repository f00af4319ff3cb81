"""A task's parameters: read from its signature, checked and coerced as pydantic does."""

from __future__ import annotations

import json
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from app.errors import ValidationError
from app.tasks import Task, task

if TYPE_CHECKING:
    from nowhere import Run  # exists for type checkers only


class Window(BaseModel):
    since: date
    days: int = 1


@task("every_kind", description="One parameter of every kind")
def every_kind(  # noqa: PLR0917
    text: str,
    mode: Literal["fast", "safe"] = "safe",
    count: Optional[int] = None,  # noqa: UP045 - the older spelling must work too
    ratio: float = 0.5,
    flag: bool = False,
    names: list[str] | None = None,
    limits: dict[str, int] | None = None,
    implied: str = None,  # type: ignore[assignment]  # noqa: RUF013 - what people write
    size: Annotated[int, Field(ge=1, le=9)] = 1,
    window: Window | None = None,
    anything=7,
    *,
    run: Run,
) -> Run:
    return run


@task("open_ended")
def open_ended(**limits: int) -> dict[str, int]:
    """Takes any number of limits.

    And this is no part of the description.
    """
    return limits


def declared(name: str) -> Task:
    return next(one for one in globals()["__whalefall_tasks__"] if one.name == name)


def test_signature_is_read():
    found = declared("every_kind")
    assert found.wants_run
    assert found.func_ref == f"{__name__}:every_kind"
    assert {one.name: (one.type_name, one.required, one.default) for one in found.parameters} == {
        "text": ("str", True, None),
        "mode": ("Literal['fast', 'safe']", False, "safe"),
        "count": ("Optional[int]", False, None),
        "ratio": ("float", False, 0.5),
        "flag": ("bool", False, False),
        "names": ("list[str] | None", False, None),
        "limits": ("dict[str, int] | None", False, None),
        "implied": ("str | None", False, None),
        "size": ("int", False, 1),
        "window": (f"{__name__}.Window | None", False, None),
        "anything": ("Any", False, 7),
    }
    assert declared("open_ended").description == "Takes any number of limits."


def test_description_is_json():
    described = json.loads(json.dumps([declared("every_kind").describe(), declared("open_ended").describe()]))
    size = next(one for one in described[0]["parameters"] if one["name"] == "size")
    assert size == {
        "name": "size",
        "type": "int",
        "required": False,
        "default": 1,
        "schema": {"type": "integer", "minimum": 1, "maximum": 9},
    }
    assert [one["accepts_extra"] for one in described] == [False, True]


@pytest.mark.parametrize(
    ("given_kwargs", "stored"),
    [
        ({}, {}),
        ({"mode": "fast"}, {"mode": "fast"}),
        ({"count": "12"}, {"count": 12}),
        ({"count": None}, {"count": None}),
        ({"ratio": "1.5"}, {"ratio": 1.5}),
        ({"flag": "true"}, {"flag": True}),
        ({"names": ["甲", ""]}, {"names": ["甲", ""]}),
        ({"limits": {"a": "3"}}, {"limits": {"a": 3}}),
        ({"implied": None}, {"implied": None}),
        ({"window": {"since": "2026-02-28"}}, {"window": {"since": "2026-02-28", "days": 1}}),
        ({"anything": [1, {"a": None}]}, {"anything": [1, {"a": None}]}),
    ],
)
def test_accepted_kwargs_are_coerced_and_stay_json(given_kwargs, stored):
    found = declared("every_kind").stored_kwargs({"text": "x", **given_kwargs})
    assert found == {"text": "x", **stored}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("kwargs", "field"),
    [
        ({}, "kwargs.text"),
        ({"text": 5}, "kwargs.text"),
        ({"text": None}, "kwargs.text"),
        ({"text": "x", "mode": "slow"}, "kwargs.mode"),
        ({"text": "x", "count": "many"}, "kwargs.count"),
        ({"text": "x", "count": 1.5}, "kwargs.count"),
        ({"text": "x", "ratio": float("nan")}, "kwargs.ratio"),
        ({"text": "x", "ratio": "inf"}, "kwargs.ratio"),
        ({"text": "x", "flag": "maybe"}, "kwargs.flag"),
        ({"text": "x", "names": "abc"}, "kwargs.names"),
        ({"text": "x", "limits": {"a": "b"}}, "kwargs.limits"),
        ({"text": "x", "size": 10}, "kwargs.size"),
        ({"text": "x", "window": {"since": "never"}}, "kwargs.window"),
        ({"text": "x", "anything": float("inf")}, "kwargs.anything"),
        ({"text": "x", "anything": ["\ud800"]}, "kwargs.anything"),
        ({"text": "\ud800"}, "kwargs.text"),
        ({"text": "x", "typo": 1}, "kwargs.typo"),
        ({"text": "x", "run": "mine"}, "kwargs.run"),
    ],
)
def test_refused_kwargs_name_their_field(kwargs, field):
    with pytest.raises(ValidationError) as caught:
        declared("every_kind").stored_kwargs(kwargs)
    assert caught.value.context["field"] == field
    assert "accepted" in caught.value.context
    assert "%(" not in str(caught.value)


def test_error_says_where_inside_a_value():
    with pytest.raises(ValidationError, match=r"limits\.b "):
        declared("every_kind").stored_kwargs({"text": "x", "limits": {"a": 1, "b": "?"}})


def test_further_keywords_are_checked_by_their_annotation():
    assert declared("open_ended").stored_kwargs({"cpu": "4"}) == {"cpu": 4}
    with pytest.raises(ValidationError):
        declared("open_ended").stored_kwargs({"cpu": "all"})
    with pytest.raises(ValidationError):
        declared("open_ended").stored_kwargs({"\ud800": 1})


def test_call_coerces_and_gives_run_only_to_who_asks():
    marker = object()
    assert declared("every_kind").call({"text": "x"}, marker) is marker
    assert declared("open_ended").call({"cpu": "4"}, marker) == {"cpu": 4}
    since = declared("every_kind").arguments({"text": "x", "window": {"since": "2026-01-01"}})["window"].since
    assert since == date(2026, 1, 1)


@given(
    st.dictionaries(
        st.sampled_from(["text", "mode", "count", "flag", "names", "limits", "window", "anything", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=5,
        ),
    )
)
def test_any_json_is_stored_or_refused(kwargs: dict[str, Any]):
    try:
        stored = declared("every_kind").stored_kwargs({"text": "x", **kwargs})
    except ValidationError:
        return
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored
    assert declared("every_kind").stored_kwargs(stored) == stored


async def _coroutine() -> None: ...


def _generator():
    yield


def _positional(a, /): ...


def _unknown_name(a: NoSuchType): ...  # noqa: F821


def _unchecked_type(a: pytest.MonkeyPatch): ...


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (_coroutine, "awaited"),
        (_generator, "generator"),
        (_positional, "positional-only"),
        (_unknown_name, "NoSuchType"),
        (_unchecked_type, "cannot be checked"),
    ],
)
def test_functions_that_cannot_serve_are_refused(function, said):
    with pytest.raises(TypeError, match=said):
        task("refused")(function)


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", "-a", "a\n", "x" * 101, None, 7])
def test_names_that_cannot_serve_are_refused(name):
    with pytest.raises(TypeError, match="task name"):
        task(name)
