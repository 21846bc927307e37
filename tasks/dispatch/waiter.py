"""Receives the results of one process's tasks over one subscription.

The Redis result backend publishes each result on a channel with the name of its key. Task ids start with this
process's own prefix, so one PSUBSCRIBE receives all of its results and no others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import redis
import redis.asyncio

from inference.errors import BrokerUnavailable, DeadlineExceeded, StoreUnavailable
from inference.logs import get_logger
from inference.redis.clients import AsyncClient
from inference.redis.pipes import closed_connections

log = get_logger(__name__)

#: states that end a task; STARTED and RETRY come over the same channel
READY_STATES = frozenset({"SUCCESS", "FAILURE", "REVOKED"})
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
#: how often results that were read are removed: at a thousand micro-batches of hundreds of rows a minute, results
#: that stay until their expiry take hundreds of MiB of Redis
FORGET_EVERY_S = 1.0

#: the result backend's record of a task: status, result, traceback
Payload = dict[str, Any]


class ResultWaiter:
    """Waits for results of tasks whose ids start with `id_prefix`. One per event loop.

    `client`: for the Redis that holds results. `key_of`: a task id's key there (`backend.get_key_for_task`).
    """

    def __init__(self, client: AsyncClient, key_of: Callable[[str], bytes], *, id_prefix: str) -> None:
        self._client = client
        self._key_of = key_of
        self._pattern = key_of(id_prefix) + b"*"
        self._key_start = len(key_of(id_prefix)) - len(id_prefix.encode())
        self._pending: dict[str, asyncio.Future[Payload]] = {}
        self._subscribed = asyncio.Event()
        self._reconnect = asyncio.Event()
        self._heard_at = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._in_outage = False
        self._read_keys: list[bytes] = []
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Subscribe, and subscribe again after every outage, until closed."""
        self._tasks = [asyncio.create_task(self._listen_for_good()), asyncio.create_task(self._forget_for_good())]

    async def close(self) -> None:
        """End the subscription; callers that still wait get BrokerUnavailable."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for future in self._pending.values():
            if not future.done():
                future.set_exception(BrokerUnavailable("this process is shutting down"))

    async def subscribed(self, timeout_s: float) -> None:
        """Wait for the subscription. Send nothing before: its result could be missed.

        Raises:
            BrokerUnavailable: the first subscription was not confirmed within `timeout_s`.
        """
        if self._subscribed.is_set():
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._subscribed.wait()
        except TimeoutError as error:
            raise BrokerUnavailable("the result backend does not answer: no subscription yet") from error

    @contextmanager
    def expecting(self, task_id: str) -> Iterator[asyncio.Future[Payload]]:
        """Listen for one task's result while inside; enter before the task is sent."""
        future: asyncio.Future[Payload] = asyncio.get_running_loop().create_future()
        self._pending[task_id] = future
        try:
            yield future
        finally:
            del self._pending[task_id]
            if not future.done():
                future.cancel()

    async def result(self, task_id: str, *, timeout_s: float) -> Payload:
        """Return an expected task's result.

        Half-way through, also reads it from its key: a half-open connection stays silent for 20 s.

        Raises:
            DeadlineExceeded: it was not there within `timeout_s`.
            BrokerUnavailable: this process is shutting down.
        """
        future = self._pending[task_id]
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        until = began_at + timeout_s
        done, _ = await asyncio.wait({future}, timeout=timeout_s / 2)
        if not done:
            await self._ask_directly(task_id, began_at, until)
            done, _ = await asyncio.wait({future}, timeout=until - loop.time())
        if not done:
            raise DeadlineExceeded("no worker answered in time")
        return future.result()

    async def _ask_directly(self, task_id: str, began_at: float, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                found = await self._read([task_id])
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("results.unreadable", error=str(error) or type(error).__name__)
            return
        if found and self._heard_at < began_at:
            log.warning("results.subscription_deaf", found=found)
            self._reconnect.set()

    async def _listen_for_good(self) -> None:
        while True:
            try:
                await self._listen_once()
            except Exception as error:  # any error: a process without a subscription answers no miss
                if not self._in_outage:  # an outage of hours is one line, not one a second
                    foreseen = isinstance(error, StoreUnavailable | redis.RedisError | OSError)
                    log.warning("results.disconnected", error=type(error).__name__, exc_info=not foreseen)
                self._in_outage = True
                await asyncio.sleep(self._pause_s)
                self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)

    async def _listen_once(self) -> None:
        """Receive results over one connection; return when another one is needed."""
        self._reconnect.clear()
        async with self._client.pubsub() as subscription:
            with closed_connections():
                await subscription.psubscribe(self._pattern)
            hearing = asyncio.create_task(self._hear(subscription))
            giving_up = asyncio.create_task(self._reconnect.wait())
            try:
                await asyncio.wait({hearing, giving_up}, return_when=asyncio.FIRST_COMPLETED)
                if hearing.done():
                    hearing.result()
            finally:
                hearing.cancel()
                giving_up.cancel()
                await asyncio.gather(hearing, giving_up, return_exceptions=True)

    async def _hear(self, subscription: redis.asyncio.client.PubSub) -> None:
        async for message in subscription.listen():
            if message["type"] == "psubscribe":
                # a confirmation: results that were published before it stand under their keys
                self._subscribed.set()
                self._pause_s = FIRST_PAUSE_S
                if self._in_outage:
                    log.info("results.connected")
                self._in_outage = False
                await self._read(list(self._pending))
            elif message["type"] == "pmessage":
                self._heard_at = asyncio.get_running_loop().time()
                self._deliver(message["channel"][self._key_start :].decode(errors="replace"), message["data"])

    async def _read(self, task_ids: Iterable[str]) -> int:
        """Deliver the results that are stored by now; return how many there were."""
        task_ids = list(task_ids)
        if not task_ids:
            return 0
        values = await self._client.mget([self._key_of(task_id) for task_id in task_ids])
        return sum(
            self._deliver(task_id, value) for task_id, value in zip(task_ids, values, strict=True) if value is not None
        )

    def _deliver(self, task_id: str, data: bytes | str) -> bool:
        """Deliver a result to its caller; return False if nobody waits for it (any more), or it is not final."""
        future = self._pending.get(task_id)
        if future is None or future.done():
            self._read_keys.append(self._key_of(task_id))  # it came too late, and no other process reads it
            return False
        payload = _payload_of(data)
        if payload is None or payload["status"] not in READY_STATES:
            return False
        future.set_result(payload)
        self._read_keys.append(self._key_of(task_id))
        return True

    async def _forget_for_good(self) -> None:
        """Remove results that were read, now and then. Those that an outage leaves expire by themselves."""
        while True:
            await asyncio.sleep(FORGET_EVERY_S)
            keys, self._read_keys = self._read_keys, []
            if keys:
                try:
                    await self._client.unlink(*keys)
                except Exception as error:  # noqa: BLE001 - they expire by themselves
                    log.debug("results.not_removed", error=type(error).__name__)


def _payload_of(data: bytes | str) -> Payload | None:
    """Return the result backend's record of a task; None for foreign data under its key."""
    try:
        payload = orjson.loads(data)
    except orjson.JSONDecodeError:
        payload = None
    if isinstance(payload, dict) and isinstance(payload.get("status"), str) and "result" in payload:
        return payload
    log.warning("results.unreadable", error="no result of a task")
    return None
