"""Fail points: steps of the ledger at which a test lets this process die, freeze or meet an error.

Nothing arms them but FAIL_POINTS, which only the end-to-end tests set. Until then `reach` is a function that returns.
"""

import logging
import os
import random
import signal
import threading
from collections.abc import Callable, Mapping

from sqlalchemy.exc import OperationalError

logger = logging.getLogger(__name__)

NAMES = (
    "claim.inserted",  # the runs are inserted, the jobs not yet advanced
    "claim.written",  # before the commit, as all `written`
    "claim.committed",
    "start.written",
    "start.committed",
    "finish.written",
    "finish.committed",
    "aside.copied",  # a store in PostgreSQL is set aside: before the commit that empties it
    "aside.committed",
    "move.begun",  # the move to PostgreSQL: before the first row
    "move.copied",
    "move.verified",  # before the commit
    "move.committed",
    "move.noted",
    "restore.saved",  # the restore of a backup: the present is backed up
    "restore.staged",
    "restore.noted",  # what is to be put in place is on record
    "restore.half",  # one of two files, or one of two databases, is in place
    "restore.done",
)
ACTIONS = ("exit", "freeze", "error")
EXIT_STATUS = 70


def _pass(_name: str) -> None:
    """What an unarmed fail point does."""


reach: Callable[[str], None] = _pass
"""Called, as `failpoints.reach(name)`, at each fail point."""


def arm(points: Mapping[str, tuple[str, float]]) -> None:
    """Arms the points of `points`: name -> (action, probability of each time that it is reached).

    exit: the process ends at once, as if killed. freeze: it is stopped until somebody sends SIGCONT. error: as if
    the store had refused. ValueError for a name or an action that there is not.
    """
    global reach  # noqa: PLW0603 - so that an unarmed point costs one call of an empty function
    for name, (action, _) in points.items():
        if name not in NAMES:
            raise ValueError(f"no fail point is named {name!r}; there are {', '.join(NAMES)}")
        if action not in ACTIONS:
            raise ValueError(f"fail point {name}: no action {action!r}; there are {', '.join(ACTIONS)}")

    def armed(name: str) -> None:
        action, probability = points.get(name, ("", 0.0))
        if random.random() < probability:  # noqa: S311 - chance, not secrecy
            _act(name, action)

    reach = armed if points else _pass


def _act(name: str, action: str) -> None:
    logger.warning("fail point %s: %s", name, action)
    if action == "exit":
        os._exit(EXIT_STATUS)
    elif action == "freeze":
        # To this very thread: of a signal to the process another one would take note, and this one go on meanwhile.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    else:
        raise OperationalError(f"fail point {name}", None, Exception("injected"))
