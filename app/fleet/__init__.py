"""The worker fleet: the executor `celery`. A sender in each scheduler carries messages of pending runs to the broker;
workers open the ledger's door to them.

A process without CELERY_BROKER_URL imports nothing below this package: Celery costs memory. Modules: `messages` (what
is sent, and the Celery app), `sender` (in a scheduler), `worker` with `child`, `board` and `supervisor` (the fleet's
processes), `health` (their health check).
"""
