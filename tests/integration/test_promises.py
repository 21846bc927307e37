"""Promises in a real Redis: kept for tomorrow, concluded once the day is over, and shown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx
import pytest

from inference.economics.advice import CostReport, cost_report
from inference.economics.inputs import Basis, Figure
from inference.economics.measured import Measured
from inference.economics.prices import read_prices
from inference.economics.promises import Promises
from inference.monitoring.asked_filters import DAY_S
from inference.monitoring.statistics import HitWindows, Statistics
from inference.redis.clients import Client
from inference.settings import BatchSettings, ModelSettings
from tests.support.history import KEYS, count_requests, keep_runs, publish_generation
from tests.support.redis_server import RedisServer
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

SETTINGS = ModelSettings(path=Path("m"), features="t", batch=BatchSettings(schedule="6h", ttl="12h"))
DAY = 19_700


def report(hit_rate: float = 0.9) -> CostReport:
    values = {"entities": 1e6, "rps": 1, "peak_rps": 2, "hit_rate": hit_rate, "runs_per_day": 4}
    figures = {name: Figure(value, Basis.MEASURED, "counted") for name, value in values.items()}
    return cost_report("delay", SETTINGS, Measured("delay", figures, Statistics.of({"hit_batch": 500})), read_prices())


class Days:
    """Promises whose clock stands where it is set."""

    def __init__(self, client: Client) -> None:
        self.now = 0.0
        self.promises = Promises(client, KEYS, HitWindows(client, KEYS, self.clock), self.clock)

    def clock(self) -> float:
        return self.now

    def keep(self, day: float, *hit_rates: float) -> None:
        self.now = day * DAY_S
        for hit_rate in hit_rates or (0.9,):
            self.promises.keep("delay", report(hit_rate))

    def shown(self, days: int) -> Sequence[tuple[int, float | None, float | None]]:
        return [
            (each.day - DAY, each.promised and each.promised.hit_rate, each.came and each.came.hit_rate)
            for each in self.promises.days("delay", days)
        ]


async def test_the_last_promise_before_a_day_is_compared_with_its_counters(
    redis_client: Client, redis_server: RedisServer
) -> None:
    days = Days(redis_client)
    days.keep(DAY + 0.1, 0.5, 0.8)
    days.keep(DAY + 0.9, 0.9)
    await count_requests(redis_server, hits=700, misses=300, entities=1, clock=lambda: (DAY + 1.5) * DAY_S)
    await count_requests(redis_server, hits=9, misses=1, entities=1, clock=lambda: (DAY + 2) * DAY_S - 1)
    # as long as processes may still count for it, a day is not over
    days.keep(DAY + 2 + 60 / DAY_S)
    assert days.shown(2) == [(1, 0.9, None), (0, None, None)]
    days.keep(DAY + 2.1)
    assert days.shown(2) == [(1, 0.9, pytest.approx(709 / 1010)), (0, None, None)]
    came = days.promises.days("delay", 1)[0].came
    assert came is not None
    assert (came.requests, came.peak_rps) == (1010, pytest.approx(1000 / 600))
    key = KEYS.promise("delay", DAY + 1)
    assert redis_client.hget(key, "came")
    assert 399 * DAY_S < redis_client.ttl(key) <= 400 * DAY_S


async def test_a_worker_that_was_away_for_days_finds_out_what_came_meanwhile(
    redis_client: Client, redis_server: RedisServer
) -> None:
    days = Days(redis_client)
    days.keep(DAY + 0.5)
    for back in (1, 3):
        await count_requests(
            redis_server, hits=80, misses=20, entities=1, clock=lambda at=back: (DAY + at + 0.5) * DAY_S
        )
    days.keep(DAY + 4.5)
    # day 2 had neither a promise nor a request; day 3 had no promise
    assert days.shown(4) == [
        (3, None, pytest.approx(0.8)),
        (2, None, None),
        (1, 0.9, pytest.approx(0.8)),
        (0, None, None),
    ]
    # days on which nothing came, after a promise
    days.keep(DAY + 5.9)
    days.keep(DAY + 7.1)
    silent = days.promises.days("delay", 1)[0]
    assert (silent.promised is not None, silent.came and silent.came.requests) == (True, 0)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_maintenance_worker_keeps_promises_that_prometheus_gets(tmp_path: Path) -> None:
    with Stack(tmp_path, '[models.delay]\npath = "m"\nfeatures = "t.parquet"\n') as stack:
        promises, keys = stack.deployment.promises, stack.deployment.keys
        client = stack.deployment.cache
        publish_generation(client)
        keep_runs(client, "published")
        cache = cast("RedisServer", SimpleNamespace(url=lambda: stack.redis.url(1)))
        asyncio.run(count_requests(cache, hits=900, misses=100, entities=10))
        stack.start("maintenance", "api")
        tomorrow = int(time.time() // DAY_S) + 1
        wait_for(lambda: client.exists(keys.promise("delay", tomorrow)), "a promise", 60)
        # let two days pass
        [promised] = client.hmget(keys.promise("delay", tomorrow), "promised")
        client.hset(keys.promise("delay", tomorrow - 2), mapping={"promised": promised, "came": promised})
        [yesterday] = promises.days("delay", 1)
        assert yesterday.promised is not None
        wait_for(lambda: httpx.get(f"{stack.url}/health/live").is_success, "the API", 60)
        told = httpx.get(f"{stack.url}/metrics").text
        for kind in ("promised", "came"):
            assert f'forecache_yesterday_hit_ratio{{kind="{kind}",model="delay"}} 0.9' in told
            assert f'forecache_yesterday_cost{{kind="{kind}",model="delay"}} {yesterday.promised.cost}' in told
