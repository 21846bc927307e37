"""Batch, real time and hybrid side by side, from checked inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inference.economics.formulas import (
    SECONDS_PER_DAY,
    batch_compute_cost,
    fleet_cost,
    instances_needed,
    savings_percent,
    stored_cost,
)
from inference.economics.inputs import CostInputs


@dataclass(frozen=True)
class BatchCost:
    """A day of precomputing everything: `memory` is the cache, `storage` the files; all per day."""

    compute: float
    memory: float
    storage: float
    per_prediction: float
    per_1000_served: float

    @property
    def daily(self) -> float:
        """All of it."""
        return self.compute + self.memory + self.storage


@dataclass(frozen=True)
class RealtimeCost:
    """A day of computing every answer when it is asked for."""

    instances: int
    daily: float
    per_prediction: float


@dataclass(frozen=True)
class HybridCost:
    """A day of both. `precomputes`: whether runs pay for themselves; else the cheapest hybrid only caches answers.

    `everything`: what precomputing everything and computing the misses costs, paid for or not. `if_a_run_fails`:
    instances that answer all requests alone.
    """

    daily: float
    everything: float
    precomputes: bool
    instances: int
    per_1000_served: float
    if_a_run_fails: int


@dataclass(frozen=True)
class Estimate:
    """The three ways for the same traffic."""

    batch: BatchCost
    realtime: RealtimeCost
    hybrid: HybridCost
    savings_percent: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; money a day unless the name says otherwise."""
        return {
            "batch": {"daily": self.batch.daily, **vars(self.batch)},
            "realtime": vars(self.realtime).copy(),
            "hybrid": vars(self.hybrid).copy(),
            "savings_percent": self.savings_percent,
        }


def estimate(inputs: CostInputs) -> Estimate:
    """Return what the three ways cost.

    Hybrid is batch + cache + the real-time fleet for the misses. Where the runs cost more than the instances they
    spare, the cheapest hybrid precomputes nothing and keeps the cache: it is never dearer than real time plus the
    cache.
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
