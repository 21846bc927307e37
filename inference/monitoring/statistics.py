"""Reads hit statistics of a window: outcomes, latencies, ages and sizes of micro-batches.

A minute of all API processes is the sum of their counts, and a sum of histograms is a histogram again. So any window
has quantiles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from sys import intern
from typing import Any

from inference.clock import Clock, system_clock
from inference.monitoring.access_sample import AccessSample
from inference.monitoring.asked_filters import DAY_S
from inference.monitoring.counters import (
    AGE,
    HIT_LATENCY,
    MICRO_BATCH,
    MISS_LATENCY,
    VERSIONS,
    Histogram,
    counts_of_kind,
)
from inference.outcomes import Outcome
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.stored_data import count_in, reading

#: name → share of all values below it
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class HitCounts:
    """The outcomes of the requests of one window; `outcomes` has every outcome."""

    outcomes: dict[Outcome, int]

    @property
    def total(self) -> int:
        """The hit rate's denominator: all requests except those for unknown entities."""
        return sum(count for outcome, count in self.outcomes.items() if outcome.is_rated)

    @property
    def hits(self) -> int:
        """Requests with a fresh answer from the store."""
        return sum(count for outcome, count in self.outcomes.items() if outcome.is_hit)

    @property
    def hit_rate(self) -> float | None:
        """Share of requests with a fresh answer from the store, 0 to 1; None if there were none."""
        return self.hits / self.total if self.total else None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: `total`, `hit_rate`, and `outcomes`, all of them in their order."""
        outcomes = {outcome.value: self.outcomes.get(outcome, 0) for outcome in Outcome}
        return {"total": self.total, "hit_rate": self.hit_rate, "outcomes": outcomes}


@dataclass(frozen=True)
class Statistics:
    """Everything counted in one window. `versions`: the outcomes of the answers of each model version, oldest first."""

    counts: HitCounts
    versions: Mapping[int, HitCounts]
    hit_latency: Histogram
    miss_latency: Histogram
    age: Histogram
    micro_batch: Histogram

    @classmethod
    def of(cls, fields: Mapping[str, int]) -> Statistics:
        """Return the statistics of summed fields of minute hashes."""
        return cls(
            HitCounts({outcome: fields.get(outcome.value, 0) for outcome in Outcome}),
            _by_version(fields),
            HIT_LATENCY.histogram(fields),
            MISS_LATENCY.histogram(fields),
            AGE.histogram(fields),
            MICRO_BATCH.histogram(fields),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: those of `HitCounts`, and quantiles; None where nothing was counted.

        `hit_latency_s`, `miss_latency_s` and `age_s` in seconds, `micro_batch_rows` in rows. `versions`: a list of
        `version` and its `HitCounts`.
        """
        return {
            **self.counts.to_json(),
            "versions": self.versions_json(),
            "hit_latency_s": _quantiles(self.hit_latency),
            "miss_latency_s": _quantiles(self.miss_latency),
            "age_s": _quantiles(self.age),
            "micro_batch_rows": _quantiles(self.micro_batch),
        }

    def versions_json(self) -> list[dict[str, Any]]:
        """Return plain JSON values: the `version` and the `HitCounts` of each, oldest first."""
        return [{"version": version, **counts.to_json()} for version, counts in self.versions.items()]


def _by_version(fields: Mapping[str, int]) -> dict[int, HitCounts]:
    found: dict[int, dict[Outcome, int]] = {}
    for (version, outcome), count in counts_of_kind(fields, VERSIONS).items():
        if version.isdecimal() and outcome in _OUTCOMES:
            found.setdefault(int(version), {})[Outcome(outcome)] = count
    return {version: HitCounts(found[version]) for version in sorted(found)}


_OUTCOMES = frozenset(Outcome)


def _quantiles(histogram: Histogram) -> dict[str, float | None]:
    return {name: histogram.quantile(share) for name, share in QUANTILES.items()}


#: an hour: what the API, the commands and the pages show unless asked for another window
USUAL_WINDOW_S = 3600
#: a week: counters are kept for a day longer
MAX_WINDOW_S = 7 * 24 * 3600
#: window in seconds → minutes in one point of its series
POINT_MINUTES = {300: 1, 3600: 1, 24 * 3600: 10}
#: minutes after which a past minute does not change any more: flushes are late by a second or two
_CLOSED_AFTER_MIN = 3
#: minutes kept in memory for each model, a day
_MOST_REMEMBERED = 24 * 60 + 10

#: field → count, of one minute or of several
Fields = Mapping[str, int]


@dataclass(frozen=True)
class Point:
    """One point of a series. `at`: the start of its first minute, epoch seconds."""

    at: int
    statistics: Statistics


class HitWindows:
    """Reads hit statistics. Synchronous: callers with an event loop use a thread.

    Reads a past minute once and remembers it, so a page that asks every 2 seconds costs little.
    """

    def __init__(self, client: Client, keys: Keys, clock: Clock = system_clock) -> None:
        self._client: Any = client  # redis-py types every answer as any possible one
        self._keys = keys
        self._clock = clock
        self._closed: dict[tuple[str, int], Fields] = {}
        self._samples: dict[str, tuple[tuple[int, int], AccessSample]] = {}

    def read(self, model: str, window_s: float) -> HitCounts:
        """Return the outcomes of every minute that overlaps the last `window_s` seconds (at most a week).

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        return self.statistics(model, window_s).counts

    def statistics(self, model: str, window_s: float) -> Statistics:
        """Return all statistics of every minute that overlaps the last `window_s` seconds (at most a week).

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        return Statistics.of(self.fields(model, window_s))

    def fields(self, model: str, window_s: float) -> Fields:
        """Return the sum of every field in the window, including workers' counts (see `counts_of_kind`).

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        return _sum(self._minutes(model, self._window(window_s)))

    def series(self, model: str, window_s: int) -> list[Point]:
        """Return the window in points of equal length, oldest first; `window_s` is one of `POINT_MINUTES`.

        The last point is still going on.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        length, window = POINT_MINUTES[window_s], self._window(window_s)
        # points start at whole multiples of their length: a past point never changes
        return self._points(model, range(window.start // length * length, window.stop), length)

    def day(self, model: str, day: int) -> list[Point]:
        """Return a day (epoch days, UTC) in points of ten minutes; without counts if it is over a week ago.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        minutes = DAY_S // 60
        return self._points(model, range(day * minutes, (day + 1) * minutes), POINT_MINUTES[DAY_S])

    def asked(self, model: str, days: int) -> int:
        """Return how many distinct entities were answered today and on the `days` - 1 days before (UTC).

        At most 8 days; within 0.81 % of the exact number (HyperLogLog's standard error).

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        today = int(self._clock() // DAY_S)
        return int(self._client.pfcount(*(self._keys.asked(model, today - back) for back in range(days))))

    def accesses(self, model: str, days: int) -> AccessSample:
        """Return the sample of the accesses of today and the days before. Reads it once a minute.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        minute = int(self._clock() // 60)
        known = self._samples.get(model)
        if known is None or known[0] != (minute, days):
            sample = AccessSample.load(self._client, self._keys, model, days, self._clock)
            known = self._samples[model] = (minute, days), sample
        return known[1]

    def totals(self, model: str) -> Fields:
        """Return all fields summed over all time; they only grow.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        return _decoded(self._client.hgetall(self._keys.hit_totals(model)))

    def _window(self, window_s: float) -> range:
        now = self._clock()
        return range(int((now - min(window_s, MAX_WINDOW_S)) // 60), int(now // 60) + 1)

    def _points(self, model: str, minutes: range, length: int) -> list[Point]:
        fields = self._minutes(model, minutes)
        starts = range(0, len(minutes), length)
        return [Point(minutes[start] * 60, Statistics.of(_sum(fields[start : start + length]))) for start in starts]

    def _minutes(self, model: str, minutes: Sequence[int]) -> list[Fields]:
        unknown = [minute for minute in minutes if (model, minute) not in self._closed]
        pipeline = self._client.pipeline(transaction=False)
        for minute in unknown:
            pipeline.hgetall(self._keys.hits(model, minute))
        read = dict(zip(unknown, map(_decoded, pipeline.execute()), strict=True))
        found = [self._closed.get((model, minute)) or read.get(minute, {}) for minute in minutes]
        self._remember(model, read, minutes[-1])
        return found

    def _remember(self, model: str, read: Mapping[int, Fields], now: int) -> None:
        """Keep past minutes that are not empty: an empty one costs almost nothing to read."""
        closed = {minute: fields for minute, fields in read.items() if fields and minute < now - _CLOSED_AFTER_MIN}
        self._closed.update({(model, minute): fields for minute, fields in closed.items()})
        # a copy: other threads may be adding
        for key in [key for key in list(self._closed) if key[0] == model and key[1] < now - _MOST_REMEMBERED]:
            self._closed.pop(key, None)


def _decoded(minute: Mapping[bytes, Any]) -> Fields:
    # a day of minutes holds each name a thousand times
    with reading("a minute of the hit counters"):
        return {intern(name.decode()): count_in(count) for name, count in minute.items()}


def _sum(minutes: Iterable[Fields]) -> Fields:
    totals: Counter[str] = Counter()
    for minute in minutes:
        totals.update(minute)
    return totals
