"""The cost formulas. Money is in the currency of the prices; days have 24 hours, months 730 (8 760 hours a year / 12).

Sources: the brief's `CostAnalyzer` ("Cost Comparison") for the shape of both totals, with what it leaves out (start-up,
discounts, retries, least replicas, utilisation, copies in memory) from the usual capacity formulas.
"""

from __future__ import annotations

import math

SECONDS_PER_DAY = 86_400
HOURS_PER_DAY = 24
#: what clouds bill a month as
HOURS_PER_MONTH = 730
BYTES_PER_GB = 1e9


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
    """Return what a day's runs cost to compute: runs · (start-up + N / throughput) · price · (1 - spot) · (1 + retry).

    `throughput`: predictions a second of one instance; `startup_s`: seconds billed before the first prediction;
    `spot_discount`: 0 to 1; `retry_factor`: work done twice, as a share of all. Source: the brief's
    `estimate_batch_cost`, whose compute cost this is with no start-up, discount and retries.
    """
    hours = runs_per_day * (startup_s + entities / throughput) / 3600
    return hours * price_per_hour * (1 - spot_discount) * (1 + retry_factor)


def stored_cost(*, entities: float, bytes_each: float, copies: float, price_per_gb_month: float) -> float:
    """Return what it costs a day to keep predictions: N · bytes · copies · monthly price / (730 / 24).

    `copies`: generations times replicas in memory, or days of files kept. A monthly price is spread over the hours
    of a month, which the brief's `storage_cost` forgets.
    """
    gigabytes = entities * bytes_each * copies / BYTES_PER_GB
    return gigabytes * price_per_gb_month * HOURS_PER_DAY / HOURS_PER_MONTH


def instances_needed(
    *, peak_rps: float, hit_rate: float, headroom: float, instance_rps: float, utilisation: float, min_replicas: float
) -> int:
    """Return how many instances real time needs at the peak.

    max(least replicas, ⌈peak · (1 - hit rate) · (1 + headroom) / (requests/s of one · utilisation)⌉). `hit_rate`: the
    share of requests that the cache answers. Source: the brief's `estimate_realtime_cost` (hit rate 0,
    utilisation 1, headroom 0.5).
    """
    exact = peak_rps * (1 - hit_rate) * (1 + headroom) / (instance_rps * utilisation)
    # 100 · 1.1 is a hair more than 110 in binary: no instance is bought for a rounding error
    return max(math.ceil(min_replicas), math.ceil(round(exact, 9)))


def fleet_cost(instances: int, price_per_hour: float) -> float:
    """Return what instances that run all day cost a day. Source: the brief's `estimate_realtime_cost`."""
    return instances * price_per_hour * HOURS_PER_DAY


def savings_percent(realtime_daily: float, batch_daily: float) -> float:
    """Return how much cheaper batch is than real time, in percent of real time; negative when it is dearer.

    Source: the last lines of the brief's "Cost Comparison".
    """
    return (realtime_daily - batch_daily) / realtime_daily * 100
