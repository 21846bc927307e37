"""Sends a task and awaits its result, for any number of callers of one event loop."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from inference import tracing
from inference.errors import (
    ERRORS_BY_CODE,
    DeadlineExceeded,
    Defect,
    ForecacheError,
    reported_error,
)
from inference.logs import get_logger, requests_behind
from inference.monitoring.queues import JobPriority
from inference.redis.clients import REQUEST, Patience, open_async_client
from inference.settings import MAINTENANCE_QUEUE, Settings
from inference.settings.server_urls import is_redis
from tasks.celery_app import REALTIME_TASKS, make_celery
from tasks.dispatch.envelopes import Envelopes
from tasks.dispatch.sender import BROKER_TIMEOUT_S, Lane, Priorities, RedisSender, Sender, make_sending_app, priorities
from tasks.dispatch.waiter import Payload, ResultWaiter

log = get_logger(__name__)

_ERRORS_BY_NAME = {cls.__name__: cls for cls in ERRORS_BY_CODE.values()}


class Dispatcher:
    """Sends tasks to the broker from one event loop. It is an `inference.serving.Submit`.

    Has two lanes, so that the many messages of a job never delay a request. `queue_of` returns a model's queue.
    """

    def __init__(
        self,
        urgent: Lane,
        patient: Lane,
        queue_of: Callable[[str | None], str],
        priorities: Priorities,
        waiter: ResultWaiter,
        *,
        id_prefix: str,
    ) -> None:
        self._urgent = urgent
        self._patient = patient
        self._queue_of = queue_of
        self._priorities = priorities
        self._waiter = waiter
        self._id_prefix = id_prefix

    async def __call__(
        self, task: str, kwargs: Mapping[str, Any], *, deadline: float, timeout_s: float
    ) -> dict[str, Any]:
        """Send a task to a worker, with its `deadline` (epoch seconds, Redis time); return its result.

        Raises:
            DeadlineExceeded: there was no result within `timeout_s`, or the worker dropped the task as late.
            BrokerUnavailable: the broker or the result backend did not answer.
            ForecacheError: whatever the task raised.
        """
        task_id = f"{self._id_prefix}{uuid.uuid4().hex}"
        queue = self._queue_of(kwargs.get("model"))
        behind = [request.span for request in dict.fromkeys(requests_behind())]
        with tracing.message_span(task, queue, task_id, behind):
            return await self._ask(task, {**kwargs, "deadline": deadline}, queue, task_id, timeout_s)

    async def _ask(
        self, task: str, kwargs: Mapping[str, Any], queue: str, task_id: str, timeout_s: float
    ) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        await self._waiter.subscribed(timeout_s)
        with self._waiter.expecting(task_id):
            try:
                async with asyncio.timeout_at(until):
                    await self._urgent.send(
                        task,
                        kwargs,
                        queue=queue,
                        task_id=task_id,
                        priority=self._priorities.request,
                        timeout_s=until - loop.time(),
                    )
            except TimeoutError as error:
                raise DeadlineExceeded("the broker did not take the task in time") from error
            payload = await self._waiter.result(task_id, timeout_s=until - loop.time())
        return result_of(payload, task_id)

    async def enqueue(
        self,
        task: str,
        messages: Iterable[Mapping[str, Any]],
        *,
        model: str | None = None,
        priority: JobPriority = JobPriority.NORMAL,
    ) -> None:
        """Send messages without waiting for results, behind all requests. `model`: whose workers they are for.

        Raises:
            BrokerUnavailable: the broker did not accept a message; those before it are on their way.
        """
        queue = self._queue_of(model) if task.startswith(REALTIME_TASKS) else MAINTENANCE_QUEUE
        for kwargs in messages:
            await self._patient.send(
                task, kwargs, queue=queue, task_id=f"later-{uuid.uuid4().hex}", priority=self._priorities.jobs[priority]
            )


def result_of(payload: Payload, task_id: str) -> dict[str, Any]:
    """Return what a finished task returned.

    Raises:
        ForecacheError: what the task raised, rebuilt; Defect for any other exception.
        DeadlineExceeded: the task expired on the queue.
    """
    if payload["status"] == "SUCCESS":
        result: dict[str, Any] = payload["result"]
        return result
    if payload["status"] == "REVOKED":
        raise DeadlineExceeded("the task expired on its queue")
    raise _error_of(payload["result"], task_id)


def _error_of(failure: Any, task_id: str) -> ForecacheError:
    if not isinstance(failure, Mapping):  # somebody else wrote under its key
        failure = {}
    message = failure.get("exc_message")
    text = str(message[0] if isinstance(message, list) and message else message)
    cls = _ERRORS_BY_NAME.get(str(failure.get("exc_type")))
    if cls is not None:
        return reported_error({"code": cls.code, "message": text})
    log.error("task.failed", task_id=task_id, exc_type=failure.get("exc_type"), exc_message=text)
    return Defect("a worker failed on this task; its log says why")


def load_dispatcher(settings: Settings) -> None:
    """Import what `open_dispatcher` needs: Celery's own imports would take its first caller a tenth of a second."""
    _ = make_celery(settings).backend, make_sending_app(settings).amqp


@asynccontextmanager
async def open_dispatcher(settings: Settings) -> AsyncIterator[Dispatcher]:
    """Yield a dispatcher for this event loop. The broker and the result backend may still be down."""
    id_prefix = f"{settings.redis.prefix}rt-{uuid.uuid4().hex[:12]}-"
    client = open_async_client(settings.redis_url, REQUEST)
    waiter = ResultWaiter(client, make_celery(settings).backend.get_key_for_task, id_prefix=id_prefix)
    waiter.start()
    try:
        async with _open_lanes(settings) as (urgent, patient):
            yield Dispatcher(
                urgent, patient, settings.realtime_queue, priorities(settings), waiter, id_prefix=id_prefix
            )
    finally:
        await waiter.close()
        await client.aclose()


@asynccontextmanager
async def _open_lanes(settings: Settings) -> AsyncIterator[tuple[Lane, Lane]]:
    """Yield a lane for requests and one for all else."""
    application = make_sending_app(settings)
    try:
        if is_redis(settings.broker_url):
            async with open_async_client(settings.broker_url, Patience(BROKER_TIMEOUT_S)) as broker:
                envelopes = Envelopes(application)
                yield RedisSender(broker, envelopes), RedisSender(broker, envelopes)
            return
        # once a broker is back, nobody waits for old requests any more
        urgent, patient = Sender(application, name="urgent", durable=False), Sender(application, name="patient")
        try:
            yield urgent, patient
        finally:
            urgent.close()
            patient.close()
    finally:
        application.close()
