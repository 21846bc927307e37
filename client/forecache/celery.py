"""Sends Forecache's Celery tasks from another Celery application. Needs celery, and no connection over HTTP.

The messages are a stable contract: docs/existing.md of the server's repository.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from celery import Celery, Signature
from celery.result import AsyncResult

from forecache.calls import trace_headers
from forecache.errors import BadRequest
from forecache.inputs import body_of
from forecache.keywords import check_keywords
from forecache.requests import Rows

Priority = Literal["request", "high", "normal", "low"]

#: rows of one message
MAX_ROWS = 4_096
#: first to last; kombu's Redis transport serves its four lowest numbers 0, 3, 6, 9 in this order, AMQP the highest
_LEVELS: Mapping[str, int] = {"request": 0, "high": 3, "normal": 6, "low": 9}
_AMQP_FIRST = 9


@check_keywords
def connect(broker: str, backend: str, *, prefix: str = "forecache") -> Celery:
    """Return an application beside your own, which only sends to Forecache and reads its results.

    `broker`: Forecache's `[celery] broker_url`, or else its `[redis] url`. `backend`: its `[redis] url`. `prefix`: its
    `[redis] prefix`. Nothing connects until it is used.
    """
    application = Celery("forecache-client", broker=broker, backend=backend, set_as_current=False)
    keys = {"global_keyprefix": f"{prefix}:"}
    application.conf.update(
        result_backend_transport_options=keys,
        broker_transport_options=keys if _is_redis(application) else {},
        # RabbitMQ refuses a queue that two applications declare differently
        task_queue_max_priority=_AMQP_FIRST,
    )
    return application


@check_keywords
def enqueue_predictions(
    app: Celery,
    entity_ids: Any = None,
    *,
    instances: Any = None,
    model: str | None = None,
    priority: Priority = "request",
    queue: str = "realtime",
    expires_s: float = 30.0,
    overrides: Mapping[str, Any] | None = None,
    recompute: bool = True,
    link: Signature | list[Signature] | None = None,
) -> AsyncResult:
    """Have workers compute predictions of up to 4 096 entities or instances now; return the result to be.

    Its value is `{"model": …, "predictions": [{"entity_id": …, "prediction": …}, …]}` in the order of the rows; a row
    that failed has an `error` instead. Redis forgets it after ten minutes. `priority`: `request` goes together with
    the API's own requests. `queue`: that of the model's settings. `expires_s`: a worker that comes later drops it.
    `link`: tasks of yours that get the value, which Forecache's `[celery] linked_tasks` must allow.

    Raises:
        BadRequest: an argument is wrong; it names the field.
        kombu.exceptions.OperationalError: the broker does not answer.
    """
    return predictions(
        app,
        entity_ids,
        instances=instances,
        model=model,
        priority=priority,
        queue=queue,
        expires_s=expires_s,
        overrides=overrides,
        recompute=recompute,
    ).apply_async(link=link, headers=trace_headers())


@check_keywords
def predictions(
    app: Celery,
    entity_ids: Any = None,
    *,
    instances: Any = None,
    model: str | None = None,
    priority: Priority = "request",
    queue: str = "realtime",
    expires_s: float = 30.0,
    overrides: Mapping[str, Any] | None = None,
    recompute: bool = True,
) -> Signature:
    """Return the signature that `enqueue_predictions` sends, as the first of a chain or one of a chord.

    Raises:
        BadRequest: an argument is wrong; it names the field.
    """
    rows = Rows.of(entity_ids, instances)
    if not 0 < len(rows.values) <= MAX_ROWS:
        raise BadRequest(f"{rows.field} holds {len(rows.values)}: send 1 to {MAX_ROWS} in a message", field=rows.field)
    named: dict[str, Any] = {rows.field: json.loads(body_of(list(rows.values)))}
    if model is not None:
        named["model"] = model
    if rows.field == "entity_ids":
        named |= {} if overrides is None else {"overrides": json.loads(body_of(overrides))}
        named |= {} if recompute else {"recompute": False}
    elif overrides is not None or not recompute:
        raise BadRequest("overrides and recompute go with entity_ids: instances bring all of their features")
    task = "forecache.predict_entities" if rows.field == "entity_ids" else "forecache.predict_instances"
    return app.signature(
        task, kwargs=named, queue=_queue(app, queue), priority=_number(app, priority), expires=expires_s
    )


@check_keywords
def start_run(app: Celery, model: str | None = None) -> Signature:
    """Return the signature that starts a batch run over a model's whole table.

    Its value is the run, or `{"error": …}` if another one goes on.
    """
    named = {} if model is None else {"model": model}
    return app.signature("forecache.start_run", kwargs=named, queue=_queue(app, "maintenance"))


def _queue(app: Celery, name: str) -> str:
    options = app.conf.result_backend_transport_options or {}
    prefix = str(options.get("global_keyprefix", ""))
    if not prefix.endswith(":"):
        raise BadRequest(
            "this application would not find Forecache's results: make it by forecache.celery.connect, or set its "
            'result_backend_transport_options to {"global_keyprefix": "forecache:"}',
            field="app",
        )
    return f"{prefix[:-1]}.{name}"


def _number(app: Celery, priority: Priority) -> int:
    if priority not in _LEVELS:
        raise BadRequest(f"priority: {priority!r} is none of {', '.join(_LEVELS)}", field="priority")
    level = _LEVELS[priority]
    return level if _is_redis(app) else _AMQP_FIRST - level


def _is_redis(app: Celery) -> bool:
    return bool(app.connection_for_write().transport.driver_type == "redis")
