"""What goes through the broker."""

from __future__ import annotations

import pytest

from app.fleet.messages import MOST_URGENT, broker_priority, fleet_app, urgency

pytestmark = pytest.mark.unit


def test_priorities_keep_their_order_and_use_every_level() -> None:
    levels = [urgency(priority) for priority in range(-1000, 1001)]
    assert levels == sorted(levels)
    assert set(levels) == set(range(MOST_URGENT + 1))
    assert urgency(-1) < urgency(0) < urgency(1)


@pytest.mark.parametrize(("transport", "urgent_first"), [("redis", -1), ("amqp", 1)])
def test_redis_delivers_the_lowest_number_first_and_rabbitmq_the_highest(transport: str, urgent_first: int) -> None:
    urgent, usual = (broker_priority(priority, transport=transport) for priority in (1000, 0))
    assert (urgent - usual) * urgent_first > 0
    assert {urgent, usual} <= set(range(MOST_URGENT + 1))


@pytest.mark.parametrize("url", ["redis://localhost:1/0", "amqp://localhost:1//"])
def test_json_alone_and_no_remote_control(url: str) -> None:
    conf = fleet_app(url).conf
    assert conf.accept_content == ["json"]
    assert conf.result_accept_content is None
    assert {conf.task_serializer, conf.event_serializer, conf.result_serializer} == {"json"}
    assert (conf.worker_enable_remote_control, conf.result_backend, conf.task_ignore_result) == (False, None, True)


def test_the_queue_is_known_to_kombu_by_the_default_exchange() -> None:
    app = fleet_app("memory://")
    (queue,) = app.conf.task_queues
    assert (queue.name, queue.exchange.name, queue.durable, queue.max_priority) == ("whalefall", "", True, MOST_URGENT)
