"""Hit-rate curves: predicted from a sample of the accesses, against a full replay of all of them."""

from __future__ import annotations

import argparse
import csv
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rig.report import print_report

from inference.economics.histories import OUTCOMES
from inference.economics.hit_curves import Ranking, hit_rate, rank_curve
from inference.economics.policies import Policy
from inference.economics.replay import Replay, Speeds
from inference.economics.traces import Requests
from inference.economics.traces import Trace as Requested
from inference.monitoring.access_sample import (
    EVERYBODY,
    VISIT_GAP_TICKS,
    AccessSample,
    SampledDay,
    cut,
    day_bytes,
    hottest,
    joined,
    most_counted,
    most_popular,
    sample_bytes,
    visits_at,
)
from inference.monitoring.asked_filters import DAY_S
from inference.monitoring.id_hashes import id_hashes
from inference.outcomes import Outcome
from inference.serving.answers import FreshnessRules

#: a midnight in UTC
START = 20_000 * DAY_S
#: seconds; those that are longer than half of a trace say little about it
TTLS = (60, 300, 1800, 2 * 3600, 8 * 3600, 24 * 3600)
#: seconds between two runs, and their schedules
INTERVALS = {6 * 3600: "0 3,9,15,21 * * *", DAY_S: "0 3 * * *"}
SHARES = (0.01, 0.05, 0.2, 0.5)
#: what libCacheSim calls oracleGeneral: https://github.com/1a1a11a/libCacheSim
ORACLE_GENERAL = np.dtype([("at", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next", "<i8")])
_TIMES, _OBJECTS = ("time", "timestamp", "clock_time"), ("obj_id", "object", "id", "key", "lbn", "entity_id")


@dataclass(frozen=True)
class Trace:
    """Accesses in the order of time. `entity`: numbers from 0; `at`: epoch seconds."""

    name: str
    entity: np.ndarray[Any, np.dtype[np.int64]]
    at: np.ndarray[Any, np.dtype[np.float64]]

    @property
    def entities(self) -> int:
        return int(self.entity.max(initial=-1)) + 1


@dataclass(frozen=True)
class Point:
    """One point of a curve: what it is, the predicted hit rate with its bounds, and the true one."""

    what: str
    predicted: float
    low: float
    high: float
    true: float

    @property
    def is_within(self) -> bool:
        return self.low - 1e-9 <= self.true <= self.high + 1e-9

    @property
    def error_points(self) -> float:
        return 100 * abs(self.predicted - self.true)


def main() -> None:
    """Compare every point of every trace and print the worst of each curve."""
    options = _options()
    rng = np.random.default_rng(options.seed)
    traces = [read_trace(options.trace)] if options.trace else made_traces(options, rng)
    rows: list[tuple[Any, ...]] = []
    worst: dict[str, float] = {}
    within: dict[str, list[float]] = {}
    by_sample: dict[str, list[float]] = {}
    for trace in traces:
        began = time.perf_counter()
        truths: dict[str, float] = {}
        for number in range(options.samples):
            again = sampled(trace, options.rate)
            others = list(compared(trace, again, truths))
            within.setdefault(trace.name, []).append(float(np.mean([point.is_within for point in others])))
            by_sample.setdefault(trace.name, []).append(max(point.error_points for point in others))
            if not number:
                sample, found = again, others
        worst[trace.name] = max(point.error_points for point in found)
        for point in found if options.points else [max(found, key=lambda point: point.error_points)]:
            bounds = f"{100 * point.low:.2f} to {100 * point.high:.2f}"
            rows.append((trace.name, point.what, 100 * point.predicted, bounds, 100 * point.true, point.error_points))
        print(
            f"{trace.name}: {len(trace.at):,} accesses of {trace.entities:,} entities; in the sample "
            f"{sample.entities:,}, {len(sample.entity):,} visits, {100 * sample.rate:.2f} %, and "
            f"{sum(sample.popular_totals.values()) / sample.total:.0%} of all accesses as popular; "
            f"{time.perf_counter() - began:.0f} s",
            file=sys.stderr,
        )
    figures = {
        "worst_error_points": round(max(worst.values()), 3),
        "worst_by_trace": {name: round(error, 3) for name, error in worst.items()},
        "median_worst_by_trace": {name: round(float(np.median(errors)), 3) for name, errors in by_sample.items()},
        "share_within_a_point": {name: round(float(np.mean(np.array(e) < 1)), 3) for name, e in by_sample.items()},
        "share_within_bounds": round(float(np.mean(list(within.values()))), 3),
        "share_within_by_trace": {name: round(float(np.mean(shares)), 3) for name, shares in within.items()},
        "samples": options.samples,
        "sample_rate": options.rate,
    }
    headings = ["trace", "worst point", "predicted, %", "bounds", "replayed, %", "error, points"]
    print_report("Hit-rate curves", headings, rows, figures, as_json=options.json)


def made_traces(options: argparse.Namespace, rng: np.random.Generator) -> list[Trace]:
    """Return the traces that the options ask for: Zipf by its exponent, uniform, and one whose favourites change."""
    return [made_trace(name, options.accesses, options.entities, options.days, rng) for name in options.only]


def made_trace(name: str, accesses: int, entities: int, days: int, rng: np.random.Generator) -> Trace:
    """Return a trace of so many accesses. Times follow the hours of a day: twice as many at noon as at midnight."""
    wish = rng.random(accesses * 2) * days * DAY_S
    kept = rng.random(len(wish)) < 0.75 - 0.25 * np.cos(2 * np.pi * wish / DAY_S)
    at = np.sort(wish[kept][:accesses]) if kept.sum() >= accesses else np.sort(wish[kept])
    exponent = {"uniform": 0.0, "shifting": 1.0}.get(name)
    weights = np.arange(1, entities + 1) ** -(float(name.removeprefix("zipf ")) if exponent is None else exponent)
    chances = np.cumsum(weights)
    entity = np.searchsorted(chances, rng.random(len(at)) * chances[-1])
    if name == "shifting":  # each hour, others are the favourites
        entity = (entity + (at // 3600).astype(np.int64) * (entities // 500)) % entities
    return Trace(name, rng.permutation(entities)[entity], START + at)


def read_trace(file: Path) -> Trace:
    """Return a public trace: of libCacheSim's form oracleGeneral, or a CSV file with columns of times and objects."""
    if file.suffix == ".bin":
        rows = np.fromfile(file, ORACLE_GENERAL)
        at, objects = rows["at"].astype(np.float64), rows["object"]
    else:
        with file.open(newline="") as text:
            reader = csv.DictReader(text)
            names = {name.strip().lower(): name for name in reader.fieldnames or ()}
            columns = [next((names[one] for one in wanted if one in names), None) for wanted in (_TIMES, _OBJECTS)]
            if None in columns:
                sys.exit(
                    f"{file}: its columns are {', '.join(names)}: one of {_TIMES} and one of {_OBJECTS} is missing"
                )
            pairs = [(float(row[columns[0]]), row[columns[1]]) for row in reader]
        at, objects = np.array([one for one, _ in pairs]), np.array([one for _, one in pairs])
    _, entity = np.unique(objects, return_inverse=True)
    order = np.argsort(at, kind="stable")
    return Trace(file.name, entity[order], at[order] - at.min() + START)


def sampled(trace: Trace, rate: float) -> AccessSample:
    """Return the sample that the product would have in Redis, if its threshold began at this rate."""
    key = secrets.token_bytes(16)
    hashes = id_hashes(np.char.add("entity_", np.arange(trace.entities).astype(str)), key)[trace.entity]
    numbers = range(int(trace.at[0] // DAY_S), int(trace.at[-1] // DAY_S) + 1)
    threshold, most, read = int(rate * EVERYBODY), day_bytes(len(numbers)), {}
    for number in numbers:
        before, first, end = np.searchsorted(trace.at, [(number + one) * DAY_S for one in (-1, 0, 1)])
        # on the first day, they are those of its first hour
        start = first if first > before else int(np.searchsorted(trace.at, number * DAY_S + 3600))
        counts = np.bincount(trace.entity[before:start], minlength=1)
        popular = np.argsort(-counts, kind="stable")[: min(most_popular(len(numbers)), np.count_nonzero(counts))]
        is_popular = np.isin(trace.entity[first:end], popular) & (np.arange(first, end) >= start)
        hashed, at = hashes[first:end], trace.at[first:end]
        apart, _ = joined(visits_at(hashed[is_popular], at[is_popular], EVERYBODY), VISIT_GAP_TICKS, most)
        visits = visits_at(hashed[~is_popular], at[~is_popular], threshold)
        room = sample_bytes(len(numbers), apart.nbytes)
        if visits.nbytes > room:
            visits, threshold = cut(visits, threshold, room)
        entities = float(len(np.unique(trace.entity[first:end])))
        rest = np.flatnonzero(~is_popular) + first
        counted, _ = hottest(visits_at(hashes[rest], 0.0, EVERYBODY), most_counted(len(numbers)))
        read[number] = SampledDay(visits, threshold, int(end - first), apart, int(is_popular.sum()), entities, counted)
    # the number of entities as a HyperLogLog counts it
    distinct = len(np.unique(trace.entity)) * (1 + 0.0081 * np.random.default_rng(int(rate * 1e6)).standard_normal())
    return AccessSample.of(read, since=float(trace.at[0]), until=float(trace.at[-1]), distinct=distinct)


def compared(trace: Trace, sample: AccessSample, truths: dict[str, float]) -> Iterator[Point]:
    """Yield the points of all curves. `truths`: of points that were replayed before, and now of all."""
    span_s = float(trace.at[-1] - trace.at[0])
    ttls = [float(ttl_s) for ttl_s in TTLS if ttl_s <= span_s / 2]
    policies = {f"real-time ttl {ttl_s:g} s": policy_of(ttl_s) for ttl_s in ttls}
    for interval_s, schedule in INTERVALS.items():
        if interval_s > span_s / 2:
            continue
        for batch_ttl_s in (interval_s / 4, interval_s * 0.9):
            name = f"a run every {interval_s / 3600:g} h, ttl {batch_ttl_s / 3600:g} h"
            policies[name] = policy_of(1800.0, batch_ttl_s, schedule)
    for what, policy in policies.items():
        found = hit_rate(sample, policy)
        if what not in truths:
            truths[what] = 1 - replayed(trace, policy) / len(trace.at)
        yield Point(what, found.value, found.low, found.high, truths[what])
    policy = policy_of(1800.0, 48 * 3600.0, INTERVALS[DAY_S])
    for ranking in (Ranking.HOTTEST, Ranking.LATEST):
        curve = rank_curve(sample, policy, ranking, trace.entities)
        if curve is None:
            continue
        for share in SHARES:
            what = f"{share:.0%} precomputed, {ranking.value} first"
            if what not in truths:
                truths[what] = _replayed_share(trace, policy, ranking, share, curve.predicted[0] * DAY_S)
            found = curve.at(share * trace.entities)
            yield Point(what, found.value, found.low, found.high, truths[what])


def _replayed_share(trace: Trace, policy: Policy, ranking: Ranking, share: float, since: float) -> float:
    """Return the hit rate from an instant on if runs score a share of the entities, ranked by the time before it."""
    chosen = np.zeros(trace.entities, np.bool_)
    chosen[ranked(trace, ranking, since)[: round(share * trace.entities)]] = True
    return 1 - replayed(trace, policy, chosen, since=since) / int((trace.at >= since).sum())


def ranked(trace: Trace, ranking: Ranking, before: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return all entities by their exact accesses before an instant."""
    early = trace.at < before
    counts = np.bincount(trace.entity[early], minlength=trace.entities)
    latest = np.full(trace.entities, -np.inf)
    latest[trace.entity[early]] = trace.at[early]  # the last one stays
    return np.lexsort((latest, counts) if ranking is Ranking.HOTTEST else (counts, latest))[::-1]


def policy_of(realtime_ttl_s: float, batch_ttl_s: float = DAY_S, schedule: str | None = None) -> Policy:
    """Return a policy without the rules that only save computing."""
    rules = FreshnessRules(batch_ttl_s, realtime_ttl_s, min_recompute_interval_s=0.0)
    return Policy("", rules, keep_s=30 * DAY_S, realtime_keep_s=30 * DAY_S, schedule=schedule, run_s=600.0)


def replayed(trace: Trace, policy: Policy, chosen: Any = None, since: float = 0.0) -> int:
    """Return the misses of every access from an instant on, one after the other. `chosen`: precomputed; None: all."""
    at, entity = trace.at, trace.entity
    if chosen is not None and not chosen.all():
        rest = ~chosen[entity]
        of_rest = replayed(_part(trace, rest), replace(policy, schedule=None), since=since)
        return of_rest + replayed(_part(trace, ~rest), policy, since=since)
    if not len(at):
        return 0
    requests = Requests(entity.astype(np.int32), np.round(at * 1000).astype(np.int64))
    replay = Replay(Requested(requests, trace.entities), policy, trace.entities, Speeds(1.0, 0.0, 1.0))
    computed = OUTCOMES.index(Outcome.COMPUTED)
    return sum(int(((part.outcomes == computed) & (part.times >= since * 1000)).sum()) for part in replay)


def _part(trace: Trace, mask: Any) -> Trace:
    return Trace(trace.name, trace.entity[mask], trace.at[mask])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accesses", type=int, default=2_000_000, help="of each made trace")
    parser.add_argument("--entities", type=int, default=500_000)
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--rate", type=float, default=0.01, help="share of the entities in the sample, 0 to 1")
    parser.add_argument("--only", nargs="*", default=["zipf 0.8", "zipf 1.0", "zipf 1.2", "uniform", "shifting"])
    parser.add_argument("--trace", type=Path, help="a trace of libCacheSim's form oracleGeneral (.bin), or a CSV file")
    parser.add_argument(
        "--samples", type=int, default=1, help="of other entities each, for the share within the bounds"
    )
    parser.add_argument("--points", action="store_true", help="print every point, not only the worst of each trace")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
