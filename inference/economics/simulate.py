"""Sums up replays of a trace: outcomes, peaks, workers, cost, and sizes for more entities."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from inference.economics.estimate import (
    SECONDS_PER_DAY,
    batch_compute_cost,
    fleet_cost,
    instances_needed,
    stored_cost,
)
from inference.economics.histories import OUTCOMES, Part
from inference.economics.inputs import CostInputs
from inference.economics.policies import Policy
from inference.economics.replay import Replay, Run, Speeds
from inference.economics.traces import Times, Trace
from inference.errors import BadInput
from inference.monitoring.statistics import HitCounts
from inference.outcomes import Outcome

#: shorter spans than a minute have no peak of a minute
_LEAST_SPAN_S = 60.0


class Peak:
    """The most events within one of equal spans of time. Times come in order, and in parts."""

    def __init__(self, length_ms: int) -> None:
        self._length = length_ms
        self._last = (-1, 0)
        self.most = 0

    def add(self, times: Times) -> None:
        """Count more events."""
        if not len(times):
            return
        spans = times // self._length
        begins = np.flatnonzero(np.append(True, spans[1:] != spans[:-1]))
        counts = np.diff(np.append(begins, len(spans)))
        if spans[0] == self._last[0]:
            counts[0] += self._last[1]
        self._last = int(spans[-1]), int(counts[-1])
        self.most = max(self.most, int(counts.max()))


@dataclass
class Simulated:
    """The outcome of one policy. A computation answers a miss, or renews an answer behind a stale one.

    `days`: length of the counted trace; `rows`: mean rows of a run, and `runs`, those that began within it.
    """

    policy: Policy
    days: float
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    computations: int = 0
    peak_s: Peak = field(default_factory=lambda: Peak(1_000))
    peak_minute: Peak = field(default_factory=lambda: Peak(60_000))
    requests_minute: Peak = field(default_factory=lambda: Peak(60_000))
    runs: list[Run] = field(default_factory=list)
    rows: float = 0.0

    def add(self, part: Part) -> None:
        """Take in the next part of the replay."""
        counts = np.bincount(part.outcomes, minlength=len(OUTCOMES))
        self.outcomes.update(dict(zip(OUTCOMES, counts.tolist(), strict=True)))
        computed = part.times[part.computes]
        self.computations += len(computed)
        self.peak_s.add(computed)
        self.peak_minute.add(computed)
        self.requests_minute.add(part.times)

    @property
    def counts(self) -> HitCounts:
        """The outcomes, with the product's own hit rate."""
        return HitCounts(dict(self.outcomes))


def simulate(trace: Trace, policy: Policy, inputs: CostInputs, *, skip_s: float = 0.0) -> Simulated:
    """Replay a trace against a policy. `inputs`: speeds, and the entities of the table, at least those of the trace.

    The first `skip_s` seconds are replayed and not counted: a run knows only the requests before it.

    Raises:
        BadInput: nothing is left to count.
    """
    if skip_s >= trace.span_s:
        raise BadInput(f"--skip: the trace is only {trace.span_s:g} s long", field="skip")
    speeds = Speeds(inputs.throughput, inputs.startup_s, inputs.instance_rps)
    rows = max(round(inputs.entities), trace.entities)
    replay = Replay(trace, policy, rows, speeds)
    since = trace.begins_ms + round(skip_s * 1000)
    simulated = Simulated(policy, max(trace.span_s - skip_s, _LEAST_SPAN_S) / SECONDS_PER_DAY)
    for part in replay:
        first = int(np.searchsorted(part.times, since))
        if first < len(part.times):
            simulated.add(Part(part.times[first:], part.outcomes[first:], part.computes[first:]))
    simulated.runs = [run for run in replay.runs if run.started >= since]
    counted = simulated.runs or replay.runs
    simulated.rows = sum(run.rows for run in counted) / len(counted) if counted else 0.0
    if policy.schedule is not None and not counted:  # the run before the trace is the only one
        simulated.rows = rows
    return simulated


@dataclass(frozen=True)
class Bill:
    """What a policy takes a day, in the currency of the prices. `workers`: those of real time that are paid."""

    workers: int
    runs_per_day: float
    run_s: float
    compute: float
    memory: float
    storage: float
    realtime: float

    @property
    def daily(self) -> float:
        """The total."""
        return self.compute + self.memory + self.storage + self.realtime


def bill(simulated: Simulated, inputs: CostInputs) -> Bill:
    """Return the cost of a policy, by the formulas of `inference.economics.estimate`.

    `inputs`: prices, speeds and sizes; not the requests, the hit rate and the runs a day, which the replay found.
    """
    policy, rows = simulated.policy, simulated.rows
    runs_per_day = len(simulated.runs) / simulated.days
    workers = workers_needed(simulated, inputs) if policy.workers is None else policy.workers
    # answers on demand are kept too, but for entities that runs leave out they are few
    stored = stored_cost(
        entities=rows,
        bytes_each=inputs.bytes,
        copies=inputs.generations * inputs.replicas,
        price_per_gb_month=inputs.redis_price,
    )
    files = stored_cost(
        entities=rows * runs_per_day,
        bytes_each=inputs.storage_bytes,
        copies=inputs.storage_days,
        price_per_gb_month=inputs.storage_price,
    )
    compute = batch_compute_cost(
        entities=rows,
        runs_per_day=runs_per_day,
        throughput=inputs.throughput,
        startup_s=inputs.startup_s,
        price_per_hour=inputs.batch_instance_price,
        spot_discount=inputs.spot_discount,
        retry_factor=inputs.retry_factor,
    )
    run_s = run_seconds(policy, rows, inputs)
    return Bill(workers, runs_per_day, run_s, compute, stored, files, fleet_cost(workers, inputs.instance_price))


def workers_needed(simulated: Simulated, inputs: CostInputs) -> int:
    """Return how many real-time workers the busiest minute needs."""
    return instances_needed(
        peak_rps=simulated.peak_minute.most / 60,
        hit_rate=0.0,
        headroom=inputs.headroom,
        instance_rps=inputs.instance_rps,
        utilisation=inputs.utilisation,
        min_replicas=inputs.min_replicas,
    )


def run_seconds(policy: Policy, rows: float, inputs: CostInputs) -> float:
    """Return how long a run of so many rows takes; 0 without runs."""
    if policy.schedule is None:
        return 0.0
    return inputs.startup_s + rows / (inputs.throughput * policy.batch_workers)


def sizes(simulated: Simulated, inputs: CostInputs, entities: float) -> dict[str, float]:
    """Return what runs of the same share of `entities` take: rows, bytes in Redis, seconds, and cost a day."""
    rows = simulated.rows / inputs.entities * entities
    grown = replace(inputs, entities=entities)
    costs = bill(replace(simulated, rows=rows), grown)
    return {
        "entities": entities,
        "rows": rows,
        "redis_bytes": rows * inputs.bytes * inputs.generations * inputs.replicas,
        "run_s": run_seconds(simulated.policy, rows, inputs),
        "batch_cost_per_day": costs.compute + costs.memory + costs.storage,
    }


def to_json(simulated: Simulated, inputs: CostInputs, at_entities: float) -> dict[str, Any]:
    """Return plain JSON values of one policy. Money is per day."""
    costs, counts = bill(simulated, inputs), simulated.counts.to_json()
    return {
        "name": simulated.policy.name,
        "policy": simulated.policy.to_json(),
        "requests": counts["total"],
        "hit_rate": counts["hit_rate"],
        "outcomes": {outcome: counts["outcomes"][outcome] for outcome in OUTCOMES},
        "computations": simulated.computations,
        "peak": {
            "requests_per_minute": simulated.requests_minute.most,
            "computations_per_minute": simulated.peak_minute.most,
            "computations_per_s": simulated.peak_s.most,
        },
        "workers": {"needed": workers_needed(simulated, inputs), "paid": costs.workers},
        "runs": {
            "per_day": costs.runs_per_day,
            "rows": simulated.rows,
            "seconds": costs.run_s,
            "failed": sum(not run.published for run in simulated.runs),
        },
        "cost_per_day": {
            "total": costs.daily,
            "runs": costs.compute,
            "redis": costs.memory,
            "files": costs.storage,
            "realtime": costs.realtime,
        },
        "at_entities": sizes(simulated, inputs, at_entities),
    }
