"""Asks the broker how full the queues are: Redis, or any other that kombu supports, such as RabbitMQ."""

from __future__ import annotations

import threading
import time
from typing import Any

from kombu import Connection
from kombu.exceptions import KombuError

from inference.clock import Clock, system_clock
from inference.errors import BrokerUnavailable, StoreUnavailable
from inference.monitoring.queues import HeadAges, QueueHead, QueueState
from inference.redis.clients import Patience, open_client
from inference.settings import BATCH_QUEUE, MAINTENANCE_QUEUE, Settings
from inference.settings.server_urls import is_redis
from tasks.dispatch.envelopes import LEVELS, list_key

_TIMEOUT_S = 2.0
#: seconds for which pages and scrapers share one look at the broker
_SHARED_FOR_S = 1.0


class Queues:
    """Reads the queues of a deployment. Safe to call from several threads."""

    def __init__(self, settings: Settings, clock: Clock = system_clock) -> None:
        self._url = settings.broker_url
        self._prefix = settings.redis.prefix
        self._queues = settings.queues
        self._ages = HeadAges(clock)
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._states: list[QueueState] = []
        self._redis: Any = None
        if is_redis(self._url):
            self._redis = open_client(self._url, Patience(_TIMEOUT_S))

    def read(self) -> list[QueueState]:
        """Return the state of each queue, at most a second old.

        Brokers other than Redis show a message only to a process that takes it. So this takes the oldest message and
        gives it back at once, to its old place. That marks it as redelivered, which real-time workers refuse. So the
        age of their queue is not known there.

        Raises:
            BrokerUnavailable: the broker did not answer.
        """
        with self._lock:
            if time.monotonic() - self._read_at > _SHARED_FOR_S:
                self._states = self._of_redis() if self._redis is not None else self._of_amqp()
                self._read_at = time.monotonic()
            return self._states

    def close(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            self._redis.close()

    def _of_redis(self) -> list[QueueState]:
        pipeline = self._redis.pipeline(transaction=False)
        places = [
            (queue, list_key(f"{self._prefix}:", f"{self._prefix}.{queue}", level))
            for queue in self._queues
            for level in LEVELS
        ]
        for _, key in places:
            pipeline.llen(key)
            pipeline.lindex(key, -1)
        # writes nothing, since there is no such list. A readable server that takes no messages (a replica, or out of
        # memory) refuses it too
        pipeline.lpushx(list_key(f"{self._prefix}:", f"{self._prefix}.no-queue", 0), "")
        try:
            *answers, _ = pipeline.execute()
        except StoreUnavailable as error:
            raise BrokerUnavailable(f"the broker takes no messages: {error.message}") from error
        depths = dict.fromkeys(self._queues, 0)
        ages: dict[str, float] = {}
        for (queue, key), depth, head in zip(places, answers[::2], answers[1::2], strict=True):
            depths[queue] += depth
            age_s = self._ages.age_s(key, None if head is None else QueueHead.of_envelope(head))
            if age_s is not None:
                ages[queue] = max(age_s, ages.get(queue, 0.0))
        return [QueueState(queue, depths[queue], ages.get(queue)) for queue in self._queues]

    def _of_amqp(self) -> list[QueueState]:
        try:
            with Connection(self._url, connect_timeout=_TIMEOUT_S) as connection:
                connection.connect()
                return [self._of_amqp_queue(connection, queue) for queue in self._queues]
        # each transport has its own connection errors, which kombu names only once connected
        except (OSError, KombuError, *Connection(self._url).connection_errors) as error:
            raise BrokerUnavailable("the broker does not answer") from error

    def _of_amqp_queue(self, connection: Any, queue: str) -> QueueState:
        name = f"{self._prefix}.{queue}"
        try:
            with connection.channel() as channel:
                depth = int(channel.queue_declare(name, passive=True).message_count)
                message = channel.basic_get(name) if depth and queue in (BATCH_QUEUE, MAINTENANCE_QUEUE) else None
                if message is not None:
                    channel.basic_reject(message.delivery_info["delivery_tag"], requeue=True)
        except connection.channel_errors:  # no worker has declared it yet
            return QueueState(queue, 0, None)
        head = None if message is None else QueueHead.of(message.headers or {})
        return QueueState(queue, depth, self._ages.age_s(name, head))
