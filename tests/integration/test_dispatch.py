from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import structlog

from inference.errors import BrokerUnavailable, DeadlineExceeded, Defect, ModelUnavailable
from inference.monitoring.queues import JobPriority
from inference.redis.clients import Client
from inference.settings import RedisSettings, Settings
from tasks.dispatch import Dispatcher, open_dispatcher
from tasks.dispatch.envelopes import list_key
from tests.support.deaf_proxy import deaf_proxy
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.waiting import LONG_S

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of this module's own: the worker keeps its connections over all tests."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server.start()
    server.stop()


@pytest.fixture(scope="module")
def worker(server: RedisServer) -> Iterator[subprocess.Popen[bytes]]:
    """A real worker process on the real-time queue."""
    process = start_worker(server)
    yield process
    process.terminate()
    process.wait(LONG_S)


@pytest_asyncio.fixture
async def dispatcher(server: RedisServer, worker: subprocess.Popen[bytes]) -> AsyncIterator[Dispatcher]:
    async with open_dispatcher(settings(server.port)) as dispatcher:
        yield dispatcher


def settings(port: int) -> Settings:
    url = f"redis://127.0.0.1:{port}/0"
    return Settings(redis=RedisSettings.model_validate({"url": url, "prefix": "test"}))


def start_worker(server: RedisServer) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FORECACHE_REDIS__URL": server.url(),
        "FORECACHE_REDIS__PREFIX": "test",
    }
    environment.pop("FORECACHE_CONFIG", None)
    script = ROOT / "tests" / "support" / "echo_worker.py"
    return subprocess.Popen([sys.executable, "-P", script], env=environment, cwd=server.folder)


async def call(dispatcher: Dispatcher, task: str, *, timeout_s: float = LONG_S, **kwargs: Any) -> dict[str, Any]:
    return await dispatcher(task, kwargs, deadline=time.time() + timeout_s, timeout_s=timeout_s)


async def test_many_callers_each_get_their_own_result_over_one_subscription(
    dispatcher: Dispatcher, server: RedisServer
) -> None:
    await call(dispatcher, "forecache.predict_echo")
    subscribed = subscriptions_made(server)
    began = time.perf_counter()
    results = await asyncio.gather(
        *(call(dispatcher, "forecache.predict_echo", number=number) for number in range(100))
    )
    took_s = time.perf_counter() - began
    assert [result["number"] for result in results] == list(range(100))
    assert all("deadline" in result for result in results)
    assert subscriptions_made(server) == subscribed
    print(f"{100 / took_s:.0f} tasks/s")  # noqa: T201 - a figure for whoever runs with -s


async def test_what_a_task_raises_comes_back_as_itself_or_leaks_nothing(dispatcher: Dispatcher) -> None:
    with pytest.raises(ModelUnavailable, match="a worker cannot use the model"):
        await call(dispatcher, "forecache.predict_unavailable")
    with pytest.raises(Defect) as caught:
        await call(dispatcher, "forecache.predict_defect")
    assert "secret" not in str(caught.value)


async def test_a_result_that_is_late_is_a_missed_deadline_and_disturbs_nobody(
    dispatcher: Dispatcher, server: RedisServer
) -> None:
    await call(dispatcher, "forecache.predict_echo")
    with Client.from_url(server.url()) as client:
        client.delete("busy", "release")
        # the worker computes until it is released, which it is not before the deadline was missed
        with pytest.raises(DeadlineExceeded):
            await call(dispatcher, "forecache.predict_when_released", timeout_s=0.2)
        client.rpush("release", 1)
    assert (await call(dispatcher, "forecache.predict_echo", number=7))["number"] == 7


async def test_results_published_while_the_subscription_was_cut_are_found_again(
    dispatcher: Dispatcher, server: RedisServer
) -> None:
    await call(dispatcher, "forecache.predict_echo")
    budget_s = 6 * LONG_S
    waiting = [
        asyncio.create_task(call(dispatcher, "forecache.predict_echo", number=number, sleep_s=0.1, timeout_s=budget_s))
        for number in range(5)
    ]
    await asyncio.sleep(0.15)
    with Client.from_url(server.url()) as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    began = time.perf_counter()
    assert [result["number"] for result in await asyncio.gather(*waiting)] == list(range(5))
    assert time.perf_counter() - began < LONG_S, "found by the second confirmation, not at half of the budget"


async def test_results_that_were_read_or_came_too_late_are_soon_removed(
    dispatcher: Dispatcher, server: RedisServer
) -> None:
    with Client.from_url(server.url()) as client:
        others = set(client.scan_iter("*celery-task-meta-*"))
        with pytest.raises(DeadlineExceeded):
            await call(dispatcher, "forecache.predict_echo", sleep_s=0.3, timeout_s=0.1)
        await asyncio.gather(*(call(dispatcher, "forecache.predict_echo", number=number) for number in range(20)))
        assert set(client.scan_iter("*celery-task-meta-*")) > others
        await eventually(lambda: set(client.scan_iter("*celery-task-meta-*")) <= others)


async def test_a_half_open_subscription_costs_half_of_a_budget_and_is_replaced(
    worker: subprocess.Popen[bytes], server: RedisServer
) -> None:
    async with deaf_proxy(server.port) as proxy, open_dispatcher(settings(proxy.port)) as dispatcher:
        await call(dispatcher, "forecache.predict_echo")
        proxy.deafen()
        began = time.perf_counter()
        assert (await call(dispatcher, "forecache.predict_echo", number=1, timeout_s=2))["number"] == 1
        assert time.perf_counter() - began > 0.9
        await eventually(lambda: len(proxy.subscribers) == 2)
        began = time.perf_counter()
        await call(dispatcher, "forecache.predict_echo", timeout_s=6 * LONG_S)
        assert time.perf_counter() - began < LONG_S, "long before half of the budget"


@asynccontextmanager
async def busy_worker(dispatcher: Dispatcher, client: Client) -> AsyncIterator[None]:
    """The worker has something to do, and takes nothing else up until the block ends."""
    client.delete("later", "busy", "release")
    blocker = asyncio.create_task(call(dispatcher, "forecache.predict_when_released", timeout_s=30))
    await eventually(lambda: client.llen("busy") == 1)
    yield
    client.rpush("release", 1)
    await blocker


async def test_jobs_go_behind_requests(dispatcher: Dispatcher, server: RedisServer) -> None:
    with Client.from_url(server.url()) as client:
        async with busy_worker(dispatcher, client):
            await dispatcher.enqueue("forecache.predict_later", [{"number": number} for number in range(50)])
            request = asyncio.create_task(call(dispatcher, "forecache.predict_marked", number=99, timeout_s=30))
            await eventually(lambda: client.llen(list_key("test:", "test.realtime", 0)) == 1)
        await request
        await eventually(lambda: client.llen("later") == 51)
        done = client.lrange("later", 0, -1)
    assert done.index(b"99") <= 1, "behind at most what the worker had already fetched"


async def test_of_the_jobs_that_wait_the_urgent_go_first(dispatcher: Dispatcher, server: RedisServer) -> None:
    with Client.from_url(server.url()) as client:
        async with busy_worker(dispatcher, client):
            for first, priority in ((100, JobPriority.LOW), (200, JobPriority.NORMAL), (300, JobPriority.HIGH)):
                messages = [{"number": first + number} for number in range(5)]
                await dispatcher.enqueue("forecache.predict_later", messages, priority=priority)
        await eventually(lambda: client.llen("later") == 15)
        done = [int(number) for number in client.lrange("later", 0, -1)]
    # one may have been fetched before the others were there
    assert [number for number in done if number != 100] == [*range(300, 305), *range(200, 205), *range(101, 105)]


async def test_without_a_broker_there_is_an_error_within_the_budget() -> None:
    async with open_dispatcher(settings(free_port())) as dispatcher:
        began = time.perf_counter()
        with pytest.raises(BrokerUnavailable):
            await call(dispatcher, "forecache.predict_echo", timeout_s=0.3)
        assert time.perf_counter() - began < LONG_S


async def test_a_broker_that_is_down_fails_the_send_and_is_used_again_when_it_is_back(tmp_path: Path) -> None:
    server = RedisServer(tmp_path).start()
    worker = start_worker(server)
    try:
        async with open_dispatcher(settings(server.port)) as dispatcher:
            await call(dispatcher, "forecache.predict_echo")
            server.kill()
            began = time.perf_counter()
            with pytest.raises((BrokerUnavailable, DeadlineExceeded)):
                await call(dispatcher, "forecache.predict_echo", timeout_s=0.5)
            assert time.perf_counter() - began < LONG_S
            server.start()
            assert (await call(dispatcher, "forecache.predict_echo", number=3))["number"] == 3
    finally:
        worker.terminate()
        worker.wait(20)
        server.stop()


def subscriptions_made(server: RedisServer) -> int:
    """How often anybody has subscribed."""
    with Client.from_url(server.url()) as client:
        stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("subscribe", "psubscribe"))


async def eventually(condition: Any, *, within_s: float = LONG_S) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        await asyncio.sleep(0.02)


async def test_an_outage_is_told_once_and_so_is_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.dispatch.waiter.LONGEST_PAUSE_S", 0.1)
    server = RedisServer(tmp_path)
    with structlog.testing.capture_logs() as logs:
        async with open_dispatcher(settings(server.port)):
            await asyncio.sleep(1)  # ten attempts and more
            server.start()
            try:
                await eventually(lambda: any(line["event"] == "results.connected" for line in logs))
            finally:
                server.stop()
    assert [line["event"] for line in logs][:2] == ["results.disconnected", "results.connected"]
