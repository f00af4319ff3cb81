"""Pickles are read as data: whatever they ask for, nothing of it happens."""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.services.operations.legacy.pickles import LARGEST, Made, Name, UnreadablePickle, read_pickle

PLAIN: list[Any] = [
    None,
    True,
    {"a": [1, -2.5, "text", b"bytes", (1, 2, 3, 4), {}], "empty": ((), []), "long": 10**30, "中": "文"},
    list(range(300)),
    {1: "x", None: "y", 2.5: "z"},
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_plain_values_come_back(value: Any, protocol: int) -> None:
    found = read_pickle(pickle.dumps(value, protocol))
    if protocol < 3 and isinstance(value, dict):  # bytes are a call there
        assert isinstance(found, dict)
    else:
        assert found == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_objects_are_noted_down_and_not_made(protocol: int) -> None:
    found = read_pickle(pickle.dumps([datetime(2026, 1, 1, tzinfo=UTC), timedelta(1)], protocol))
    assert [type(each) for each in found] == [Made, Made]
    assert found[0].maker == Name("datetime", "datetime")
    assert found[1].args == (1, 0, 0)


def test_one_object_twice_stays_one() -> None:
    inner = [1]
    found = read_pickle(pickle.dumps({"a": inner, "b": inner}))
    assert found["a"] is found["b"]


def test_hostile_pickles_execute_nothing(
    hostile: dict[str, bytes], sentinel: Path, load: Callable[[bytes], bool]
) -> None:
    harmless = []
    for name, data in hostile.items():
        if not load(data):  # or the test would prove nothing
            harmless.append(name)
        before = set(sys.modules)
        with contextlib.suppress(UnreadablePickle):
            read_pickle(data)
        assert not sentinel.exists(), name
        assert set(sys.modules) == before, name
    # This one's first call fails when it is loaded; all others do what they are made for.
    assert harmless == ["getattr chain"]


def test_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "imported_by_a_pickle.py"
    module.write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = read_pickle(b"cimported_by_a_pickle\nX\n)R.")
    assert str(found.maker) == "imported_by_a_pickle.X"
    assert "imported_by_a_pickle" not in sys.modules


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"no pickle at all",
        b"\x80\x04",
        b"\x80\x04K\x01",
        b"\x80\x04h\x05.",  # a memo that is not there
        b"\x80\x04}(K\x01u.",  # a key without a value
        b"\x80\x04](K\x01K\x02s.",  # items for what is no mapping
        b"\x80\x04}(]K\x01u.",  # a list as a key
        b"\x80\x04}(" + b"(" * 50 + b"t" * 50 + b"K\x01u.",  # a tuple as a key
        b"\x80\x04K\x01}b.",  # a state for a number
        b"Pperson\n.",  # a persistent id
        b"\x82\x01.",  # an extension
        b"I" + b"9" * 5000 + b"\n.",
        b"\x8a\xff" + b"\x01" * 3 + b".",
        b"\x80\x05\x97.",  # an out-of-band buffer
        b"V" + b"\\ud800" * 2,
        b"N" * (LARGEST + 1),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(data: bytes) -> None:
    with pytest.raises(UnreadablePickle) as refused:
        read_pickle(data)
    assert str(refused.value)


def test_deep_nesting_does_no_harm() -> None:
    depth = 200_000
    found = read_pickle(b"(" * depth + b"t" * depth + b".")
    assert isinstance(found, tuple)
    assert isinstance(read_pickle(b"]" * depth + b"a" * (depth - 1) + b"."), list)


@settings(max_examples=400)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(UnreadablePickle):
        read_pickle(data)


@settings(max_examples=400)
@given(st.data())
def test_a_damaged_pickle_is_read_or_refused(data: st.DataObject) -> None:
    intact = pickle.dumps({"version": 1, "at": datetime(2026, 1, 1, tzinfo=UTC), "kwargs": {"a": [1, 2]}})
    damaged = bytearray(intact)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UnreadablePickle):
        read_pickle(bytes(damaged[: data.draw(st.integers(1, len(damaged)))]))
