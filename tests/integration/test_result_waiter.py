"""One process hears the results of its tasks, over a real Redis and without any worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import orjson
import pytest
import pytest_asyncio

from inference.errors import BrokerUnavailable, DeadlineExceeded
from inference.redis.clients import AsyncClient, Client
from tasks.dispatch.waiter import READY_STATES, ResultWaiter
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.virtual_time import virtual_time
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration


def key_of(task_id: str) -> bytes:
    return f"celery-task-meta-{task_id}".encode()


def payload(status: str = "SUCCESS", result: Any = 1) -> bytes:
    return orjson.dumps({"status": status, "result": result, "traceback": None})


@pytest_asyncio.fixture
async def waiter(redis_client: Client, redis_server: RedisServer) -> AsyncIterator[ResultWaiter]:
    async with AsyncClient.from_url(redis_server.url()) as client:
        waiter = ResultWaiter(client, key_of, id_prefix="me-")
        redis_client.config_resetstat()
        waiter.start()
        await waiter.subscribed(60)
        yield waiter
        await waiter.close()


def publish(client: Client, task_id: str, data: bytes, *, store: bool = True) -> int:
    """Do what the result backend does; return how many processes heard it."""
    if store:
        client.set(key_of(task_id), data)
    heard: int = client.publish(key_of(task_id).decode(), data)
    return heard


def subscriptions_made(client: Client) -> int:
    return int(client.info("commandstats")["cmdstat_psubscribe"]["calls"])


@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "REVOKED"])
async def test_each_final_state_ends_the_wait(waiter: ResultWaiter, redis_client: Client, status: str) -> None:
    assert status in READY_STATES
    with waiter.expecting("me-1") as future, waiter.expecting("me-2") as other:
        assert publish(redis_client, "me-1", payload("STARTED")) == 1
        assert publish(redis_client, "me-1", payload("RETRY")) == 1
        assert publish(redis_client, "me-1", payload(status)) == 1
        assert (await waiter.result("me-1", timeout_s=60))["status"] == status
        assert future.done()
        assert not other.done()


async def test_each_waiter_gets_its_own_result_and_other_processes_are_not_heard(
    waiter: ResultWaiter, redis_client: Client
) -> None:
    with waiter.expecting("me-1"), waiter.expecting("me-2"):
        assert publish(redis_client, "you-1", payload(result="not mine")) == 0
        publish(redis_client, "me-2", payload(result="two"))
        publish(redis_client, "me-1", payload(result="one"))
        found = await asyncio.gather(*(waiter.result(f"me-{n}", timeout_s=60) for n in (1, 2)))
    assert [one["result"] for one in found] == ["one", "two"]
    assert waiter._pending == {}


@virtual_time
async def test_a_result_that_was_never_told_is_asked_for_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    waiter = ResultWaiter(cast("Any", None), key_of, id_prefix="me-")
    asked: list[tuple[float, list[str]]] = []

    async def read(task_ids: list[str]) -> int:
        asked.append((loop.time(), task_ids))
        return waiter._deliver(task_ids[0], payload(result="stored")) if task_ids == ["me-1"] else 0

    monkeypatch.setattr(waiter, "_read", read)
    with waiter.expecting("me-1"), waiter.expecting("me-2"):
        assert (await waiter.result("me-1", timeout_s=10))["result"] == "stored"
        with pytest.raises(DeadlineExceeded):
            await waiter.result("me-2", timeout_s=10)
    assert asked == [(5.0, ["me-1"]), (10.0, ["me-2"])]
    assert loop.time() == 15.0


async def ask(waiter: ResultWaiter, task_id: str, began_at: float) -> None:
    """Do what a wait does half-way through."""
    await waiter._ask_directly(task_id, began_at, asyncio.get_running_loop().time() + 60)


async def test_the_subscription_stays_while_it_hears(waiter: ResultWaiter, redis_client: Client) -> None:
    began_at = asyncio.get_running_loop().time()
    with waiter.expecting("me-1") as future, waiter.expecting("me-2") as heard:
        redis_client.set(key_of("me-1"), payload(result="stored"))  # and nobody tells
        publish(redis_client, "me-2", payload())
        await heard
        await ask(waiter, "me-1", began_at)
        assert future.result()["result"] == "stored"
    assert not waiter._reconnect.is_set()
    with waiter.expecting("me-3"):
        publish(redis_client, "me-3", payload())
        await waiter.result("me-3", timeout_s=60)
    assert subscriptions_made(redis_client) == 1


async def test_a_subscription_that_missed_a_result_is_made_anew(waiter: ResultWaiter, redis_client: Client) -> None:
    with waiter.expecting("me-1") as future:
        redis_client.set(key_of("me-1"), payload(result="stored"))  # and nobody tells
        await ask(waiter, "me-1", asyncio.get_running_loop().time())
        assert future.result()["result"] == "stored"
    await asyncio.to_thread(wait_for, lambda: subscriptions_made(redis_client) == 2, "another subscription")
    with waiter.expecting("me-2"):
        redis_client.set(key_of("me-2"), payload())
        heard = lambda: publish(redis_client, "me-2", payload(), store=False)  # noqa: E731
        await asyncio.to_thread(wait_for, heard, "a process that hears")
        assert (await waiter.result("me-2", timeout_s=60))["status"] == "SUCCESS"


async def test_a_result_that_is_not_there_is_no_reason_to_reconnect(waiter: ResultWaiter, redis_client: Client) -> None:
    with waiter.expecting("me-1") as future:
        await ask(waiter, "me-1", asyncio.get_running_loop().time())
        assert not future.done()
    assert not waiter._reconnect.is_set()
    assert waiter._pending == {}
    assert subscriptions_made(redis_client) == 1


@pytest.fixture
def forgets_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.dispatch.waiter.FORGET_EVERY_S", 0.001)


async def test_results_that_were_read_or_came_too_late_are_removed_and_the_others_stay(
    forgets_at_once: None, waiter: ResultWaiter, redis_client: Client
) -> None:
    with waiter.expecting("me-1"), waiter.expecting("me-2"):
        publish(redis_client, "me-1", payload())
        publish(redis_client, "me-2", payload("STARTED"))
        publish(redis_client, "me-late", payload())
        await waiter.result("me-1", timeout_s=60)
        read = [key_of("me-1"), key_of("me-late")]
        await asyncio.to_thread(wait_for, lambda: not redis_client.exists(*read), "the removal of what was read")
        assert redis_client.exists(key_of("me-2"))


async def test_whoever_still_waits_at_the_end_is_told(redis_client: Client, redis_server: RedisServer) -> None:
    async with AsyncClient.from_url(redis_server.url()) as client:
        waiter = ResultWaiter(client, key_of, id_prefix="me-")
        waiter.start()
        await waiter.subscribed(60)
        with waiter.expecting("me-1"):
            waiting = asyncio.create_task(waiter.result("me-1", timeout_s=60))
            await asyncio.sleep(0)
            await waiter.close()
            with pytest.raises(BrokerUnavailable, match="shutting down"):
                await waiting


async def test_without_redis_nothing_may_be_sent() -> None:
    async with AsyncClient(port=free_port(), retry=None) as nowhere:
        waiter = ResultWaiter(nowhere, key_of, id_prefix="me-")
        waiter.start()
        with pytest.raises(BrokerUnavailable, match="no subscription yet"):
            await waiter.subscribed(0.01)
        await waiter.close()
