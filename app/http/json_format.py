"""JSON in and out, for every request and answer of the app.

In: what the standard library lets through but no JSON standard knows is refused with a ValueError, which
Flask answers as a bad request: NaN and infinities, nesting beyond what Python walks, half surrogate pairs (no
database stores them). Out: readable Chinese, datetimes as ISO 8601 with their offset.
"""

from __future__ import annotations

import json
import math
from datetime import date, datetime
from typing import Any

from flask.json.provider import DefaultJSONProvider


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is out of range")
    return number


def _default(value: Any) -> Any:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise TypeError(f"a datetime needs a time zone to be answered: {value!r}")
        return value.isoformat()
    if isinstance(value, date):
        return value.isoformat()
    return DefaultJSONProvider.default(value)


class JSONProvider(DefaultJSONProvider):
    """The app's `app.json`."""

    ensure_ascii = False
    sort_keys = False  # an answer keeps the order in which it was written
    default = staticmethod(_default)

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        text = super().dumps(obj, **kwargs)
        return text.encode("utf-8", "backslashreplace").decode("utf-8")

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        try:
            value = json.loads(s, parse_constant=_refuse_constant, parse_float=_finite, **kwargs)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        # Half pairs come only from escapes such as \ud800, so the check costs nothing without one.
        if (b"\\u" if isinstance(s, bytes) else "\\u") in s:  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # UnicodeEncodeError is a ValueError
        return value
