"""Keeps what the advice promises for each day, and what came of it.

During a day, the promise for the next one is written again and again, so its last form rests on the whole day before.
It is the advice of that moment; the requests are those of the same weekday a week before, if they were counted.
Once a day is over, the minute counters tell what came; its cost follows by the same formulas, approach, prices and
assumptions as the promise. A day is one of UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from inference.batch.ledger import KEEP_RUNS, Ledger
from inference.clock import Clock, system_clock, to_datetime
from inference.economics.advice import CostReport, costs_of
from inference.economics.estimate import SECONDS_PER_DAY, estimate
from inference.economics.inputs import CostInputs
from inference.economics.rules import LEAST_REQUESTS, Approach
from inference.errors import SettingsError
from inference.monitoring.asked_filters import DAY_S
from inference.monitoring.statistics import HitWindows, Point
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.stored_data import json_text_of, record_from_json

#: days that are kept, to compare a month with that of the year before
KEEP_DAYS = 400
#: past days that may still get their figures: counters are kept for eight days
_CONCLUDED_DAYS = 7
DAYS_OF_WEEK = 7
#: seconds after the end of a day in which processes may still count for it
_LATE_S = 180
#: stands for no run a day, since inputs are above 0
_NO_RUNS = 1e-9


@dataclass(frozen=True)
class DayFigures:
    """Figures of one model and day; None where nothing tells them.

    `peak_rps`, `peak_misses_rps`: of the busiest ten minutes. `cost`: a day's, in `currency`. `inputs`: of the cost.
    """

    approach: str
    hit_rate: float | None
    cost: float | None
    currency: str
    peak_rps: float | None
    peak_misses_rps: float | None
    requests: int | None = None
    inputs: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values without the inputs."""
        return {name: value for name, value in vars(self).items() if name != "inputs"}


@dataclass(frozen=True)
class Day:
    """What was promised for a day, and what came; None if that was not kept."""

    day: int
    promised: DayFigures | None
    came: DayFigures | None

    @property
    def date(self) -> date:
        """The day."""
        return to_datetime(self.day * DAY_S).date()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "day": self.date.isoformat(),
            "promised": self.promised and self.promised.to_json(),
            "came": self.came and self.came.to_json(),
        }


class Promises:
    """Writes and reads promises. Every method raises StoreUnavailable when Redis does not answer."""

    def __init__(self, client: Client, keys: Keys, windows: HitWindows, clock: Clock = system_clock) -> None:
        self._client: Any = client
        self._keys = keys
        self._windows = windows
        self._clock = clock

    def keep(self, model: str, report: CostReport) -> None:
        """Write the promise for tomorrow, and what came on the days that are over. Safe to run twice.

        Promises nothing while too few requests are known.
        """
        today = int(self._clock() // DAY_S)
        promised = promise_of(report)
        if promised is not None:
            week_before = self._windows.day(model, today + 1 - DAYS_OF_WEEK)
            self._write(model, today + 1, "promised", with_requests_of(promised, week_before))
        over = int((self._clock() - _LATE_S) // DAY_S)
        for day in self._read(model, range(over - _CONCLUDED_DAYS, over)):
            if day.came is None:
                came = self._came(model, day, report)
                if came is not None:
                    self._write(model, day.day, "came", came)

    def days(self, model: str, days: int) -> list[Day]:
        """Return the last days that are over, newest first, also those of which nothing is known."""
        today = int(self._clock() // DAY_S)
        return self._read(model, range(today - days, today))[::-1]

    def _read(self, model: str, days: Sequence[int]) -> list[Day]:
        pipeline = self._client.pipeline(transaction=False)
        for day in days:
            pipeline.hmget(self._keys.promise(model, day), "promised", "came")
        return [Day(day, *map(_parsed, texts)) for day, texts in zip(days, pipeline.execute(), strict=True)]

    def _write(self, model: str, day: int, name: str, figures: DayFigures) -> None:
        key = self._keys.promise(model, day)
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hset(key, name, json_text_of(DayFigures, figures))
        pipeline.expire(key, KEEP_DAYS * DAY_S)
        pipeline.execute()

    def _came(self, model: str, day: Day, report: CostReport) -> DayFigures | None:
        """Return what came on a day; None if there is neither a request nor a promise."""
        points = self._windows.day(model, day.day)
        requests = sum(point.statistics.counts.total for point in points)
        promised = day.promised or promise_of(report, least_requests=0)
        if promised is None or (not requests and day.promised is None):
            return None
        return came_of(promised, points, runs=self._runs(model, day.day))

    def _runs(self, model: str, day: int) -> int | None:
        """Return how many runs of the whole table began on a day; None if the ledger may have forgotten some."""
        records = Ledger(self._client, self._keys).newest(model, KEEP_RUNS)
        began = [record for record in records if int(record.created_at // DAY_S) == day and not record.is_partial]
        is_whole = len(records) < KEEP_RUNS or min(record.created_at for record in records) < day * DAY_S
        return len(began) if is_whole else None


def promise_of(report: CostReport, *, least_requests: int = LEAST_REQUESTS) -> DayFigures | None:
    """Return the advice as figures of a day; None while too little is known for a cost, or too few requests are."""
    inputs, advice = report.inputs, report.advice
    if inputs is None or report.requests < least_requests:
        return None
    return DayFigures(
        approach=advice.approach.value,
        hit_rate=inputs.hit_rate,
        cost=_cost(advice.approach, inputs),
        currency=report.prices.currency,
        peak_rps=inputs.peak_rps,
        peak_misses_rps=inputs.peak_rps * (1 - inputs.hit_rate),
        inputs=dict(vars(inputs)),
    )


def with_requests_of(promised: DayFigures, points: Sequence[Point]) -> DayFigures:
    """Return the promise for as many requests, and as high a peak, as on a day (all its points) with enough of them."""
    before = came_of(promised, points, runs=None)
    if (before.requests or 0) < LEAST_REQUESTS or promised.hit_rate is None:
        return promised
    inputs = promised.inputs | {name: before.inputs[name] for name in ("rps", "peak_rps")}
    return replace(
        promised,
        cost=_cost_of(promised.approach, inputs),
        peak_rps=inputs["peak_rps"],
        peak_misses_rps=inputs["peak_rps"] * (1 - promised.hit_rate),
        inputs=inputs,
    )


def came_of(promised: DayFigures, points: Sequence[Point], *, runs: int | None) -> DayFigures:
    """Return what came on a day. `points`: the whole day; `runs`: those that began, None if unknown.

    Without requests, only the number of requests is known.
    """
    step_s = SECONDS_PER_DAY / len(points)
    counts = [point.statistics.counts for point in points]
    total = sum(each.total for each in counts)
    if not total:
        return replace(promised, hit_rate=None, cost=None, peak_rps=None, peak_misses_rps=None, requests=0, inputs={})
    hits = sum(each.hits for each in counts)
    inputs = promised.inputs | {
        "hit_rate": hits / total,
        "rps": total / SECONDS_PER_DAY,
        "peak_rps": max(each.total for each in counts) / step_s,
    }
    if runs is not None:
        inputs["runs_per_day"] = runs or _NO_RUNS
    return DayFigures(
        approach=promised.approach,
        hit_rate=inputs["hit_rate"],
        cost=_cost_of(promised.approach, inputs),
        currency=promised.currency,
        peak_rps=inputs["peak_rps"],
        peak_misses_rps=max(each.total - each.hits for each in counts) / step_s,
        requests=total,
        inputs=inputs,
    )


def _cost(approach: Approach, inputs: CostInputs) -> float:
    return costs_of(approach, estimate(inputs))[0]


def _cost_of(approach: str, inputs: Mapping[str, float]) -> float | None:
    try:
        return _cost(Approach(approach), CostInputs(**inputs))
    except (SettingsError, TypeError, ValueError):  # another release has other inputs
        return None


def _parsed(text: bytes | None) -> DayFigures | None:
    return None if text is None else record_from_json(DayFigures, text, "a kept promise")
