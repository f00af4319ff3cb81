"""Run ids: UUID version 7 in hex, so that they sort by the time of the claim (RFC 9562, section 5.7)."""

import secrets
import threading

_lock = threading.Lock()
_last = 0

_WINDOW = 1000 << 12
"""A second: a clock that is set back by more is followed, or ids would lie in the future until a restart."""


def new_run_id(at_us: int) -> str:
    """A run id of 32 hex digits for a claim at `at_us` microseconds since the epoch.

    Ids made in one process rise strictly while its clock does: what RFC 9562 calls rand_a holds the fraction of
    the millisecond (its method 3), counted up where two ids fall into the same one.
    """
    global _last  # noqa: PLW0603 - the counter is what makes ids of one process rise
    milliseconds, rest = divmod(at_us, 1000)
    stamp = milliseconds << 12 | rest * 4096 // 1000
    with _lock:
        if _last - _WINDOW < stamp <= _last:
            stamp = _last + 1
        _last = stamp
    return _compose(stamp, secrets.randbits(62))


def run_id_floor(at_us: int) -> str:
    """The smallest run id of a claim at `at_us`: the bound of a range scan."""
    return _compose(at_us // 1000 << 12, 0)


def _compose(stamp: int, random: int) -> str:
    milliseconds, fraction = stamp >> 12, stamp & 0xFFF
    return f"{milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | random:032x}"
