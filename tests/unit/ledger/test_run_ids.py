"""Run ids sort by time."""

from __future__ import annotations

import uuid

from app.ledger.run_ids import new_run_id, run_id_floor

T = 1_772_366_400_123_456


def test_they_are_uuids_of_version_7() -> None:
    made = uuid.UUID(new_run_id(T))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)


def test_they_rise_even_within_a_microsecond() -> None:
    ids = [new_run_id(T) for _ in range(10_000)]
    assert ids == sorted(set(ids))


def test_the_floor_is_below_all_of_its_millisecond_and_above_all_before() -> None:
    later = T + 10_000_000_000
    floor = run_id_floor(later)
    assert new_run_id(later - 2000) < floor <= new_run_id(later)
