"""What the ledger needs of a worker fleet: somebody who carries messages about pending runs to it."""

from collections.abc import Sequence
from typing import Protocol

from app.ledger.runs import Ticket


class Fleet(Protocol):
    """Carries pending runs of the executor `celery` to the workers; app.fleet has one."""

    def send(self, tickets: Sequence[Ticket]) -> None:
        """Takes all runs of this node that may go to a worker now, about once a second; returns at once.

        It remembers what it sent, and sends again what stays pending for too long: a message may be lost or come
        twice, because the ledger's door opens once.
        """

    def close(self) -> None:
        """Stops carrying; what is on its way may arrive."""
