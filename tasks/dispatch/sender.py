"""Sends task messages, so that the event loop never waits for the broker: by kombu in a thread, or to Redis itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from celery import Celery
from kombu.entity import PERSISTENT_DELIVERY_MODE, TRANSIENT_DELIVERY_MODE

from inference.errors import BrokerUnavailable, StoreUnavailable
from inference.logs import get_logger, message_headers
from inference.monitoring.queues import JobPriority
from inference.protocols.json_documents import is_heavy
from inference.redis.clients import AsyncClient
from inference.settings import Settings
from inference.settings.server_urls import is_amqp, is_redis
from tasks.celery_app import AMQP_PRIORITIES, broker_errors, celery_config, make_celery
from tasks.dispatch.envelopes import LEVELS, Envelopes

log = get_logger(__name__)

#: a broker that takes longer to accept a connection or a message counts as away
BROKER_TIMEOUT_S = 2.0

#: one retry, at once: it replaces a connection that a restarted broker closed; more retries would exceed the budget
ONE_RETRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}

#: how long RabbitMQ may take to confirm a message; Redis answers anyway
CONFIRMED = {"confirm_timeout": BROKER_TIMEOUT_S}

#: seconds past the deadline after which RabbitMQ drops the message. The message holds the deadline itself in Redis
#: time. It has no `expires`, which Celery compares by two hosts' clocks: a worker two minutes ahead would drop all
EXPIRES_SLACK_S = 10.0


def make_sending_app(settings: Settings, **overrides: Any) -> Celery:
    """Return an application that only sends.

    Its result backend is disabled: the ordinary one SUBSCRIBEs and UNSUBSCRIBEs for each call, while the
    dispatcher receives all results over one subscription. Workers still store results: that is their own setting.
    """
    transport = celery_config(settings)["broker_transport_options"]
    if is_redis(settings.broker_url):
        transport = {**transport, "socket_timeout": BROKER_TIMEOUT_S, "socket_connect_timeout": BROKER_TIMEOUT_S}
    elif is_amqp(settings.broker_url):
        # otherwise a message to a silent broker counts as sent, for ever
        transport = {**transport, "confirm_publish": True}
    return make_celery(
        settings,
        result_backend="disabled://",
        broker_connection_timeout=BROKER_TIMEOUT_S,
        broker_transport_options=transport,
        task_publish_retry_policy=ONE_RETRY,
        **overrides,
    )


@dataclass(frozen=True)
class Priorities:
    """The broker's priorities: for requests, and for the parts of jobs, which wait behind all requests."""

    request: int
    jobs: Mapping[JobPriority, int]


def priorities(settings: Settings) -> Priorities:
    """Return the numbers for the configured broker: on Redis the lowest goes first, on AMQP the highest."""
    request, *jobs = LEVELS if is_redis(settings.broker_url) else (AMQP_PRIORITIES - level for level in LEVELS)
    return Priorities(request, dict(zip((JobPriority.HIGH, JobPriority.NORMAL, JobPriority.LOW), jobs, strict=True)))


class Lane(Protocol):
    """One way to the broker. It keeps the order of the messages."""

    async def send(
        self,
        task: str,
        kwargs: Mapping[str, Any],
        *,
        queue: str,
        task_id: str,
        priority: int,
        timeout_s: float | None = None,
    ) -> None:
        """Hand one message to the broker.

        `queue`: its name in routes. `priority`: the broker's number (`priorities`). `timeout_s`: how long the result
        is wanted; None for ever.

        Raises:
            BrokerUnavailable: the broker did not accept it.
        """


class Sender:
    """A lane of any broker: one thread, since kombu has no asyncio.

    `durable`: RabbitMQ writes its messages to disk before it confirms them, so that they outlive its restart.
    """

    def __init__(self, application: Celery, *, name: str, durable: bool = True) -> None:
        self._application = application
        self._options = {**CONFIRMED, "delivery_mode": PERSISTENT_DELIVERY_MODE if durable else TRANSIENT_DELIVERY_MODE}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"send-{name}")

    async def send(
        self,
        task: str,
        kwargs: Mapping[str, Any],
        *,
        queue: str,
        task_id: str,
        priority: int,
        timeout_s: float | None = None,
    ) -> None:
        """See `Lane.send`. Does not send a message whose time is up before the thread is free."""
        give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
        loop = asyncio.get_running_loop()
        options = {"queue": queue, "task_id": task_id, "priority": priority, "headers": message_headers()}
        await loop.run_in_executor(self._thread, self._send, task, dict(kwargs), options, give_up_at)

    def close(self) -> None:
        """End the thread without waiting for a broker that hangs. Drops unsent messages."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _send(self, task: str, kwargs: dict[str, Any], options: dict[str, Any], give_up_at: float | None) -> None:
        expiration = None
        if give_up_at is not None:
            left_s = give_up_at - time.monotonic()
            if left_s <= 0:
                raise BrokerUnavailable("the broker is too slow: the message was not sent within the budget")
            expiration = left_s + EXPIRES_SLACK_S
        try:
            with broker_errors("the task"):
                self._application.send_task(task, kwargs=kwargs, expiration=expiration, **self._options, **options)
        except BrokerUnavailable as error:
            log.warning("broker.unavailable", task=task, task_id=options["task_id"], error=error.message)
            # the client must not see our broker's address
            raise BrokerUnavailable("the broker does not answer: the task was not sent") from error


class RedisSender:
    """A lane that writes messages into the lists of a Redis broker; see `Lane`."""

    def __init__(self, client: AsyncClient, envelopes: Envelopes) -> None:
        self._client = client
        self._envelopes = envelopes

    async def send(
        self,
        task: str,
        kwargs: Mapping[str, Any],
        *,
        queue: str,
        task_id: str,
        priority: int,
        timeout_s: float | None = None,  # noqa: ARG002 - the message itself holds its deadline
    ) -> None:
        """See `Lane.send`."""
        spell = partial(
            self._envelopes.message,
            task,
            kwargs,
            queue=queue,
            task_id=task_id,
            priority=priority,
        )
        message = await asyncio.to_thread(spell) if is_heavy(kwargs) else spell()
        command = ("LPUSH", self._envelopes.place(queue, priority), message)
        try:
            # sends again if a restarted broker closed the connection: the task may run twice, with one result
            await self._client.exchange([command])
        except StoreUnavailable as error:
            log.warning("broker.unavailable", task=task, error=error.message)
            raise BrokerUnavailable("the broker does not answer: the task was not sent") from error
