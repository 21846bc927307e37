"""Promises: what the advice promises for each day of a replayed month, beside what comes, for several traces."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rig.dataset import Dataset
from rig.report import print_report
from rig.stack import Stack, temporary_folder

from inference.deployment import Deployment
from inference.economics.advice import CostReport, advise
from inference.economics.histories import OUTCOMES, Part
from inference.economics.inputs import Basis, CostInputs, Figure, complete_figures
from inference.economics.measured import measure
from inference.economics.policies import Policy, Precomputed
from inference.economics.prices import read_prices
from inference.economics.promises import Day, Promises
from inference.economics.replay import Replay, Run, Speeds
from inference.economics.rules import gather_facts
from inference.economics.traces import Requests, Trace
from inference.monitoring.statistics import HitWindows
from inference.schema import DType, TensorSpec
from inference.settings import BatchSettings, ModelSettings, RealtimeSettings

DAY_S = 86_400
#: days that are replayed before the first promise counts: a promise looks back for a week
WARM_DAYS, MONTH_DAYS = 8, 30
#: a Monday, 0:00 UTC
BEGIN_DAY = 20_458
#: requests by the hour: little at night; at the weekend, a quarter less
HOURS = np.array([3, 2, 2, 2, 2, 3, 5, 8, 11, 12, 12, 12, 12, 12, 12, 12, 12, 12, 11, 10, 9, 8, 6, 4], np.float64)
WEEKEND = 0.75
EXPONENTS = {"zipf 0.8": 0.8, "zipf 1.0": 1.0, "zipf 1.2": 1.2, "uniform": 0.0, "shifting": 1.0}
#: of the entities, those that a shifting trace's ranks move on each day
SHIFT = 0.02
#: a worker computes little, so that the busiest minutes need some dozens of them and rounding up hides nothing
WORKER_RPS = 0.002
SETTINGS = ModelSettings(
    path=Path("m"),
    features="t",
    batch=BatchSettings(schedule="0 3 * * *", ttl=26 * 3600.0),
    realtime=RealtimeSettings(ttl=6 * 3600.0, default=0.0),
)
#: what `forecache cost` would say without any measurement: the assumed hit rate, and the mean for the peak
ASSUMED_HIT_RATE = 0.9


def main() -> None:
    """Replay a month of each trace, and print how far the promises were off."""
    options = _options()
    results: dict[str, dict[str, float]] = {}
    with temporary_folder() as folder, Stack(folder, Dataset(folder, 0)) as stack:
        deployment = stack.deployment
        for name, exponent in EXPONENTS.items():
            trace = draw_month(exponent, options.entities, options.requests, SHIFT if name == "shifting" else 0.0)
            model = name.replace(" ", "-")
            publish(deployment, model, options.entities)
            results[name] = compare(Month(deployment, model).days(trace, options.entities))
    figures = {
        "worst_hit_rate_points": max(one["hit_rate_points"] for one in results.values()),
        "worst_cost_ratio": max(one["cost_ratio"] for one in results.values()),
        # a month hides days that are too high and too low
        "worst_mean_day_cost_ratio": max(one["mean_day_cost_ratio"] for one in results.values()),
        "worst_day_hit_rate_points": max(one["day_hit_rate_points"] for one in results.values()),
        "worst_day_cost_ratio": max(one["day_cost_ratio"] for one in results.values()),
        "assumed_hit_rate_points": max(one["assumed_hit_rate_points"] for one in results.values()),
        "by_trace": results,
    }
    columns = (
        "hit_rate", "hit_rate_points", "cost", "cost_ratio", "mean_day_cost_ratio", "day_hit_rate_points",
        "day_cost_ratio",
    )  # fmt: skip
    rows = [(name, *(round(one[column], 4) for column in columns)) for name, one in results.items()]
    print_report("Promised and came, 30 days", ["", *columns], rows, figures, as_json=options.json)


def draw_month(exponent: float, entities: int, requests: int, shift: float) -> Trace:
    """Draw requests over all days, by the hours of a week; the ranks move on by a share of the entities each day."""
    rng = np.random.default_rng(11)
    days = np.arange(WARM_DAYS + MONTH_DAYS)
    weights = (np.where(days % 7 >= 5, WEEKEND, 1.0)[:, None] * HOURS).ravel()
    by_hour = rng.multinomial(requests, weights / weights.sum())
    hours = np.repeat(np.arange(len(weights)), by_hour)
    times = BEGIN_DAY * DAY_S * 1000 + hours * 3_600_000 + rng.integers(0, 3_600_000, requests)
    times.sort()
    shares = np.cumsum(np.arange(1, entities + 1, dtype=np.float64) ** -exponent)
    ranks = np.searchsorted(shares / shares[-1], rng.random(requests), side="right")
    moved = (ranks + (hours // 24 * shift * entities).astype(np.int64)) % entities
    return Trace(Requests(moved.astype(np.int32), times), entities)


def publish(deployment: Deployment, model: str, rows: int) -> None:
    """Publish a generation, from which the advice knows the number of entities and their bytes."""
    table = deployment.predictions(model)
    fields = (TensorSpec("y", DType.FLOAT32),)
    manifest = table.generations.begin(fields, rows_expected=rows, model_version=1, contract_hash="b", keep_s=DAY_S)
    block = {"y": np.ones(rows, np.float32)}
    table.generations.write(manifest, pa.array([f"e{n}" for n in range(rows)]), block, np.full(rows, table.now()))
    table.generations.publish(manifest.number)


@dataclass(frozen=True)
class Month:
    """A deployment whose clock is that of the trace: counters, records of runs, and promises are the real ones."""

    deployment: Deployment
    model: str

    def days(self, trace: Trace, entities: int) -> list[Day]:
        """Replay a trace day by day, keep a promise at the end of each, and return the days of the month."""
        now = [0.0]
        windows = HitWindows(self.deployment.cache, self.deployment.keys, lambda: now[0])
        promises = Promises(self.deployment.cache, self.deployment.keys, windows, lambda: now[0])
        policy = replace(Policy.of(self.model, SETTINGS), precomputed=Precomputed(within_s=7.0 * DAY_S))
        replay = Replay(trace, policy, entities, Speeds(1000, 5, WORKER_RPS))
        for day, counts in enumerate(_minutes_by_day(replay)):
            self._count(BEGIN_DAY + day, counts)
            self._record(replay.runs, BEGIN_DAY + day)
            # the last step of a maintenance worker before midnight, and its first one after
            for now[0] in ((BEGIN_DAY + day + 1) * DAY_S - 60.0, (BEGIN_DAY + day + 1) * DAY_S + 600.0):
                promises.keep(self.model, self._report(windows, now[0]))
        return promises.days(self.model, MONTH_DAYS)

    def _count(self, day: int, counts: Any) -> None:
        """Write a day's minute counters. `counts`: by minute and outcome."""
        keys, pipeline = self.deployment.keys, self.deployment.cache.pipeline(transaction=False)
        for minute, row in enumerate(counts.tolist()):
            fields = {outcome.value: count for outcome, count in zip(OUTCOMES, row, strict=True) if count}
            if fields:
                pipeline.hset(keys.hits(self.model, day * 1440 + minute), mapping=fields)
        pipeline.execute()

    def _record(self, runs: list[Run], day: int) -> None:
        """Write the records of the runs that began on a day."""
        keys, client = self.deployment.keys, self.deployment.cache
        for run in (run for run in runs if run.started // 1000 // DAY_S == day):
            started, ended, run_id = run.started / 1000, run.ended / 1000, f"{self.model}-{run.started}"
            record: dict[str, Any] = {
                "run_id": run_id, "model": self.model, "state": "published", "trigger": "beat", "source": "t.parquet",
                "engine": "celery", "created_at": started, "started_at": started + 5, "scored_at": ended,
                "finished_at": ended, "rows_total": run.rows, "rows_done": run.rows, "chunks_total": 1,
                "chunks_done": 1, "attempts": 1,
            }  # fmt: skip
            client.hset(keys.run(run_id), mapping=record)
            client.zadd(keys.runs(self.model), {run_id: started})

    def _report(self, windows: HitWindows, now: float) -> CostReport:
        """Return the advice of that instant."""
        measured = measure(self.deployment.cache, self.deployment.keys, self.model, SETTINGS, windows, now)
        prices, given = read_prices(), {"instance_rps": Figure(WORKER_RPS, Basis.OPTION, "--instance-rps")}
        figures = complete_figures(given, measured.figures, prices.figures())
        advice = advise(self.model, SETTINGS, measured, gather_facts({}, SETTINGS, measured), figures)
        return CostReport(figures, CostInputs.of(figures), None, advice, prices, measured.requests)


def _minutes_by_day(parts: Replay) -> Iterator[Any]:
    """Yield each day's counts by minute and outcome, from the parts of a replay."""
    day, counts = BEGIN_DAY, np.zeros((1440, len(OUTCOMES)), np.int64)
    for part in parts:
        for its_day, some in _split(part):
            while day < its_day:
                yield counts
                day, counts = day + 1, np.zeros_like(counts)
            np.add.at(counts, (some.times // 60_000 % 1440, some.outcomes), 1)
    yield counts


def _split(part: Part) -> Iterator[tuple[int, Part]]:
    days = part.times // (DAY_S * 1000)
    bounds = np.flatnonzero(np.append(True, days[1:] != days[:-1])).tolist()
    for start, stop in zip(bounds, [*bounds[1:], len(days)], strict=True):
        yield int(days[start]), Part(*(each[start:stop] for each in part))


def compare(days: list[Day]) -> dict[str, float]:
    """Return how far a month and its worst day were off: the hit rate in points, the cost as a ratio from 0."""
    pairs = [(day.promised, day.came) for day in days if day.promised and day.came]
    if len(pairs) != MONTH_DAYS:
        raise SystemExit(f"only {len(pairs)} of {MONTH_DAYS} days have both figures")
    hits, costs = (
        np.array([[getattr(side, name) for side in pair] for pair in pairs]) for name in ("hit_rate", "cost")
    )
    asked = np.array([came.requests for _, came in pairs], np.float64)
    promised_hits, came_hits = (np.average(hits[:, side], weights=asked) for side in (0, 1))
    promised_cost, came_cost = costs.mean(axis=0)
    return {
        "hit_rate": float(came_hits),
        "hit_rate_points": 100 * abs(float(promised_hits - came_hits)),
        "cost": float(came_cost),
        "cost_ratio": abs(float(promised_cost / came_cost - 1)),
        "day_hit_rate_points": 100 * float(np.abs(hits[:, 0] - hits[:, 1]).max()),
        "mean_day_cost_ratio": float(np.abs(costs[:, 0] / costs[:, 1] - 1).mean()),
        "day_cost_ratio": float(np.abs(costs[:, 0] / costs[:, 1] - 1).max()),
        "assumed_hit_rate_points": 100 * abs(float(ASSUMED_HIT_RATE - came_hits)),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entities", type=int, default=50_000)
    parser.add_argument("--requests", type=int, default=2_000_000, help="over 38 days")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
