"""Depth of queues and age of their oldest message, asked of real brokers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from inference.errors import BrokerUnavailable
from inference.settings import Settings
from tasks.celery_app import is_redis, make_celery
from tasks.queues import Queues
from tests.support.ports import free_port
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration


def settings_of(redis_url: str, broker_url: str | None = None) -> Settings:
    told = {"redis": {"url": redis_url, "prefix": "queues"}}
    return Settings.model_validate(told | ({"celery": {"broker_url": broker_url}} if broker_url else {}))


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQServer]:
    server = RabbitMQServer(tmp_path_factory.mktemp("rabbitmq")).start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["redis", pytest.param("rabbitmq", marks=pytest.mark.slow)])
def settings(request: pytest.FixtureRequest, redis_server: RedisServer) -> Settings:
    broker_url = request.getfixturevalue("rabbit").url if request.param == "rabbitmq" else None
    return settings_of(redis_server.url(3), broker_url)


@pytest.fixture
def sender(settings: Settings) -> Iterator[Celery]:
    with make_celery(settings, result_backend="disabled://") as application:
        yield application
        application.control.purge()


def by_name(settings: Settings, *, later_s: float = 0.0) -> dict[str, tuple[int, float | None]]:
    states = Queues(settings, clock=lambda: time.time() + later_s).read()
    return {state.queue: (state.depth, state.oldest_age_s) for state in states}


def test_the_oldest_message_of_each_queue_tells_its_age_and_stays_the_first(settings: Settings, sender: Celery) -> None:
    assert {depth for depth, _ in by_name(settings).values()} == {0}
    for priority in (0, 9, 5):
        sender.send_task("forecache.predict_entities", kwargs={"model": "delay"}, priority=priority)
    sender.send_task("forecache.score_chunk", args=("run", 1))

    def depths() -> list[int]:
        states = by_name(settings)
        return [states[queue][0] for queue in ("batch", "realtime", "maintenance")]

    wait_for(lambda: depths() == [1, 3, 0], "the messages to arrive", 10)
    for _ in range(3):
        states = by_name(settings, later_s=60)
        assert depths() == [1, 3, 0]
        if is_redis(settings.broker_url):
            assert 60 < (states["realtime"][1] or 0) < 70
        else:
            assert states["realtime"][1] is None
        assert 60 < (states["batch"][1] or 0) < 70
        assert states["maintenance"][1] is None
    with sender.connection_for_read() as connection:
        taken = connection.default_channel.basic_get(f"{settings.redis.prefix}.realtime")
    assert taken is not None
    assert not taken.delivery_info.get("redelivered"), "real-time workers refuse what was taken before"


def test_one_look_at_the_broker_is_shared(settings: Settings, sender: Celery) -> None:
    queues = Queues(settings)
    assert queues.read() is queues.read()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_is_away_is_an_error_and_not_an_empty_queue(scheme: str) -> None:
    away = Queues(settings_of("redis://127.0.0.1:1/0", f"{scheme}://127.0.0.1:{free_port()}//"))
    with pytest.raises(BrokerUnavailable):
        away.read()


def test_a_foreign_message_on_redis_is_counted_though_it_tells_no_time(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    settings = settings_of(redis_server.url(3))
    queues = Queues(settings)
    queues._redis.lpush("queues:queues.batch", b"not of kombu")
    try:
        [batch, *_] = queues.read()
        assert (batch.depth, round(batch.oldest_age_s or 0)) == (1, 0)
    finally:
        queues._redis.delete("queues:queues.batch")
