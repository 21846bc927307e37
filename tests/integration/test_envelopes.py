"""The messages that are written without kombu are those that kombu writes."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from inference.monitoring.queues import JobPriority
from inference.redis.clients import Client
from inference.settings import Settings
from tasks.dispatch.envelopes import Envelopes
from tasks.dispatch.sender import make_sending_app, priorities
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.integration

TASK = "forecache.predict_entities"
KWARGS = {"model": "own", "entity_ids": ["ä", "b/c d"], "deadline": 1.5, "overrides": {"x": None, "y": [1, 2.5]}}
#: what two messages of the same content need not share
OF_ONE_MESSAGE = {"id", "root_id", "forecache_sent_at"}


@pytest.fixture
def settings(redis_server: RedisServer, redis_client: Client) -> Settings:
    return Settings.model_validate(
        {
            "redis": {"url": redis_server.url(), "prefix": "shop"},
            "models": {"own": {"path": "m", "realtime": {"queue": "own"}}, "other": {"path": "m"}},
        }
    )


def sent_by_kombu(client: Client, settings: Settings, queue: str, priority: int) -> tuple[str, dict[str, Any]]:
    with make_sending_app(settings) as application:
        application.send_task(TASK, kwargs=KWARGS, task_id="kombu", queue=queue, priority=priority)
    (key,) = (key for key in client.scan_iter("shop:shop.*"))
    text = client.rpop(key)
    return key.decode(), json.loads(text)


@pytest.mark.parametrize("queue", ["own", "realtime"])
@pytest.mark.parametrize("job", [None, *JobPriority])
def test_a_message_is_what_kombu_writes_in_the_same_list(
    redis_client: Client, settings: Settings, queue: str, job: JobPriority | None
) -> None:
    numbers = priorities(settings)
    priority = numbers.request if job is None else numbers.jobs[job]
    key, theirs = sent_by_kombu(redis_client, settings, queue, priority)
    with make_sending_app(settings) as application:
        envelopes = Envelopes(application)
        assert envelopes.place(queue, priority) == key
        ours = json.loads(envelopes.message(TASK, KWARGS, queue=queue, task_id="ours", priority=priority))
    assert json.loads(base64.b64decode(ours.pop("body"))) == json.loads(base64.b64decode(theirs.pop("body")))
    for headers, task_id in ((ours["headers"], "ours"), (theirs["headers"], "kombu")):
        assert (headers["id"], headers["root_id"]) == (task_id, task_id)
    # the deadline in its arguments is by the clock of Redis: `expires` would be compared by two hosts' clocks
    assert ours["headers"]["expires"] is None
    assert abs(ours["headers"]["forecache_sent_at"] - theirs["headers"]["forecache_sent_at"]) < 5
    assert set(ours["headers"]) == set(theirs["headers"])
    for one in (ours, theirs):
        one["headers"] = {name: value for name, value in one["headers"].items() if name not in OF_ONE_MESSAGE}
        del one["properties"]["correlation_id"], one["properties"]["delivery_tag"]
    # each sender has one of its own: nobody replies over the broker
    assert ours["properties"].pop("reply_to")
    assert theirs["properties"].pop("reply_to")
    assert ours == theirs


def test_numbers_and_text_that_fit_no_utf8_or_64_bits_are_sent_all_the_same(settings: Settings) -> None:
    kwargs = {"instances": [{"huge": 2**70, "half": "\ud800"}]}
    with make_sending_app(settings) as application:
        message = Envelopes(application).message(TASK, kwargs, queue="realtime", task_id="t", priority=0)
    assert json.loads(base64.b64decode(json.loads(message)["body"]))[1] == kwargs


def test_of_a_long_list_only_the_beginning_is_shown(settings: Settings) -> None:
    kwargs = {"entity_ids": [f"entity-{number}" for number in range(4096)]}
    with make_sending_app(settings) as application:
        message = Envelopes(application).message(TASK, kwargs, queue="realtime", task_id="t", priority=0)
    assert len(json.loads(message)["headers"]["kwargsrepr"]) <= 1024
