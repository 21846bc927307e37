"""Active sets: does `hit rate 0.95` reach 0.95 on days that it has not seen, and with how many entities too many?

Each trace has a month of past and a week of held-out days. For each held-out day the set is chosen from the filters
and the sample of the days before, as a run at midnight does. The baseline ranks entities by the exact number of their
requests in the same days, and takes as many as it needs for the same hit rate.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rig.report import print_report
from rig.stack import temporary_folder

from inference.batch.active_set import ActiveSet, find_threshold
from inference.batch.plan import cut_row_groups
from inference.monitoring.access_sample import (
    EVERYBODY,
    VISIT_GAP_TICKS,
    VISITS,
    AccessSample,
    SampledDay,
    cut,
    day_bytes,
    joined,
    most_popular,
    visits_at,
)
from inference.monitoring.asked_filters import DAY_S, AskedFilters, Filter, filter_bytes, places_of
from inference.monitoring.id_hashes import Words, id_hashes
from inference.sources import open_source

TARGET = 0.95
#: days that the filters and the sample keep, by default
PAST, SAMPLED, HELD_OUT = 30, 14, 7
#: exponents of Zipf's law
EXPONENTS = (0.8, 1.0, 1.2)
#: of a changing trace: the share of the entities that new ones replace each day
CHURN = 0.005
#: standard deviation of the logarithm of popularity, and how much of it stays from day to day
DRIFT, STAYS = 0.5, 0.95
#: a day's accesses come to the log in so many parts
_PARTS = 24

Counts = npt.NDArray[np.int64]


class Change(StrEnum):
    """How a trace changes from day to day."""

    #: not at all
    STEADY = "steady"
    #: popularity drifts, and new entities take the places of those that few ask for
    DRIFTING = "drifting"
    #: popularity drifts, and new entities take any place: some are the hottest of all from their first day on
    OVERNIGHT = "overnight"


@dataclass(frozen=True)
class Trace:
    """Requests by day and entity: shape (days, entities). `new`: the entities that a day has first, same shape."""

    counts: Counts
    new: npt.NDArray[np.bool_]
    ids: pa.Array

    @property
    def hashes(self) -> Words:
        return id_hashes(self.ids, bytes(16))


def make_trace(entities: int, requests: int, exponent: float, change: Change, rng: np.random.Generator) -> Trace:
    """Return a trace of so many entities, and so many requests a day."""
    days, changes = PAST + HELD_OUT, change is not Change.STEADY
    born = int(entities * CHURN) if changes else 0
    ids = entities + born * (days - 1)
    law = np.arange(1, entities + 1) ** -exponent
    holder = rng.permutation(entities)  # rank → entity
    drift = rng.normal(0, DRIFT, ids) * changes
    counts, new = np.zeros((days, ids), np.int64), np.zeros((days, ids), bool)
    first_place = entities // 10 if change is Change.DRIFTING else 0
    for day in range(days):
        if day and changes:
            fresh = np.arange(entities + born * (day - 1), entities + born * day)
            holder[rng.choice(np.arange(first_place, entities), born, replace=False)] = fresh
            new[day, fresh] = True
            drift = drift * STAYS + rng.normal(0, DRIFT * np.sqrt(1 - STAYS**2), ids)
        popularity = law * np.exp(drift[holder])
        counts[day, holder] = rng.poisson(popularity / popularity.sum() * requests)
    return Trace(counts, new, pa.array([f"entity-{number}" for number in range(ids)]))


def log_day(counts: Counts, before: Counts, hashes: Words, rng: np.random.Generator) -> tuple[Filter, SampledDay]:
    """Return a day's filter and sample, as the access log keeps them. `before`: the counts of the day before."""
    asked = Filter(filter_bytes(len(counts)))
    asked.add(places_of(hashes[counts > 0], asked.size))
    threshold, visits, most = EVERYBODY, np.zeros(0, VISITS), day_bytes(SAMPLED)
    is_popular = np.zeros(len(counts), bool)
    is_popular[np.argsort(-before)[: most_popular(SAMPLED)]] = True
    popular = [
        visits_at(np.repeat(hash_, count), np.sort(rng.random(count)) * DAY_S, EVERYBODY)
        for hash_, count in zip(hashes[is_popular], counts[is_popular], strict=True)
    ]
    accesses = rng.permutation(np.repeat(hashes[~is_popular], counts[~is_popular]))
    for number, part in enumerate(np.array_split(accesses, _PARTS)):
        at = (number + np.sort(rng.random(len(part)))) * DAY_S / _PARTS
        visits = np.concatenate([visits, visits_at(part, at, threshold)])
        if visits.nbytes > most:
            visits, threshold = cut(visits, threshold, most)
    of_popular = joined(np.concatenate(popular), VISIT_GAP_TICKS, most)[0]
    return asked, SampledDay(visits, threshold, int(counts.sum()), of_popular, int(counts[is_popular].sum()))


def held_out_days(trace: Trace, rng: np.random.Generator) -> Iterator[dict[str, float]]:
    """Yield what the set of each held-out day reaches."""
    hashes = trace.hashes
    days = [np.zeros_like(trace.counts[0]), *trace.counts]
    logged = [log_day(day, before, hashes, rng) for before, day in pairwise(days)]
    for today in range(PAST, PAST + HELD_OUT):
        midnight = today * DAY_S + 1.0
        by_age = tuple((today - day, logged[day][0]) for day in range(today - 1, today - 1 - PAST, -1))
        filters = AskedFilters(bytes(16), float((today - PAST) * DAY_S), PAST + 1, midnight, by_age)
        sampled = {day: logged[day][1] for day in range(today - SAMPLED + 1, today)}
        sample = AccessSample.of(sampled, since=float((today - SAMPLED + 1) * DAY_S), until=midnight)
        started = time.perf_counter()
        threshold = find_threshold(TARGET, PAST, filters.history(sample.entity << np.uint64(16)), sample)
        assert threshold is not None
        took_s = time.perf_counter() - started
        chosen = threshold.chooses(filters.history(hashes)) | trace.new[today]
        yield {**_compare(trace, today, chosen), "promised": threshold.share, "threshold_s": took_s}


def _compare(trace: Trace, today: int, chosen: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Return the hit rate of a set, and how many more entities it has than the exact ranking needs for it."""
    requests = trace.counts[today]
    hits = requests[chosen].sum()
    past = trace.counts[today - PAST : today].sum(axis=0).astype(float)
    past[trace.new[today]] = np.inf  # in both sets
    order = np.argsort(-past, kind="stable")
    needed = int(np.searchsorted(np.cumsum(requests[order]), hits)) + 1
    there = (past > 0).sum()
    return {"reached": hits / requests.sum(), "extra_share": chosen.sum() / needed - 1, "size": chosen.sum() / there}


def scan_us(rows: int) -> float:
    """Return the microseconds a row in which a table's rows are chosen; a tenth of them were asked for."""
    with temporary_folder() as folder:
        path = Path(folder) / "t.parquet"
        ids = pa.array([f"entity-{number}" for number in range(rows)])
        pq.write_table(pa.table({"entity_id": ids}), path, row_group_size=250_000)
        hashes, rng = id_hashes(ids, bytes(16)), np.random.default_rng(0)
        by_age = []
        for age in range(1, PAST + 1):
            asked = Filter(filter_bytes(rows))
            asked.add(places_of(hashes[rng.integers(0, rows // 10, rows // 20)], asked.size))
            by_age.append((age, asked))
        filters = AskedFilters(bytes(16), 0.0, PAST + 1, PAST * DAY_S, tuple(by_age))
        known = Filter(rows * 2)
        active = ActiveSet("asked within 30d", "", filters, lambda histories: histories != 0, Filter(rows * 2), known)
        source = open_source(str(path), as_text=["entity_id"])
        pieces = cut_row_groups(source.files, rows_per_chunk=250_000, bytes_per_chunk=1 << 40)
        started = time.perf_counter()
        for _ in active.mark(source, pieces, "entity_id"):
            pass
        return (time.perf_counter() - started) / rows * 1e6


def main() -> None:
    """Choose sets for the held-out days of each trace, and time the choice."""
    options = _options()
    results = {(exponent, change): _measure(exponent, change, options) for change in Change for exponent in EXPONENTS}
    expected = [one for (_, change), one in results.items() if change is not Change.OVERNIGHT]
    figures: dict[str, Any] = {
        "reached": _farthest(one["reached"] for one in expected),
        "worst_day": _farthest(one[end] for one in expected for end in ("lowest", "highest")),
        "extra_share": round(max(one["extra_share"] for one in expected), 4),
        "overnight_reached": _farthest(one["reached"] for one in results.values()),
        "overnight_extra_share": round(max(one["extra_share"] for one in results.values()), 4),
        "scan_us_a_row": round(scan_us(options.scan_rows), 3),
        "by_trace": [
            {"zipf": exponent, "change": change.value, **{name: round(value, 4) for name, value in one.items()}}
            for (exponent, change), one in results.items()
        ],
    }
    names = ("reached", "lowest", "highest", "extra_share", "size", "threshold_s")
    rows = [
        (f"{exponent} {change}", *(f"{one[name]:.4f}" for name in names)) for (exponent, change), one in results.items()
    ]
    headings = ["Zipf", "hit rate", "lowest day", "highest day", "too many", "of entities", "threshold, s"]
    title = f"Active sets: hit rate {TARGET} on {HELD_OUT} held-out days"
    print_report(title, headings, rows, figures, as_json=options.json)


def _measure(exponent: float, change: Change, options: argparse.Namespace) -> dict[str, float]:
    """Return the means over the held-out days of one trace."""
    rng = np.random.default_rng(options.seed)
    days = list(held_out_days(make_trace(options.entities, options.requests, exponent, change, rng), rng))
    mean = {name: float(np.mean([day[name] for day in days])) for name in days[0]}
    reached = [day["reached"] for day in days]
    return {**mean, "lowest": min(reached), "highest": max(reached)}


def _farthest(reached: Iterable[float]) -> float:
    """Return the hit rate that is farthest from the target."""
    farthest: float = max(reached, key=lambda one: abs(one - TARGET))
    return round(farthest, 4)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entities", type=int, default=200_000)
    parser.add_argument("--requests", type=int, default=400_000, help="a day")
    parser.add_argument("--scan-rows", type=int, default=2_000_000, help="rows of the table whose rows are chosen")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
