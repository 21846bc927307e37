"""`/metrics` for Prometheus: the same minute windows that every other face reads.

The truth is in Redis and shared by all API processes, so any of them may be scraped, and none needs to remember
anything: also the counter goes on through restarts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from app.api.parts import Parts, parts_of
from app.api.problems import documented
from inference.hits import HitWindows

router = APIRouter(tags=["metrics"])

WINDOW_S = 300


class HitCollector(Collector):
    """Reads the last five minutes of every model."""

    def __init__(self, hits: HitWindows, models: list[str]) -> None:
        self._hits = hits
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Yield the counts and the hit rate of each model."""
        requests = GaugeMetricFamily(
            "forecache_requests_5m",
            "Predictions answered in the last five minutes, by outcome.",
            labels=["model", "outcome"],
        )
        rates = GaugeMetricFamily(
            "forecache_hit_rate_5m",
            "Share of them answered from the store and fresh.",
            labels=["model"],
        )
        answered = CounterMetricFamily(
            "forecache_predictions", "Predictions answered since ever, by outcome.", labels=["model", "outcome"]
        )
        for model in self._models:
            totals = self._hits.totals(model)
            counts = self._hits.read(model, WINDOW_S)
            rates.add_metric([model], counts.hit_rate)
            for outcome, count in counts.outcomes.items():
                requests.add_metric([model, outcome.value], count)
                answered.add_metric([model, outcome.value], totals.get(outcome.value, 0))
        yield answered
        yield requests
        yield rates


@router.get("/metrics", responses=documented(503))
async def metrics(parts: Annotated[Parts, Depends(parts_of)]) -> Response:
    """Return the metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    collector = HitCollector(parts.hits, list(parts.settings.models))

    def scrape() -> bytes:
        registry.register(collector)
        return generate_latest(registry)

    return Response(await parts.in_thread(scrape), media_type=CONTENT_TYPE_LATEST)
