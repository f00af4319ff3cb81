"""What becomes of the moments of a job that are due: which run, which are missed, coalesced or skipped."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from app.db.clock import from_us, to_us
from app.triggers import fold_fires, next_fire

MOMENTS_PER_LOOK = 1000
"""Moments of one job that one look may start, for a job that does not coalesce; the rest stays due."""

Fate = Literal["run", "missed", "coalesced", "skipped"]


@dataclass(frozen=True, slots=True)
class Fold:
    """`count` moments in a row with the same fate, from `first` to `last` (microseconds since the epoch)."""

    fate: Fate
    first: int
    last: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class Decision:
    """The folds of the moments looked at, oldest first, and the next moment, due or not; None after the last."""

    folds: tuple[Fold, ...]
    next_moment: int | None


@lru_cache(maxsize=8192)
def next_moment(trigger: str, after: int) -> int | None:
    """The first moment of a stored trigger (JSON text) after `after`; both in microseconds since the epoch.

    Remembered, because many jobs share a trigger such as "every hour", and all of them are due together.
    """
    moment = from_us(after)
    following = next_fire(json.loads(trigger), moment, moment)
    return None if following is None else to_us(following)


def first_moment(trigger: str, now: int) -> int | None:
    """The moment that a trigger begins with when it takes effect at `now`; a date gives its own, past or not."""
    moment = next_fire(json.loads(trigger), None, from_us(now))
    return None if moment is None else to_us(moment)


def decide(*, trigger: str, due: int, now: int, grace_s: int, coalesce: bool, free: int) -> Decision:
    """Decides the fate of every moment of a job from its stored next one, `due`, up to `now`.

    A moment more than `grace_s` seconds ago is `missed`. Of the others, all but the last are `coalesced` into
    it, when the job coalesces. What is left runs, together and one after the other, when the job has a `free`
    instance, and else is `skipped`.
    """
    oldest = now - grace_s * 1_000_000
    if due >= oldest:  # nearly always: one moment, on time
        following = next_moment(trigger, due)
        if following is None or following > now:
            return Decision((Fold("run" if free > 0 else "skipped", due, due),), following)
    folds: list[Fold] = []
    moment: int | None = due
    if due < oldest:
        missed, moment = fold_moments(trigger, "missed", due, oldest - 1)
        folds.append(missed)
    if moment is None or moment > now:
        return Decision(tuple(folds), moment)
    if coalesce:
        timely, following = fold_moments(trigger, "run", moment, now)
        if timely.count > 1:
            folds.append(fold_moments(trigger, "coalesced", moment, timely.last - 1)[0])
        folds.append(Fold("run" if free > 0 else "skipped", timely.last, timely.last))
        return Decision(tuple(folds), following)
    if free <= 0:
        skipped, following = fold_moments(trigger, "skipped", moment, now)
        return Decision((*folds, skipped), following)
    for _ in range(MOMENTS_PER_LOOK):
        folds.append(Fold("run", moment, moment))
        moment = next_moment(trigger, moment)
        if moment is None or moment > now:
            break
    return Decision(tuple(folds), moment)


def fold_moments(trigger: str, fate: Fate, first: int, until: int) -> tuple[Fold, int | None]:
    """The moments of a stored trigger from `first`, which is one, up to `until`, as one fold; and the next one."""
    count, last, following = fold_fires(json.loads(trigger), from_us(first), from_us(until))
    return Fold(fate, first, to_us(last), count), None if following is None else to_us(following)
