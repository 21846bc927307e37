from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import redis
import redis.asyncio

from inference.errors import StoreUnavailable
from inference.hits import HitRecorder, HitWindows
from inference.keys import Keys
from inference.outcomes import Outcome
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.integration

KEYS = Keys("test")


class Clock:
    """Epoch seconds that the test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture
async def recorder(redis_client: redis.Redis, redis_server: RedisServer, clock: Clock) -> AsyncIterator[HitRecorder]:
    async with redis.asyncio.Redis.from_url(redis_server.url()) as client:
        yield HitRecorder(client, KEYS, clock)


async def test_two_processes_add_up_and_old_minutes_leave_the_window(
    recorder: HitRecorder, redis_client: redis.Redis, redis_server: RedisServer, clock: Clock
) -> None:
    windows = HitWindows(redis_client, KEYS, clock)
    recorder.record("delay", Outcome.HIT_BATCH, 3)
    recorder.record("other", Outcome.SHED)
    await recorder.flush()
    async with redis.asyncio.Redis.from_url(redis_server.url()) as client:
        second = HitRecorder(client, KEYS, clock)
        clock.now += 120
        second.record("delay", Outcome.COMPUTED)
        await second.flush()
    counts = windows.read("delay", 180)
    assert (counts.total, counts.hit_rate) == (4, 0.75)
    assert counts.outcomes[Outcome.SHED] == 0
    assert windows.read("delay", 30).outcomes[Outcome.COMPUTED] == 1
    assert windows.read("delay", 30).total == 1
    assert windows.read("unheard-of", 180).hit_rate == 0.0


async def test_counters_expire_after_the_longest_window(recorder: HitRecorder, redis_client: redis.Redis) -> None:
    recorder.record("delay", Outcome.COMPUTED)
    await recorder.flush()
    [key] = redis_client.keys("test:h:*:[0-9]*")
    assert 7 * 24 * 3600 < redis_client.ttl(key) <= 8 * 24 * 3600


async def test_counts_are_dropped_rather_than_repeated_when_redis_is_gone(
    redis_client: redis.Redis, redis_server: RedisServer, clock: Clock
) -> None:
    async with redis.asyncio.Redis(port=free_port(), retry=None) as nowhere:
        lost = HitRecorder(nowhere, KEYS, clock)
        lost.record("delay", Outcome.COMPUTED)
        await lost.flush()
        async with redis.asyncio.Redis.from_url(redis_server.url()) as client:
            lost._client = client
            lost.record("delay", Outcome.HIT_BATCH)
            await lost.flush()
    assert HitWindows(redis_client, KEYS, clock).read("delay", 60).outcomes == {
        outcome: int(outcome is Outcome.HIT_BATCH) for outcome in Outcome
    }


async def test_what_is_left_is_flushed_at_the_end(
    recorder: HitRecorder, redis_client: redis.Redis, clock: Clock
) -> None:
    running = asyncio.create_task(recorder.run(every_s=60))
    await asyncio.sleep(0)
    recorder.record("delay", Outcome.COMPUTED)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert HitWindows(redis_client, KEYS, clock).read("delay", 60).total == 1


def test_an_outage_is_an_error_and_not_a_hit_rate_of_zero() -> None:
    with redis.Redis(port=free_port(), retry=None) as nowhere, pytest.raises(StoreUnavailable):
        HitWindows(nowhere, KEYS).read("delay", 60)


async def test_a_series_adds_up_to_its_window_and_tells_when(
    recorder: HitRecorder, redis_client: redis.Redis, clock: Clock
) -> None:
    windows = HitWindows(redis_client, KEYS, clock)
    for _ in range(4):
        recorder.record("delay", Outcome.HIT_BATCH, 10, age_s=60.0)
        recorder.record_latency("delay", 0.001, hit=True)
        recorder.record_micro_batch("delay", 3)
        await recorder.flush()
        clock.now += 60
    points = windows.series("delay", 300)
    assert [point.statistics.counts.total for point in points] == [0, 10, 10, 10, 10, 0]
    assert points[-1].at == clock.now // 60 * 60
    assert sum(point.statistics.hit_latency.total for point in windows.series("delay", 24 * 3600)) == 4
    assert windows.statistics("delay", 300).micro_batch.total == 4
    assert windows.totals("delay")["hit_batch"] == 40


async def test_minutes_that_are_over_are_read_once_and_late_ones_again(
    recorder: HitRecorder, redis_client: redis.Redis, clock: Clock
) -> None:
    windows = HitWindows(redis_client, KEYS, clock)
    recorder.record("delay", Outcome.COMPUTED)
    await recorder.flush()
    assert windows.read("delay", 3600).total == 1
    recorder.record("delay", Outcome.COMPUTED)
    await recorder.flush()
    assert windows.read("delay", 3600).total == 2
    clock.now += 600
    assert windows.read("delay", 3600).total == 2
    redis_client.flushdb()
    assert windows.read("delay", 3600).total == 2
