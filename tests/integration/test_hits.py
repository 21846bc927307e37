from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from inference.errors import StoreUnavailable
from inference.monitoring.counters import (
    FALLBACKS,
    PARITY,
    HitRecorder,
    MinuteCounts,
    counts_of_kind,
    version_latency,
)
from inference.monitoring.statistics import POINT_MINUTES, HitWindows
from inference.outcomes import Outcome
from inference.redis.clients import AsyncClient, Client
from inference.redis.keys import Keys
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.waiting import LONG_S

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
async def recorder(redis_client: Client, redis_server: RedisServer, clock: Clock) -> AsyncIterator[HitRecorder]:
    async with AsyncClient.from_url(redis_server.url()) as client:
        yield HitRecorder(client, KEYS, clock)


async def test_two_processes_add_up_and_old_minutes_leave_the_window(
    recorder: HitRecorder, redis_client: Client, redis_server: RedisServer, clock: Clock
) -> None:
    windows = HitWindows(redis_client, KEYS, clock)
    recorder.record("delay", Outcome.HIT_BATCH, 3)
    recorder.record("other", Outcome.SHED)
    await recorder.flush()
    async with AsyncClient.from_url(redis_server.url()) as client:
        second = HitRecorder(client, KEYS, clock)
        clock.now += 120
        second.record("delay", Outcome.COMPUTED)
        await second.flush()
    counts = windows.read("delay", 180)
    assert (counts.total, counts.hit_rate) == (4, 0.75)
    assert counts.outcomes[Outcome.SHED] == 0
    assert windows.read("delay", 30).outcomes[Outcome.COMPUTED] == 1
    assert windows.read("delay", 30).total == 1
    assert windows.read("unheard-of", 180).hit_rate is None


async def test_answers_are_counted_by_the_version_that_computed_them(
    recorder: HitRecorder, redis_client: Client, clock: Clock
) -> None:
    recorder.record("delay", Outcome.HIT_BATCH, 3, version=7)
    recorder.record("delay", Outcome.COMPUTED, 1, version=8)
    recorder.record("delay", Outcome.SHED)
    await recorder.flush()
    recorder.record("delay", Outcome.COMPUTED, 1, version=7)
    await recorder.flush()
    told = HitWindows(redis_client, KEYS, clock).statistics("delay", 60)
    assert told.counts.total == 6
    assert {version: (of.total, of.hit_rate) for version, of in told.versions.items()} == {7: (4, 0.75), 8: (1, 0.0)}
    assert [one["version"] for one in told.to_json()["versions"]] == [7, 8]


async def test_counters_expire_after_the_longest_window(recorder: HitRecorder, redis_client: Client) -> None:
    recorder.record("delay", Outcome.COMPUTED)
    await recorder.flush()
    [key] = redis_client.keys("test:h:*:[0-9]*")
    assert 7 * 24 * 3600 < redis_client.ttl(key) <= 8 * 24 * 3600


async def test_counts_are_dropped_rather_than_repeated_when_redis_is_gone(
    redis_client: Client, redis_server: RedisServer, clock: Clock
) -> None:
    async with AsyncClient(port=free_port(), retry=None) as nowhere:
        lost = HitRecorder(nowhere, KEYS, clock)
        lost.record("delay", Outcome.COMPUTED)
        await lost.flush()
        async with AsyncClient.from_url(redis_server.url()) as client:
            lost._client = client
            lost.record("delay", Outcome.HIT_BATCH)
            await lost.flush()
    assert HitWindows(redis_client, KEYS, clock).read("delay", 60).outcomes == {
        outcome: int(outcome is Outcome.HIT_BATCH) for outcome in Outcome
    }


async def test_what_is_left_is_flushed_at_the_end(recorder: HitRecorder, redis_client: Client, clock: Clock) -> None:
    running = asyncio.create_task(recorder.run(every_s=60))
    await asyncio.sleep(0)
    recorder.record("delay", Outcome.COMPUTED)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert HitWindows(redis_client, KEYS, clock).read("delay", 60).total == 1


def test_an_outage_is_an_error_and_not_a_hit_rate_of_zero() -> None:
    with Client(port=free_port(), retry=None) as nowhere, pytest.raises(StoreUnavailable):
        HitWindows(nowhere, KEYS).read("delay", 60)


async def test_a_series_adds_up_to_its_window_and_tells_when(
    recorder: HitRecorder, redis_client: Client, clock: Clock
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
    recorder: HitRecorder, redis_client: Client, clock: Clock
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


async def test_the_tasks_of_a_version_and_the_rows_it_failed_on_add_up(
    recorder: HitRecorder, redis_client: Client, clock: Clock
) -> None:
    recorder.record_versions("delay", {3: 0}, 0.012)
    recorder.record_versions("delay", {3: 2, 4: 0}, 0.5)
    await recorder.flush()
    totals = HitWindows(redis_client, KEYS, clock).totals("delay")
    third, fourth = (version_latency(version).histogram(totals) for version in (3, 4))
    assert (third.total, fourth.total) == (2, 1)
    assert third.sum == pytest.approx(0.512)
    assert {field: count for field, count in totals.items() if "failed" in field} == {"calls:3:failed": 2}


def test_what_workers_count_joins_the_minute_and_the_totals_of_its_model_and_expires(
    redis_client: Client, clock: Clock
) -> None:
    counts, windows = MinuteCounts(redis_client, KEYS, clock), HitWindows(redis_client, KEYS, clock)
    counts.add("delay", FALLBACKS, {"sql:found": 3, "my:table:not_found": 1})
    counts.add("delay", PARITY, {"batch:agreed": 5})
    clock.now += 60
    counts.add("delay", FALLBACKS, {"sql:found": 4})
    counts.add("other", FALLBACKS, {"sql:found": 100})
    assert counts_of_kind(windows.fields("delay", 0), FALLBACKS) == {("sql", "found"): 4}
    for fields in (windows.fields("delay", 300), windows.totals("delay")):
        assert counts_of_kind(fields, FALLBACKS) == {("sql", "found"): 7, ("my:table", "not_found"): 1}
        assert counts_of_kind(fields, PARITY) == {("batch", "agreed"): 5}
    minutes = [KEYS.hits("delay", int(clock.now // 60) - back) for back in (0, 1)]
    assert all(7 * 24 * 3600 < redis_client.ttl(key) <= 8 * 24 * 3600 for key in minutes)
    assert redis_client.ttl(KEYS.hit_totals("delay")) == -1


def test_counts_without_an_outcome_are_not_taken_for_one() -> None:
    fields = {"fallback:sql": 1, "fallback": 2, "hit_batch": 3, "parity:a:b": 4, "fallback:a:b": 5, "rows:3": 6}
    assert counts_of_kind(fields, FALLBACKS) == {("a", "b"): 5}


def test_an_outage_drops_a_workers_counts_and_hurts_nobody() -> None:
    with Client(port=free_port(), retry=None) as nowhere:
        MinuteCounts(nowhere, KEYS).add("delay", FALLBACKS, {"sql:found": 3})


@pytest.mark.parametrize("late_by_min", [1, 2, 3])
async def test_counts_that_are_flushed_into_a_minute_that_was_read_already_are_seen(
    recorder: HitRecorder, redis_client: Client, clock: Clock, late_by_min: int
) -> None:
    windows, began = HitWindows(redis_client, KEYS, clock), clock.now
    recorder.record("delay", Outcome.COMPUTED)
    await recorder.flush()
    clock.now = began + 60 * late_by_min
    assert windows.read("delay", 600).total == 1  # the minute is over, and read
    clock.now = began
    recorder.record("delay", Outcome.COMPUTED, 2)
    await recorder.flush()  # by a process whose flush is late
    clock.now = began + 60 * late_by_min
    assert windows.read("delay", 600).total == 3


async def test_each_minute_is_remembered_of_its_own_model_and_for_a_day(
    recorder: HitRecorder, redis_client: Client, clock: Clock
) -> None:
    windows = HitWindows(redis_client, KEYS, clock)
    for model, count in (("delay", 1), ("price", 2)):
        recorder.record(model, Outcome.COMPUTED, count)
    await recorder.flush()
    clock.now += 240
    assert [windows.read(model, 600).total for model in ("delay", "price")] == [1, 2]
    redis_client.flushdb()
    assert [windows.read(model, 600).total for model in ("delay", "price")] == [1, 2]
    clock.now += 24 * 3600 + 600
    recorder.record("delay", Outcome.COMPUTED)
    await recorder.flush()
    assert windows.read("delay", 600).total == 1
    assert windows.read("delay", 7 * 24 * 3600).total == 1, "a minute of the day before is not kept in memory"
    assert windows.read("price", 7 * 24 * 3600).total == 2, "nor is another model's touched"


async def test_a_window_holds_every_minute_that_it_touches_and_a_week_at_most(
    recorder: HitRecorder, redis_client: Client, clock: Clock
) -> None:
    clock.now = 60.0 * 20_000  # the first second of a minute
    recorder.record("delay", Outcome.COMPUTED)
    await recorder.flush()
    windows = HitWindows(redis_client, KEYS, clock)
    clock.now += 60
    assert [windows.read("delay", window_s).total for window_s in (0, 0.5, 60)] == [0, 1, 1]
    clock.now += 7 * 24 * 3600 - 60
    assert windows.read("delay", 30 * 24 * 3600).total == 1
    clock.now += 60
    assert windows.read("delay", 30 * 24 * 3600).total == 0


@pytest.mark.parametrize(("window_s", "minutes"), POINT_MINUTES.items())
async def test_points_start_at_whole_multiples_of_their_length(
    recorder: HitRecorder, redis_client: Client, clock: Clock, window_s: int, minutes: int
) -> None:
    clock.now = 1_000_000 // (60 * minutes) * 60 * minutes + 30.0
    windows = HitWindows(redis_client, KEYS, clock)
    recorder.record("delay", Outcome.COMPUTED)
    await recorder.flush()
    points = windows.series("delay", window_s)
    assert points[-1].at == clock.now - 30
    assert {point.at % (60 * minutes) for point in points} == {0}
    assert len(points) == window_s // (60 * minutes) + 1
    assert [point.statistics.counts.total for point in points[-2:]] == [0, 1]


async def test_different_entities_are_counted_by_the_day_and_each_model_for_itself(
    recorder: HitRecorder, redis_client: Client, clock: Clock
) -> None:
    windows = HitWindows(redis_client, KEYS, clock)
    clock.now = 24 * 3600 * 20.0  # a midnight
    for model in ("delay", "price"):
        recorder.record_asked(model, ["a", "b"])
    await recorder.flush()
    clock.now += 24 * 3600 - 1
    recorder.record_asked("delay", ["c", "a"])
    await recorder.flush()
    assert windows.asked("delay", 1) == 3
    clock.now += 1
    recorder.record_asked("delay", ["d", "a"])
    await recorder.flush()
    assert [windows.asked("delay", days) for days in (1, 2)] == [2, 4]
    assert windows.asked("price", 2) == 2
    keys = redis_client.keys("test:h:*:asked:*")
    assert len(keys) == 3
    assert all(8 * 24 * 3600 <= redis_client.ttl(key) <= 16 * 24 * 3600 for key in keys)  # longer than they are read


async def test_ages_and_durations_add_up_within_a_flush_and_over_several(
    recorder: HitRecorder, redis_client: Client, clock: Clock
) -> None:
    for _ in range(2):
        recorder.record("delay", Outcome.HIT_BATCH, 3, age_s=60.0)
        recorder.record("delay", Outcome.HIT_BATCH, 2, age_s=60.0)
        recorder.record("delay", Outcome.SHED, 4)
        for hit in (True, True, False):
            recorder.record_latency("delay", 0.001, hit=hit)
        recorder.record_micro_batch("delay", 3)
        recorder.record_micro_batch("delay", 3)
        await recorder.flush()
    told = HitWindows(redis_client, KEYS, clock).statistics("delay", 60)
    assert (told.counts.outcomes[Outcome.HIT_BATCH], told.counts.total) == (10, 18)
    assert [one.total for one in (told.age, told.hit_latency, told.miss_latency, told.micro_batch)] == [10, 4, 2, 4]


async def test_a_sum_keeps_the_fractions_that_each_flush_cannot_send(
    recorder: HitRecorder, redis_client: Client, clock: Clock
) -> None:
    for _ in range(10):
        recorder.record("delay", Outcome.HIT_BATCH, 3, age_s=0.25)  # three quarters of a second
        await recorder.flush()
    age = HitWindows(redis_client, KEYS, clock).statistics("delay", 60).age
    assert (age.total, age.sum) == (30, 7.0)
    recorder.record("delay", Outcome.HIT_BATCH, 2, age_s=0.25)
    await recorder.flush()
    assert HitWindows(redis_client, KEYS, clock).statistics("delay", 60).age.sum == 8.0


async def test_a_flush_that_fails_is_told_and_does_not_end_the_others(recorder: HitRecorder) -> None:
    third = asyncio.Event()
    calls = 0

    class Failing(HitRecorder):
        async def flush(self) -> None:
            nonlocal calls
            calls += 1
            if calls == 3:
                third.set()
            if calls < 3:
                raise ValueError("a defect")

    running = asyncio.create_task(Failing(recorder._client, KEYS).run(every_s=0))
    waiting = asyncio.create_task(third.wait())
    await asyncio.wait({running, waiting}, timeout=LONG_S, return_when=asyncio.FIRST_COMPLETED)
    assert third.is_set()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_every_reading_tells_of_an_outage() -> None:
    with Client(port=free_port(), retry=None) as nowhere:
        windows = HitWindows(nowhere, KEYS)
        for call in (lambda: windows.asked("m", 7), lambda: windows.totals("m"), lambda: windows.series("m", 300)):
            with pytest.raises(StoreUnavailable, match="Redis did not answer"):
                call()
