"""Computes what batch, real time and hybrid cost a day.

Money is in the currency of the prices. A day has 24 hours, a month 730 (8 760 hours a year / 12). Both totals have the
shape of `CostAnalyzer` in the design article ("Cost Comparison"). Start-up, discounts, retries, least replicas,
utilisation and copies in memory come from the usual capacity formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from inference.economics.inputs import Basis, CostInputs, Figure

SECONDS_PER_DAY = 86_400
HOURS_PER_DAY = 24
#: clouds bill a month as so many hours
HOURS_PER_MONTH = 730
BYTES_PER_GB = 1e9


# --- formulas ---


def batch_compute_cost(
    *,
    entities: float,
    runs_per_day: float,
    throughput: float,
    startup_s: float,
    price_per_hour: float,
    spot_discount: float,
    retry_factor: float,
) -> float:
    """Return the compute cost of a day's runs: runs · (start-up + N / throughput) · price · (1 - spot) · (1 + retry).

    `throughput`: predictions a second of one instance; `startup_s`: seconds billed before the first prediction;
    `spot_discount`: 0 to 1; `retry_factor`: repeated work, as a share of all work. Without start-up, discount and
    retries this is `estimate_batch_cost` of the design article.
    """
    hours = runs_per_day * (startup_s + entities / throughput) / 3600
    return hours * price_per_hour * (1 - spot_discount) * (1 + retry_factor)


def stored_cost(*, entities: float, bytes_each: float, copies: float, price_per_gb_month: float) -> float:
    """Return the cost of keeping predictions for a day: N · bytes · copies · monthly price / (730 / 24).

    `copies`: generations times replicas in memory, or the days for which files are kept.
    """
    gigabytes = entities * bytes_each * copies / BYTES_PER_GB
    return gigabytes * price_per_gb_month * HOURS_PER_DAY / HOURS_PER_MONTH


def instances_needed(
    *, peak_rps: float, hit_rate: float, headroom: float, instance_rps: float, utilisation: float, min_replicas: float
) -> int:
    """Return how many instances real time needs at the peak.

    max(least replicas, ⌈peak · (1 - hit rate) · (1 + headroom) / (requests/s of one · utilisation)⌉). `hit_rate`: the
    share of requests that the cache answers. With hit rate 0, utilisation 1 and headroom 0.5 this is
    `estimate_realtime_cost` of the design article.
    """
    exact = peak_rps * (1 - hit_rate) * (1 + headroom) / (instance_rps * utilisation)
    # in binary, 100 · 1.1 is a little more than 110: a rounding error must not buy an instance
    return max(math.ceil(min_replicas), math.ceil(round(exact, 9)))


def fleet_cost(instances: int, price_per_hour: float) -> float:
    """Return the daily cost of instances that run all day (`estimate_realtime_cost` of the design article)."""
    return instances * price_per_hour * HOURS_PER_DAY


def savings_percent(realtime_daily: float, batch_daily: float) -> float:
    """Return how much batch saves, in percent of real time; negative when batch is dearer."""
    return (realtime_daily - batch_daily) / realtime_daily * 100


# --- the three ways ---


@dataclass(frozen=True)
class BatchCost:
    """The daily cost of precomputing everything. `memory` is for the cache, `storage` for the files."""

    compute: float
    memory: float
    storage: float
    per_prediction: float
    per_1000_served: float

    @property
    def daily(self) -> float:
        """The total."""
        return self.compute + self.memory + self.storage


@dataclass(frozen=True)
class RealtimeCost:
    """The daily cost of computing every answer on demand."""

    instances: int
    daily: float
    per_prediction: float


@dataclass(frozen=True)
class HybridCost:
    """The daily cost of the cheapest hybrid.

    `precomputes`: whether runs pay for themselves; if not, the hybrid only caches answers. `everything`: the cost of
    precomputing everything and computing the misses, whether it pays or not. `if_a_run_fails`: how many instances
    answer all requests alone.
    """

    daily: float
    everything: float
    precomputes: bool
    instances: int
    per_1000_served: float
    if_a_run_fails: int


@dataclass(frozen=True)
class Estimate:
    """The cost of the three ways for the same traffic."""

    batch: BatchCost
    realtime: RealtimeCost
    hybrid: HybridCost
    savings_percent: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values. Money is per day unless the name says otherwise."""
        return {
            "batch": {"daily": self.batch.daily, **vars(self.batch)},
            "realtime": vars(self.realtime).copy(),
            "hybrid": vars(self.hybrid).copy(),
            "savings_percent": self.savings_percent,
        }


def estimate(inputs: CostInputs) -> Estimate:
    """Return the cost of the three ways.

    Hybrid is batch + cache + the real-time instances for the misses. Where the runs cost more than the instances that
    they save, the cheapest hybrid precomputes nothing and keeps the cache. So it never costs more than real time plus
    the cache.
    """
    batch = _batch(inputs)
    whole, misses = _instances(inputs, hit_rate=0.0), _instances(inputs, hit_rate=inputs.hit_rate)
    realtime_daily = fleet_cost(whole, inputs.instance_price)
    served = inputs.rps * SECONDS_PER_DAY
    everything = batch.daily + fleet_cost(misses, inputs.instance_price)
    caching = realtime_daily + batch.memory
    precomputes = everything <= caching
    daily = everything if precomputes else caching
    return Estimate(
        batch,
        RealtimeCost(whole, realtime_daily, realtime_daily / served),
        HybridCost(daily, everything, precomputes, misses if precomputes else whole, daily / served * 1000, whole),
        savings_percent(realtime_daily, batch.daily),
    )


def _batch(inputs: CostInputs) -> BatchCost:
    compute = batch_compute_cost(
        entities=inputs.entities,
        runs_per_day=inputs.runs_per_day,
        throughput=inputs.throughput,
        startup_s=inputs.startup_s,
        price_per_hour=inputs.batch_instance_price,
        spot_discount=inputs.spot_discount,
        retry_factor=inputs.retry_factor,
    )
    memory = stored_cost(
        entities=inputs.entities,
        bytes_each=inputs.bytes,
        copies=inputs.generations * inputs.replicas,
        price_per_gb_month=inputs.redis_price,
    )
    storage = stored_cost(
        entities=inputs.entities * inputs.runs_per_day,
        bytes_each=inputs.storage_bytes,
        copies=inputs.storage_days,
        price_per_gb_month=inputs.storage_price,
    )
    daily = compute + memory + storage
    made, served = inputs.entities * inputs.runs_per_day, inputs.rps * SECONDS_PER_DAY
    return BatchCost(compute, memory, storage, daily / made, daily / served * 1000)


def _instances(inputs: CostInputs, *, hit_rate: float) -> int:
    return instances_needed(
        peak_rps=inputs.peak_rps,
        hit_rate=hit_rate,
        headroom=inputs.headroom,
        instance_rps=inputs.instance_rps,
        utilisation=inputs.utilisation,
        min_replicas=inputs.min_replicas,
    )


# --- the design article's example ---

#: "Cost Comparison": one million users once a day against 100 requests a second
ARTICLE_FIGURES: dict[str, Figure] = {
    name: Figure(value, Basis.ARTICLE, "the design article's example")
    for name, value in {
        "entities": 1_000_000, "runs_per_day": 1, "throughput": 10_000, "startup_s": 0, "batch_instance_price": 3.0,
        "spot_discount": 0, "retry_factor": 0, "rps": 100, "instance_price": 5.0,
        "instance_rps": 100, "headroom": 0.5, "utilisation": 1, "min_replicas": 1, "redis_price": 0.25, "bytes": 100,
        "generations": 1, "replicas": 1, "storage_price": 0, "storage_bytes": 0, "storage_days": 0,
    }.items()
}  # fmt: skip


@dataclass(frozen=True)
class ArticleEstimate:
    """The article's example. `as_written` follows its formulas; `corrected` counts storage by the day."""

    as_written: Estimate
    corrected: Estimate

    @property
    def slip(self) -> str:
        """What is wrong, in one sentence with both figures."""
        wrong, right = self.as_written.batch, self.corrected.batch
        return (
            f"the design article adds a month's price of storage ({wrong.memory:.6f}) to a day's total: a day of it is "
            f"{right.memory:.6f}, so batch costs {right.daily:.6f} a day and not {wrong.daily:.6f}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: the article's figures, with `slip` and `corrected` beside them."""
        return {**self.as_written.to_json(), "slip": self.slip, "corrected": self.corrected.to_json()}


def article_estimate(inputs: CostInputs) -> ArticleEstimate:
    """Return the estimate as the article computes it, and the right one.

    The article's storage is `total_preds * 100 / 1e9 * 0.25`, at $0.25 per GB and month. So a day's total holds a whole
    month's price, for the predictions of every run of the day.
    """
    a_month_each_day = inputs.redis_price * HOURS_PER_MONTH / HOURS_PER_DAY * inputs.runs_per_day
    return ArticleEstimate(estimate(replace(inputs, redis_price=a_month_each_day)), estimate(inputs))
