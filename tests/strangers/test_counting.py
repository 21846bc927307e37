"""What becomes of requests is counted once, by its cause, in a form that every reader of metrics takes."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.api.metrics import HitCollector
from inference.errors import (
    ContractError,
    Defect,
    FeaturesUnavailable,
    ForecacheError,
    FunctionFailed,
    ModelOutOfMemory,
    Overloaded,
    PredictionFailed,
    UnknownEntity,
)
from inference.monitoring.counters import AGE, HIT_LATENCY, MICRO_BATCH, MISS_LATENCY, HitRecorder
from inference.monitoring.statistics import HitWindows, Statistics
from inference.outcomes import Outcome
from inference.redis.clients import AsyncClient, Client
from inference.redis.keys import Keys
from inference.settings import Settings
from tests.support.redis_server import RedisServer
from tests.support.serving_fakes import entry
from tests.support.virtual_time import virtual_time
from tests.unit.serving.test_service import Deployment

KEYS = Keys("test")


@virtual_time
@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (UnknownEntity("nobody knows it"), Outcome.UNKNOWN),
        (PredictionFailed("not finite"), Outcome.FAILED),
        (FunctionFailed("raised"), Outcome.FAILED),
        (ModelOutOfMemory("too many rows"), Outcome.FAILED),
        (ContractError("a stored value is no number"), Outcome.FAILED),
        (Defect("nobody foresaw it"), Outcome.FAILED),
        (FeaturesUnavailable("the fallback is away"), Outcome.SHED),
        (Overloaded("too much waits"), Outcome.SHED),
    ],
)
async def test_an_error_counts_by_whether_another_try_may_help(error: ForecacheError, outcome: Outcome) -> None:
    it = Deployment()
    it.workers.failing = {"a": error}
    assert [type(answer) for answer in await it.ask("a")] == [type(error)]
    assert it.hits.counts == {outcome: 1}
    assert len(it.hits.latencies) == (outcome is not Outcome.UNKNOWN)


@virtual_time
async def test_unknown_entities_stand_beside_the_hit_rate() -> None:
    it = Deployment()
    it.reader.entries = {name: entry(0.5, as_of=1000.0) for name in ("a", "b", "c")}
    it.workers.failing = {f"x{n}": UnknownEntity("no") for n in range(30)} | {"f": PredictionFailed("nan")}
    for entity_id in ("a", "b", "c", "f", *(f"x{n}" for n in range(30))):
        await it.ask(entity_id)
    told = Statistics.of({outcome.value: count for outcome, count in it.hits.counts.items()}).to_json()
    assert (told["total"], told["hit_rate"]) == (4, 0.75)
    assert (told["outcomes"]["failed"], told["outcomes"]["unknown"]) == (1, 30)


@virtual_time
async def test_a_refused_value_that_the_request_brought_has_no_outcome() -> None:
    it = Deployment()
    it.workers.failing = {"a": ContractError("no number")}
    await it.ask("a", overrides={"x": "text"})
    assert it.hits.counts == {}


@pytest.mark.parametrize(
    ("scale", "values"),
    [
        (HIT_LATENCY, [0.0004] * 100 + [1e-7] * 30),
        (MISS_LATENCY, [0.012, 700.0]),
        (AGE, [0.25, 0.25, 0.25, 0.25, 3600.5, 1.8e9]),
        (MICRO_BATCH, [1, 4096]),
    ],
)
def test_a_sum_is_exact_whatever_the_bucket(scale, values):
    counts = defaultdict(int)
    for value in values:
        scale.add(counts, value)
    told = scale.histogram(counts)
    assert (told.total, told.sum) == (len(values), pytest.approx(sum(values), rel=1e-9))


def test_an_age_below_zero_takes_nothing_off_a_sum_that_may_only_grow():
    counts = defaultdict(int)
    AGE.add(counts, -3.0)
    assert (AGE.histogram(counts).total, AGE.histogram(counts).sum) == (1, 0)


def test_a_minute_of_an_older_release_is_read():
    told = Statistics.of({"hit_batch": 3, "shed": 1, HIT_LATENCY.fields[2]: 3})
    assert (told.counts.total, told.counts.hit_rate, told.hit_latency.sum) == (4, 0.75, 0)


async def families(redis_server: RedisServer, redis_client: Client) -> dict[str, Metric]:
    """One scrape over a real Redis after nine answers in several flushes, read back by Prometheus' parser."""
    async with AsyncClient.from_url(redis_server.url()) as client:
        recorder = HitRecorder(client, KEYS)
        for _ in range(3):
            recorder.record("m", Outcome.HIT_BATCH, 2, age_s=10.25)
            recorder.record("m", Outcome.COMPUTED, 1, age_s=0.5)
            recorder.record("m", Outcome.UNKNOWN, 4)
            recorder.record_latency("m", 0.00045, hit=True)
            recorder.record_latency("m", 0.0203, hit=False)
            await recorder.flush()
    registry = CollectorRegistry(auto_describe=False)
    settings = Settings.model_validate({"models": {"m": {"path": "m"}, "idle": {"path": "m"}}})
    deployment: Any = SimpleNamespace(settings=settings, hits=HitWindows(redis_client, KEYS))
    registry.register(HitCollector(deployment))
    return {one.name: one for one in text_string_to_metric_families(generate_latest(registry).decode())}


@pytest.mark.integration
async def test_every_histogram_has_its_count_and_its_sum(redis_server: RedisServer, redis_client: Client) -> None:
    found = await families(redis_server, redis_client)
    histograms = [one for one in found.values() if one.type == "histogram"]
    assert len(histograms) == 3
    for family in histograms:
        for model in ("m", "idle"):
            of_model = [one for one in family.samples if one.labels["model"] == model]
            told = {one.name.removeprefix(family.name): one.value for one in of_model if "le" not in one.labels}
            [whole] = [one.value for one in of_model if one.labels.get("le") == "+Inf"]
            assert told.keys() == {"_count", "_sum"}
            assert told["_count"] == whole
    sums = [one.value for name in found for one in found[name].samples if one.name.endswith("_sum") and one.value]
    # whole seconds of ages go out at once, the fraction with a later flush
    assert sums == [pytest.approx(3 * 0.00045), pytest.approx(3 * 0.0203), 63]
    assert [one.value for one in found["forecache_hit_ratio"].samples] == [pytest.approx(2 / 3)]


@pytest.mark.integration
async def test_what_a_sum_over_api_processes_would_double_says_so(
    redis_server: RedisServer, redis_client: Client
) -> None:
    found = await families(redis_server, redis_client)
    for family in found.values():
        if family.type in ("counter", "histogram"):
            assert family.documentation.endswith("Of the whole deployment: take max over API processes."), family.name
