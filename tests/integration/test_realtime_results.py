"""What real-time workers store of a task is what Celery stores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from inference.redis.clients import Client
from inference.settings import Settings
from tasks.celery_app import RESULT_EXPIRES_S, make_celery
from tests.support.redis_server import RedisServer
from workers.realtime import save_round_trips

pytestmark = [
    pytest.mark.integration,
    # Celery stores results by a command that redis-py would like to be spelt otherwise
    pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning"),
]

RESULT = {"model": "m", "predictions": [{"entity_id": "ä", "prediction": 0.1, "as_of": 12.5}]}


@pytest.fixture
def stock(redis_server: RedisServer, redis_client: Client) -> Iterator[Celery]:
    application = make_celery(Settings.model_validate({"redis": {"url": redis_server.url(), "prefix": "shop"}}))
    yield application
    application.backend.client.close()


@pytest.fixture
def trimmed(redis_server: RedisServer, redis_client: Client) -> Iterator[Celery]:
    application = save_round_trips(
        make_celery(Settings.model_validate({"redis": {"url": redis_server.url(), "prefix": "shop"}}))
    )
    yield application
    application.backend.client.close()


def key(application: Celery, task_id: str) -> str:
    return str(application.backend.get_key_for_task(task_id), "utf-8")


def stored(client: Client, application: Celery, task_id: str) -> Any:
    return json.loads(client.get(key(application, task_id)) or b"null")


def test_a_result_is_stored_and_published_as_celery_does(stock: Celery, trimmed: Celery, redis_client: Client) -> None:
    with redis_client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe(key(stock, "t1"), key(stock, "t2"))
        for _ in range(2):
            heard.get_message(timeout=1)
        stock.backend.store_result("t1", RESULT, "SUCCESS")
        trimmed.backend.store_result("t2", RESULT, "SUCCESS")
        published = [json.loads(heard.get_message(timeout=2)["data"]) for _ in range(2)]
    told = [stored(redis_client, stock, "t1"), stored(redis_client, trimmed, "t2")]
    assert told == published
    assert [one.pop("task_id") for one in told] == ["t1", "t2"]
    assert all(one.pop("date_done") for one in told)
    assert told[0] == told[1]
    assert trimmed.AsyncResult("t2").get(timeout=1) == RESULT
    assert RESULT_EXPIRES_S - 5 < redis_client.ttl(key(trimmed, "t2")) <= RESULT_EXPIRES_S


def test_no_failure_replaces_a_success(trimmed: Celery, redis_client: Client) -> None:
    trimmed.backend.store_result("t", RESULT, "SUCCESS")
    trimmed.backend.store_result("t", ValueError("again"), "FAILURE")
    assert stored(redis_client, trimmed, "t")["status"] == "SUCCESS"


def test_a_connection_that_was_cut_meanwhile_costs_no_result(trimmed: Celery, redis_client: Client) -> None:
    trimmed.backend.store_result("t1", RESULT, "SUCCESS")
    redis_client.client_kill_filter(_type="normal", skipme=True)
    trimmed.backend.store_result("t2", RESULT, "SUCCESS")
    assert stored(redis_client, trimmed, "t2")["status"] == "SUCCESS"
