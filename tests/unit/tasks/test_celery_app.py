"""Names on the broker: a broker may serve other applications and other deployments too."""

from __future__ import annotations

import pytest
from celery import Celery

from inference.monitoring.queues import JobPriority
from inference.settings import CelerySettings, RedisSettings, Settings
from tasks.celery_app import make_celery
from tasks.dispatch.sender import priorities

QUEUES = ("batch", "realtime", "maintenance")


def settings(prefix: str, broker_url: str | None = None) -> Settings:
    celery = CelerySettings.model_validate({"broker_url": broker_url} if broker_url else {})
    return Settings(redis=RedisSettings(prefix=prefix), celery=celery)


def names(application: Celery) -> set[str]:
    queues = [application.amqp.queues[queue] for queue in QUEUES]
    mailbox = application.control.mailbox.exchange.name
    of_queues = {text for queue in queues for text in (queue.name, queue.exchange.name, queue.routing_key)}
    return {*of_queues, mailbox, application.conf.event_exchange}


def test_every_name_on_the_broker_starts_with_the_prefix() -> None:
    assert all(name.startswith("shop") for name in names(make_celery(settings("shop"))))


def test_two_deployments_share_no_name() -> None:
    assert not names(make_celery(settings("a"))) & names(make_celery(settings("b")))


@pytest.mark.parametrize("queue", QUEUES)
def test_workers_and_routes_call_a_queue_by_its_short_name(queue: str) -> None:
    application = make_celery(settings("shop"))
    application.amqp.queues.select([queue])
    assert [taken.name for taken in application.amqp.queues.consume_from.values()] == [f"shop.{queue}"]


def test_a_request_goes_before_a_job_whichever_way_the_broker_counts() -> None:
    for broker, first_is_lowest in (("", True), ("amqp://host", False)):
        numbers = priorities(settings("shop", broker) if broker else settings("shop"))
        jobs = [numbers.jobs[priority] for priority in (JobPriority.HIGH, JobPriority.NORMAL, JobPriority.LOW)]
        asked = [numbers.request, *jobs]
        assert len(set(asked)) == 4
        assert asked == sorted(asked, reverse=not first_is_lowest)


def test_the_prefix_of_redis_keys_is_no_option_of_other_brokers() -> None:
    assert make_celery(settings("shop")).conf.broker_transport_options["global_keyprefix"] == "shop:"
    assert make_celery(settings("shop", "amqp://host")).conf.broker_transport_options == {}
