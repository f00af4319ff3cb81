"""What some of a pickle's data stands for: moments, lengths of time, time zones, and values that JSON can hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from app.job_fields import NESTING_LIMIT
from app.services.operations.legacy.pickles import Made, Name, UnreadablePickle
from app.triggers import known_timezone

MOST_VALUES = 10_000
"""Values of one job's arguments. A list that holds itself, or one many times over, would have no end."""


def class_of(value: Any) -> str:
    """`module.name` of what a Made was made by; what a plain value is called otherwise."""
    if not isinstance(value, Made):
        return type(value).__name__
    maker, args = value.maker, value.args
    if isinstance(maker, Name):
        # How protocols 0 and 1 write an object, and what protocol 2 writes where a class has no opcode of its own.
        if str(maker) in ("copy_reg._reconstructor", "copyreg._reconstructor", "copyreg.__newobj__") and args:
            return str(args[0]) if isinstance(args[0], Name) else str(maker)
        return str(maker).replace("__builtin__.", "builtins.")
    if class_of(maker) == "builtins.getattr" and len(maker.args) == 2 and isinstance(maker.args[0], Name):
        return f"{maker.args[0]}.{maker.args[1]}" if isinstance(maker.args[1], str) else "?"
    return "?"


def state_of(value: Made) -> dict[str, Any]:
    """The attributes that an object was given: a mapping, or, of one with slots, the second of a pair."""
    state = value.state
    if isinstance(state, tuple) and len(state) == 2:
        first, second = state
        state = {**(first if isinstance(first, dict) else {}), **(second if isinstance(second, dict) else {})}
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UnreadablePickle(f"{class_of(value)} comes without its attributes")
    return state


def as_bytes(value: Any) -> bytes:
    """Bytes, also as protocols 0 to 2 write them."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, Made) and class_of(value) == "_codecs.encode" and value.args:
        value = value.args[0]
    if not isinstance(value, str) or not all(character <= "\xff" for character in value):
        raise UnreadablePickle(f"bytes are expected, not {class_of(value)}")
    return value.encode("latin-1")


def as_moment(value: Any) -> datetime | None:
    """A moment with its offset; None for none. UnreadablePickle for a moment without a zone."""
    if value is None:
        return None
    if not isinstance(value, Made) or class_of(value) != "datetime.datetime" or not value.args:
        raise UnreadablePickle(f"a moment is expected, not {class_of(value)}")
    packed = as_bytes(value.args[0])
    if len(packed) != 10:
        raise UnreadablePickle("a moment is damaged")
    fold, month = divmod(packed[2], 128)
    zone = as_zone(value.args[1]) if len(value.args) > 1 and value.args[1] is not None else None
    if zone is None:
        raise UnreadablePickle("a moment has no time zone that is known here")
    try:
        moment = datetime(
            packed[0] * 256 + packed[1],
            month,
            packed[3],
            packed[4],
            packed[5],
            packed[6],
            int.from_bytes(packed[7:10]),
            tzinfo=_exact(value.args[1]) or zone,
            fold=fold,
        )
        moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UnreadablePickle(f"a moment is damaged: {error}") from None
    return moment


def _exact(value: Any) -> tzinfo | None:
    """pytz pickles with a moment the very offset that held: its zone's name alone would not tell which of two."""
    if isinstance(value, Made) and class_of(value) == "pytz._p" and len(value.args) > 1:
        offset = value.args[1]
        if isinstance(offset, int) and abs(offset) < 86_400:
            return timezone(timedelta(seconds=offset))
    return None


def as_span(value: Any) -> timedelta:
    """A length of time."""
    if isinstance(value, Made) and class_of(value) == "datetime.timedelta" and len(value.args) == 3:
        parts = value.args
        if all(isinstance(part, int) and abs(part) < 10**12 for part in parts):
            try:
                return timedelta(*parts)
            except OverflowError:
                pass
    raise UnreadablePickle(f"a length of time is expected, not {class_of(value)}")


def as_zone(value: Any) -> ZoneInfo | timezone | None:
    """A time zone: of the IANA database where it has a name, else a fixed offset; None for one that is not known here,
    such as that of the machine which the older app ran on."""
    if not isinstance(value, Made):
        return None
    kind, args = class_of(value), value.args
    name: Any = None
    if kind in _UTC:
        return ZoneInfo("UTC")
    if kind == "datetime.timezone" and args:
        return _fixed(as_span(args[0]))
    if kind in ("pytz._FixedOffset", "pytz.FixedOffset") and args and isinstance(args[0], int):
        return _fixed(timedelta(minutes=args[0]))
    if kind in _NAMED and args:
        name = args[0]
    elif kind.startswith("pytz_deprecation_shim.") and args:
        name = args[-1]
    elif kind in ("dateutil.tz.tz.tzfile", "dateutil.tz.tzfile") and len(args) > 1:
        name = str(args[1]).rpartition("zoneinfo/")[2]
    return ZoneInfo(name) if isinstance(name, str) and known_timezone(name) else None


_UTC = frozenset({"pytz._UTC", "dateutil.tz.tz.tzutc", "dateutil.tz.tzutc"})
_NAMED = frozenset(
    {
        *("zoneinfo.ZoneInfo._unpickle", "backports.zoneinfo.ZoneInfo._unpickle"),
        *("zoneinfo.ZoneInfo", "backports.zoneinfo.ZoneInfo", "pytz._p", "pytz.timezone"),
    }
)


def _fixed(offset: timedelta) -> ZoneInfo | timezone | None:
    """A fixed offset, by its name where the IANA database has one: whole hours."""
    if offset == timedelta(0):
        return ZoneInfo("UTC")
    hours = offset / timedelta(hours=1)
    if hours.is_integer() and -12 <= hours <= 14:
        return ZoneInfo(f"Etc/GMT{int(-hours):+d}")  # POSIX: the sign is the other way round
    return timezone(offset) if abs(offset) < timedelta(days=1) else None


def as_json_value(value: Any) -> Any:
    """`value` as JSON can hold it, tuples as lists. UnreadablePickle names the first thing that JSON cannot hold."""
    return _as_json(value, 0, [MOST_VALUES])


def _as_json(value: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0 or depth > NESTING_LIMIT:
        raise UnreadablePickle("its arguments have no end")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_as_json(each, depth + 1, left) for each in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise UnreadablePickle("its arguments hold a mapping whose keys are no text")
        return {key: _as_json(each, depth + 1, left) for key, each in value.items()}
    raise UnreadablePickle(f"its arguments hold {class_of(value)}, which JSON cannot hold")
