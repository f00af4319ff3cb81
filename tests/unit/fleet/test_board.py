"""The memory that a worker's processes share."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from app.fleet.board import Board, State

pytestmark = pytest.mark.unit

RUN = "0" * 31 + "1"


def test_a_place_says_what_its_child_does() -> None:
    board = Board(1)
    index = board.claim(RUN)
    assert index is not None
    (place,) = board.taken()
    assert (place.state, place.run_id, place.pid, place.deadline) == (State.OPENING, RUN, os.getpid(), 0.0)
    board.running(index, job_id="作业" * 64, time_limit=5)
    (place,) = board.taken()
    assert (place.state, place.job_id) == (State.RUNNING, "作业" * 64)
    assert place.deadline == pytest.approx(place.since + 5)
    board.ended(index)
    assert board.place(index).state == State.ENDED
    board.free(index)
    assert board.taken() == []


def test_a_run_has_one_place() -> None:
    board = Board(1)
    index = board.claim(RUN)
    assert index is not None
    assert board.claim(RUN) is None
    board.free(index)
    assert board.claim(RUN) is not None


def test_the_place_of_a_child_that_is_gone_is_not_taken_from_its_successor() -> None:
    board = Board(1)
    index = board.claim(RUN)
    assert index is not None
    (seen,) = board.taken()
    board.free(index)
    assert board.claim(RUN.replace("1", "2")) == index
    board.clear(seen)
    (place,) = board.taken()
    board.clear(place)
    assert board.taken() == []


def test_nothing_is_claimed_where_no_place_is_left() -> None:
    board = Board(1)
    claimed = [board.claim(f"{number:032d}") for number in range(1, 60)]
    assert claimed[0] is not None
    assert claimed[-1] is None
    assert len(board.taken()) == sum(index is not None for index in claimed)


def test_a_child_that_dies_leaves_its_place_and_no_lock() -> None:
    board = Board(1)

    def claim_and_die() -> None:
        with board._locked():
            board._slots[0].run_id = RUN.encode()
            board._slots[0].state = State.OPENING
            os._exit(9)

    child = multiprocessing.get_context("fork").Process(target=claim_and_die)
    child.start()
    child.join(timeout=10)
    assert [place.run_id for place in board.taken()] == [RUN]
