"""Alerts and dead-man pings: what the ledger wrote into the outbox is sent, at least once.

`outbox` takes rows and settles them, `letters` makes a request of a row, `post` sends it and judges the answer, with
`patience` for slow ones, `sender` is the thread that does so, `life_sign` the scheduler's own ping. The ledger imports
nothing of it.
"""

from app.alerts.delivery import Delivery

__all__ = ["Delivery"]
