from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import pytest_asyncio

from inference.economics.hit_curves import hit_rate
from inference.economics.policies import DEFAULTS, Policy, parse_policy
from inference.monitoring import access_log
from inference.monitoring.access_sample import VISITS, AccessSample, day_bytes, most_counted, sample_bytes
from inference.monitoring.asked_filters import (
    DAY_S,
    LARGEST_BYTES,
    PLACES,
    SMALLEST_BYTES,
    USUAL_BYTES,
    AskedFilters,
    Filter,
    count_asked,
    filter_bytes,
    places_of,
)
from inference.monitoring.counters import MOST_ASKED, HitRecorder, RecorderThread
from inference.monitoring.id_hashes import id_hashes
from inference.monitoring.statistics import HitWindows
from inference.redis.clients import REQUEST, AsyncClient, Client, open_async_client
from inference.settings import AccessLogSettings, ModelSettings
from tests.support.history import KEYS, publish_generation
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.stack import child_environment

pytestmark = pytest.mark.integration


class Clock:
    """Epoch seconds that the test sets; a midnight at first."""

    def __init__(self) -> None:
        self.now = 20_000.0 * DAY_S

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture
async def client(redis_client: Client, redis_server: RedisServer) -> AsyncIterator[AsyncClient]:
    async with open_async_client(redis_server.url(), REQUEST) as client:
        yield client


def ids_of(*numbers: int) -> list[str]:
    return [f"entity_{number}" for number in numbers]


def models(**settings: Any) -> dict[str, ModelSettings]:
    return {"delay": ModelSettings(path=Path("delay"), access_log=AccessLogSettings(**settings))}


def loaded(client: Client, clock: Clock, days: int = 30) -> AskedFilters:
    filters = AskedFilters.load(client, KEYS, "delay", days, clock)
    assert filters is not None
    return filters


async def test_who_was_asked_is_known_by_the_day_from_all_processes(
    client: AsyncClient, redis_client: Client, clock: Clock
) -> None:
    first, second = (HitRecorder(client, KEYS, clock) for _ in range(2))
    first.record_asked("delay", ids_of(1, 2, 1))
    second.record_asked("delay", ids_of(2, 3))
    await asyncio.gather(first.flush(), second.flush())
    clock.now += 2 * DAY_S
    first.record_asked("delay", ids_of(3))
    await first.flush()
    filters = loaded(redis_client, clock)
    hashes = filters.hashes(pa.array(ids_of(1, 2, 3, 4)))
    assert filters.history(hashes).tolist() == [0b100, 0b100, 0b101, 0]
    assert loaded(redis_client, clock, 2).history(hashes).tolist() == [0, 0, 1, 0]
    assert count_asked(redis_client, KEYS, "delay", range(19_999, 20_003)) == pytest.approx(
        {20_000: 3, 20_002: 1}, 1e-3
    )
    assert (filters.since, filters.whole) == (20_000 * DAY_S, False)
    assert loaded(redis_client, clock, 3).whole
    assert AskedFilters.load(redis_client, KEYS, "price", 30, clock) is None


async def test_no_entity_is_ever_missing_and_few_are_too_many(
    client: AsyncClient, redis_client: Client, clock: Clock
) -> None:
    log = HitRecorder(client, KEYS, clock)
    for first in range(0, 100_000, 20_000):
        log.record_asked("delay", ids_of(*range(first, first + 20_000)))
        await log.flush()
    filters = loaded(redis_client, clock)
    asked, others = (filters.hashes(ids_of(*range(first, first + 100_000))) for first in (0, 10**6))
    assert filters.history(asked).all()
    assert (filters.history(others) != 0).mean() < 0.001  # room for seven times as many
    sample = AccessSample.load(redis_client, KEYS, "delay", 14, clock)
    assert sample.day_entities == pytest.approx({20_000: 100_000}, rel=0.002)


def test_a_full_filter_takes_one_in_a_hundred_for_another() -> None:
    entities = 100_000
    full = Filter(filter_bytes(entities))
    full.add(places_of(id_hashes(ids_of(*range(entities)), bytes(16)), full.size))
    others = id_hashes(ids_of(*range(10**6, 2 * 10**6)), bytes(16))
    assert full.contains(others).mean() < 0.01


def test_the_size_of_a_filter_follows_the_entities_within_bounds() -> None:
    assert [filter_bytes(entities) for entities in (None, 0, 10**6, 10**9)] == [
        USUAL_BYTES,
        SMALLEST_BYTES,
        1_500_000,
        LARGEST_BYTES,
    ]


async def test_a_filter_is_as_large_as_the_serving_generation_asks_for_and_ends_by_itself(
    client: AsyncClient, redis_client: Client, clock: Clock
) -> None:
    publish_generation(redis_client)
    log = HitRecorder(client, KEYS, clock, models(asked_days=3))
    log.record_asked("delay", ids_of(1))
    await log.flush()
    name = KEYS.asked_filter("delay", 20_000)
    assert redis_client.strlen(name) == SMALLEST_BYTES
    assert 3 * DAY_S < redis_client.ttl(name) <= 4 * DAY_S


async def test_processes_agree_on_the_size_of_the_first(
    client: AsyncClient, redis_client: Client, clock: Clock
) -> None:
    first, second = (HitRecorder(client, KEYS, clock) for _ in range(2))
    first.record_asked("delay", ids_of(1))
    await first.flush()
    publish_generation(redis_client)  # another size is right from now on
    second.record_asked("delay", ids_of(2))
    await second.flush()
    redis_client.delete(KEYS.asked_filter("delay", 20_000))  # lost, and made anew by the second with this size
    second.record_asked("delay", ids_of(3))
    await second.flush()
    filters = loaded(redis_client, clock)
    assert filters.history(filters.hashes(ids_of(2, 3))).tolist() == [0, 1]


async def test_a_redis_that_lost_everything_gets_a_new_key_and_everybody_again(
    client: AsyncClient, redis_client: Client, clock: Clock
) -> None:
    log = HitRecorder(client, KEYS, clock)
    log.record_asked("delay", ids_of(1, 2))
    await log.flush()
    before = loaded(redis_client, clock)
    redis_client.flushdb()
    clock.now += 3600
    assert AskedFilters.load(redis_client, KEYS, "delay", 1, clock) is None
    log.record_asked("delay", ids_of(1))
    await log.flush()
    after = loaded(redis_client, clock, 1)
    assert after.key != before.key
    assert after.history(after.hashes(ids_of(1, 2))).tolist() == [1, 0]
    assert (after.since, after.whole) == (clock.now, False)


async def test_without_the_log_only_distinct_entities_are_counted(
    client: AsyncClient, redis_client: Client, clock: Clock
) -> None:
    on, off = (HitRecorder(client, KEYS, clock, models(enabled=enabled)) for enabled in (True, False))
    on.record_asked("delay", ids_of(1))
    await on.flush()
    off.record_asked("delay", ids_of(1, 2))
    await off.flush()
    assert HitWindows(redis_client, KEYS, clock).asked("delay", 1) == 2
    assert AskedFilters.load(redis_client, KEYS, "delay", 1, clock) is None  # it has a gap
    clock.now += 60
    again = HitRecorder(client, KEYS, clock, models(enabled=True))
    again.record_asked("delay", ids_of(3))
    await again.flush()
    assert loaded(redis_client, clock).since == clock.now


async def test_an_outage_drops_accesses_and_the_next_flush_goes_on(
    client: AsyncClient, redis_client: Client, clock: Clock
) -> None:
    async with open_async_client(f"redis://127.0.0.1:{free_port()}", REQUEST) as nowhere:
        log = HitRecorder(nowhere, KEYS, clock)
        log.record_asked("delay", ids_of(1))
        await log.flush()
        log._accesses._client = client
        log.record_asked("delay", ids_of(2))
        await log.flush()
    filters = loaded(redis_client, clock)
    assert filters.history(filters.hashes(ids_of(1, 2))).tolist() == [0, 1]


async def test_what_waits_is_bounded(client: AsyncClient, redis_client: Client, clock: Clock) -> None:
    log = HitRecorder(client, KEYS, clock)
    for first in range(0, 2 * MOST_ASKED, 1_000):
        log.record_asked("delay", ids_of(*range(first, first + 1_000)))
    await log.flush()
    assert HitWindows(redis_client, KEYS, clock).asked("delay", 1) == pytest.approx(MOST_ASKED, rel=0.03)
    log.record_asked("delay", ids_of(7))
    await log.flush()


async def test_ids_never_stand_in_redis(client: AsyncClient, redis_client: Client, clock: Clock) -> None:
    log = HitRecorder(client, KEYS, clock)
    log.record_asked("delay", ["somebody@example.org", "somebody-else@example.org"])
    await log.flush()
    dumped = [redis_client.dump(key) or b"" for key in redis_client.keys("*")]
    assert len(dumped) == 8
    assert not any(b"somebody" in one or b"example" in one for one in [*dumped, *redis_client.keys("*")])


def test_places_are_spread_over_the_whole_filter() -> None:
    places = places_of(np.random.default_rng(0).integers(0, 2**64, 10_000, np.uint64), LARGEST_BYTES)
    assert places.shape == (10_000, PLACES)
    assert places.max() > 0.99 * LARGEST_BYTES * 8


def zipf_ids(rng: np.random.Generator, count: int, entities: int = 20_000) -> list[str]:
    chances = np.cumsum(1 / np.arange(1, entities + 1))
    return ids_of(*np.searchsorted(chances, rng.random(count) * chances[-1]).tolist())


async def test_the_sample_of_all_processes_has_a_fixed_size_and_predicts_their_hit_rate(
    client: AsyncClient, redis_client: Client, clock: Clock
) -> None:
    rng, days = np.random.default_rng(3), 14
    redis_client.set(KEYS.hash_key, bytes(range(16)))  # always the same sample
    processes = [HitRecorder(client, KEYS, clock, models(days=days)) for _ in range(3)]
    asked: list[tuple[float, str]] = []
    midnight = clock.now
    for second in np.sort(rng.choice(DAY_S, 144, replace=False)).tolist():
        clock.now = midnight + second
        for process in processes:
            ids = zipf_ids(rng, 100)
            process.record_asked("delay", ids)
            asked += [(clock.now, one) for one in ids]
        await asyncio.gather(*(process.flush() for process in processes))
    sample = AccessSample.load(redis_client, KEYS, "delay", days, clock)
    keys = (KEYS.access_sample, KEYS.popular_accesses, KEYS.hottest)
    names = [key("delay", 20_000) for key in keys]
    sizes = [redis_client.strlen(name) for name in names]
    assert all(sizes)
    assert sizes[1] <= day_bytes(days) * 1.2
    assert day_bytes(days) / 2 < sizes[0] <= sample_bytes(days, sizes[1]) * 1.2
    for name in names:
        assert DAY_S * days < redis_client.ttl(name) <= DAY_S * (days + 1)
    assert sizes[2] <= 2.4 * VISITS.itemsize * most_counted(days)
    counts = Counter(asked_for for _, asked_for in asked)
    by_counts = sample.hottest[20_000][np.argsort(-sample.hottest[20_000]["accesses"].astype(int))]["begun"]
    hot = id_hashes([one for one, _ in counts.most_common(3 * most_counted(days))], bytes(range(16)))
    assert np.isin(by_counts >> np.uint64(16), hot >> np.uint64(16))[:100].mean() > 0.9
    assert sample.total == len(asked) == 43_200
    assert sample.rate < 0.5
    assert sample.accesses[sample.popular].sum() == sample.popular_totals[20_000]
    assert 0 < sample.popular.sum() < len(sample.entity)
    fresh_until: dict[str, float] = {}
    missed = 0
    for at, one in asked:
        if at > fresh_until.get(one, 0):
            missed, fresh_until[one] = missed + 1, at + 3600
    found, true = (
        hit_rate(sample, parse_policy("every=never realtime_ttl=1h", Policy.of("", DEFAULTS))),
        1 - missed / len(asked),
    )
    assert found.value == pytest.approx(true, abs=0.03)
    assert found.low <= true <= found.high


async def test_a_large_flush_lets_requests_go_first(
    client: AsyncClient, redis_client: Client, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, turn = HitRecorder(client, KEYS, clock, models()), 0
    hashed: list[tuple[int, int]] = []

    def noted(ids: Any, key: bytes) -> Any:
        hashed.append((turn, len(ids)))
        return id_hashes(ids, key)

    async def requests() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    monkeypatch.setattr(access_log, "id_hashes", noted)
    recorder.record_asked("delay", ids_of(*range(MOST_ASKED)))
    others = asyncio.create_task(requests())
    await recorder.flush()
    others.cancel()
    turns, sizes = zip(*hashed, strict=True)
    assert sum(sizes) == MOST_ASKED
    assert max(sizes) <= 2_000
    assert len(set(turns)) == len(turns)


async def test_who_is_in_the_sample_does_not_depend_on_the_process(
    client: AsyncClient, redis_client: Client, clock: Clock
) -> None:
    for number in range(4):
        process = HitRecorder(client, KEYS, clock)
        process.record_asked("delay", ids_of(*range(number, 200, 4)))
        await process.flush()
    sample = AccessSample.load(redis_client, KEYS, "delay", 14, clock)
    assert (sample.rate, sample.entities, sample.total, sample.distinct) == (1.0, 200, 200, 200)
    assert sample.entity.tolist() == sorted((loaded(redis_client, clock).hashes(ids_of(*range(200))) >> 16).tolist())


def test_a_process_without_an_event_loop_logs_in_a_thread(redis_client: Client, redis_server: RedisServer) -> None:
    thread = RecorderThread(open_async_client(redis_server.url(), REQUEST), KEYS, {})
    thread.recorder.record_asked("delay", ids_of(1, 2))
    thread.stop()
    assert AccessSample.load(redis_client, KEYS, "delay", 14).total == 2
    thread.stop()


#: a service that ends without closing its LocalReader does the same
ENDS = """
import sys
from inference.monitoring.counters import RecorderThread
from inference.redis.clients import REQUEST, open_async_client
from inference.redis.keys import Keys

thread = RecorderThread(open_async_client(sys.argv[1], REQUEST), Keys(sys.argv[2]), {})
thread.recorder.record_asked("delay", ["1", "2"])
"""


def test_a_process_that_just_ends_logs_the_rest_and_says_nothing(
    redis_client: Client, redis_server: RedisServer
) -> None:
    command = [sys.executable, "-P", "-c", ENDS, redis_server.url(), KEYS.prefix]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=child_environment())
    assert ended.stderr == ""
    assert AccessSample.load(redis_client, KEYS, "delay", 14).total == 2
