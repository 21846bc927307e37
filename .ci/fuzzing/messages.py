"""Task messages and what stands in Redis in their place, as far as Celery's own request."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from types import SimpleNamespace
from typing import Any

import kombu.transport.redis as stock
from celery.canvas import maybe_signature
from celery.exceptions import TaskRevokedError
from celery.worker.strategy import default as strategy_of
from kombu import Connection
from kombu.message import Message

from fuzzing.deployment import keep_tracebacks
from fuzzing.rule import BrokenRule, Parser, text_of
from inference.logs import REQUEST_IDS_HEADER, from_message
from inference.monitoring.queues import Head
from inference.settings import Settings
from tasks.celery_app import make_celery
from tests.support import forged
from workers import redis_transport
from workers.messages import problem_of

_LINKED = {"shop.save": "shop"}
_TASK = forged.TASK


def _seeds_of_messages() -> Iterator[dict[str, Any]]:
    sent_at = {"forecache_sent_at": 1.5, "forecache_request_ids": ["r1"], "ignore_result": True, "retries": 2}
    link = forged.signature("shop.save", queue="shop", task_id="l", countdown=1.5)
    yield {"headers": forged.envelope()["headers"] | sent_at, "body": [[], {"a": 1}, {"callbacks": [link]}]}
    times = {"eta": "2030-01-01T00:00:00+00:00", "expires": "2030-01-01T00:00:00", "timelimit": [1, 2.5]}
    nested = forged.signature("shop.save", link=[link], link_error=[link], chord=link)
    yield {"headers": {"task": _TASK, "id": "i", **times}, "body": [[1], {}, {"chord": nested, "chain": [link]}]}
    yield {"headers": {"task": _TASK, "id": "i", "group": "g", "group_index": 3}, "body": [[], {}, None]}
    first = {"task": _TASK, "id": "v1", "args": [], "kwargs": {}, "utc": True, "taskset": "t", "eta": times["eta"]}
    yield {"headers": {}, "body": {**first, "callbacks": [link], "errbacks": [link], "chord": link, "expires": None}}
    yield {"headers": {"task": _TASK, "id": "i", "shadow": "s", "stamps": {}}, "body": [[], {}, {"errbacks": None}]}


def _seeds_of_envelopes() -> Iterator[dict[str, Any]]:
    for message in _seeds_of_messages():
        envelope = forged.envelope(body=message["body"])
        envelope["headers"] = message["headers"]
        plain = base64.b64decode(envelope["body"]).decode()
        yield {"text": json.dumps(envelope)}
        yield {
            "text": json.dumps(
                {**envelope, "body": plain, "properties": envelope["properties"] | {"body_encoding": None}}
            )
        }
        yield {"text": json.dumps([envelope, "forecache.batch", "forecache.batch"])}
    yield {"text": '{"__type__": "uuid", "__value__": "no"}'}
    yield {"text": ["[", 100_000]}


_POOL = SimpleNamespace(apply_async=lambda *_, **__: None, limit=1)


@cache
def _celery() -> tuple[Any, Any]:
    keep_tracebacks()
    redis_transport.bound_compression()
    stock.loads = redis_transport.load_envelope
    app = make_celery(Settings())

    @app.task(name=_TASK, bind=True)  # type: ignore[untyped-decorator]
    def do_nothing(*_: Any, **__: Any) -> None:
        pass

    app.finalize()
    ignored = SimpleNamespace(mark_as_failure=lambda *_, **__: None, mark_as_revoked=lambda *_, **__: None)
    task = app.tasks[_TASK]
    task.backend = ignored
    consumer = SimpleNamespace(
        hostname="w", connection_errors=(), event_dispatcher=None, apply_eta_task=lambda _: None, pool=_POOL,
        disable_rate_limits=True, timer=SimpleNamespace(call_at=lambda *_, **__: None), task_buckets={},
        on_task_request=_run, _limit_task=None, _limit_post_eta=None,
        controller=SimpleNamespace(state=SimpleNamespace(revoked={})),
        qos=SimpleNamespace(increment_eventually=lambda: None),
    )  # fmt: skip
    return app, strategy_of(task, app, consumer)


def _run(request: Any) -> None:
    """Do all that a worker does with a request before the task itself: read its arguments and its links, tell of it."""
    with suppress(TaskRevokedError):  # it has expired
        request.execute_using_pool(_POOL)
    request.info(safe=True)
    str(request)
    _, keywords, embedded = request._payload
    {}.update(**keywords)
    app, _ = _celery()
    for links in filter(None, (embedded or {}).values()):
        for link in links if isinstance(links, list) else [links]:
            signature = maybe_signature(link, app=app)
            if signature is not None:
                signature.clone()


def _received(message: Any) -> None:
    """Check a message and hand it on as a worker does."""
    if problem_of(message, _LINKED) is not None:
        return
    _, handle = _celery()
    from_message(message.headers.get(REQUEST_IDS_HEADER))
    payload = message.payload
    named = message.headers.get("task") or (payload.get("task") if isinstance(payload, dict) else None)
    if named != _TASK:
        return
    body = payload if isinstance(payload, dict) else None
    handle(message, body, lambda *_: None, lambda *_, **__: None, [])


def attempt_message(example: Any) -> None:
    """Check a message as kombu makes it, and have Celery make a request of it."""
    if not isinstance(example, dict) or not isinstance(example.get("headers"), dict | None):
        return  # which no broker carries
    _celery()
    body = json.dumps(example.get("body"))
    received = Message(
        body=body, channel=SimpleNamespace(no_ack_consumers=()), delivery_tag="t", content_type="application/json",
        content_encoding="utf-8", properties={}, headers=example.get("headers"), delivery_info={},
        accept={"application/json"},
    )  # fmt: skip
    _received(received)


@cache
def _channel() -> Any:
    _celery()
    connection = Connection("redis://127.0.0.1:1/0", transport="workers.redis_transport:Transport")
    channel = object.__new__(redis_transport.Channel)
    channel.connection = connection.transport
    channel._tag, channel.no_ack_consumers, channel.body_encoding = iter(range(1 << 60)), set(), "base64"
    return channel


class _Restoring(redis_transport.Channel):
    """Does nothing but look at messages that are to be given back."""

    def __init__(self) -> None:
        self.queues: list[Any] = []

    def _lookup(self, exchange: Any, routing_key: Any, default: Any = None) -> list[str]:
        return [str(exchange) + str(routing_key)]

    def _q_for_pri(self, queue: str, priority: int) -> str:
        return f"{queue}{priority}"

    def __del__(self) -> None:
        pass


def attempt_envelope(example: Any) -> None:
    """Read what stood on a list of Redis as kombu's transport does, and hand on what it makes of it."""
    if not isinstance(example, dict):
        return
    text = text_of(example.get("text", ""))
    channel = _channel()
    Head.of_envelope(text.encode("utf-8", "surrogatepass"))
    payload = redis_transport.load_envelope(text)
    _give_back(payload)
    if redis_transport.problem_of_envelope(payload) is not None:
        return
    message = channel.Message(payload, channel=channel)
    message.accept = {"application/json"}
    if getattr(message, "errors", None):
        return
    _received(message)


def _give_back(payload: Any) -> None:
    """Do what restores an unacknowledged message, which is a list of it and of where it came from."""
    pipe = SimpleNamespace(lpush=lambda *_: None, rpush=lambda *_: None)
    try:
        message, exchange, routing_key = payload
    except (TypeError, ValueError):
        return  # which `Unacknowledged` takes for rubbish too
    _lost.clear()
    _Restoring()._do_restore_message(message, exchange, routing_key, pipe)
    if _lost:
        raise BrokenRule("kombu loses it with an error") from _lost[0]


class _Lost(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and isinstance(record.exc_info[1], Exception):
            _lost.append(record.exc_info[1])


_lost: list[Exception] = []
logging.getLogger("kombu").addHandler(_Lost())
logging.getLogger("kombu").propagate = False
logging.getLogger("celery").propagate = False
logging.getLogger("celery").addHandler(logging.NullHandler())

PARSERS = {
    "messages": Parser(_seeds_of_messages, attempt_message),
    "envelopes": Parser(_seeds_of_envelopes, attempt_envelope),
}
