"""What goes through the broker: one kind of message, JSON, and the Celery app that both ends share.

A message names a run and the key to its door, nothing else: what the run does is read from the ledger. So it may be
lost, late or doubled without harm.
"""

from bisect import bisect_right
from typing import Any

from celery import Celery
from kombu import Exchange, Queue

TASK = "whalefall.run"
QUEUE = "whalefall"

MOST_URGENT = 9
"""Of the ten levels of a broker, counted as the ledger does: higher is sooner."""
_LEVELS = (-500, -100, -10, 0, 1, 10, 50, 100, 500)
"""Where each next level of urgency begins among the priorities of jobs, -1000 to 1000: finer near 0, the default,
because that is where people choose."""

CONNECT_TIMEOUT_S = 3.0
SILENT_BROKER_S = 5.0
"""A broker that answers nothing for so long is given up, and connected to anew."""


def urgency(priority: int) -> int:
    """The broker's level, 0 to MOST_URGENT, of a job's priority; 4 for the default priority 0."""
    return bisect_right(_LEVELS, priority)


def broker_priority(priority: int, *, transport: str) -> int:
    """The message property of a job's priority. In Redis the lowest number is delivered first, in RabbitMQ the
    highest; `transport` is kombu's `driver_type`."""
    level = urgency(priority)
    return MOST_URGENT - level if transport == "redis" else level


def queue() -> Queue:
    """The queue of all runs, in the broker's default exchange: it needs no binding, which a broker that forgot
    everything would not have."""
    return Queue(QUEUE, exchange=Exchange(""), routing_key=QUEUE, durable=True, max_priority=MOST_URGENT)


def fleet_app(broker_url: str) -> Celery:
    """The Celery app of both ends. JSON alone, never pickle; no results, which the ledger has; no remote control."""
    app = Celery("whalefall", broker=broker_url, set_as_current=False)
    app.conf.update(
        # Celery would prefer the variable CELERY_BROKER_URL of the environment, which may lack its password.
        broker_read_url=broker_url,
        broker_write_url=broker_url,
        accept_content=["json"],
        task_serializer="json",
        event_serializer="json",
        result_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        task_queues=[queue()],
        task_default_queue=QUEUE,
        task_create_missing_queues=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # One run per place, and none laid aside: a run that waits in a busy worker would keep an idle one from it.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=not _is_rabbitmq(broker_url),  # RabbitMQ pushes: see FleetConsumer
        worker_enable_prefetch_count_reduction=False,
        # Acknowledged when a child takes it, not when the run ends: the ledger already knows then, and RabbitMQ
        # closes the channel of a message that waits longer than half an hour.
        task_acks_late=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=CONNECT_TIMEOUT_S,
        broker_heartbeat=10,
        broker_transport_options=_transport_options(broker_url),
    )
    return app


def _is_rabbitmq(broker_url: str) -> bool:
    return broker_url.startswith(("amqp", "pyamqp"))


def _transport_options(broker_url: str) -> dict[str, Any]:
    if _is_rabbitmq(broker_url):
        # A message that a broker lost before it lay on its disk would wait for the sender's next try.
        return {"confirm_publish": True, "read_timeout": SILENT_BROKER_S, "write_timeout": SILENT_BROKER_S}
    return {
        "priority_steps": list(range(MOST_URGENT + 1)),
        "socket_timeout": SILENT_BROKER_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_keepalive": True,
        "health_check_interval": round(SILENT_BROKER_S),
    }
