"""Draws the hit-rate curves of one model: where its settings are today, and which point of each curve is advised."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from inference.economics.estimate import SECONDS_PER_DAY, estimate
from inference.economics.hit_curves import HitRate, RankCurve, Ranking, hit_rate, rank_curve
from inference.economics.inputs import Basis, CostInputs, Figure
from inference.economics.policies import Policy
from inference.monitoring.access_sample import AccessSample
from inference.settings import ModelSettings
from inference.wording import counted

#: seconds
TTLS = (60, 120, 300, 600, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800)
INTERVALS = (300, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800)
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: with less, nothing is advised
LEAST_ACCESSES, LEAST_ENTITIES, LEAST_HOURS = 1_000, 30, 1
#: half of the distance between the bounds of a point that is advised
_LARGEST_ERROR = 0.05
#: the share by which costs may be higher for more hits
_HARDLY = 0.01
#: a longer ttl must raise the hit rate by more than this to be advised
_WORTH = 0.005


class CurveName(StrEnum):
    """What a curve's hit rate depends on."""

    #: `[models.M.batch] ttl`, seconds
    BATCH_TTL = "batch_ttl"
    #: the share of the entities that runs score, those with the most accesses first
    HOTTEST = "share_hottest"
    #: the same, those with the latest accesses first
    LATEST = "share_latest"
    #: seconds between two runs
    INTERVAL = "interval"
    #: `[models.M.realtime] ttl`, seconds
    REALTIME_TTL = "realtime_ttl"

    @property
    def words(self) -> str:
        """What it is, for people."""
        return {
            CurveName.BATCH_TTL: "ttl of batch",
            CurveName.HOTTEST: "share precomputed, hottest first",
            CurveName.LATEST: "share precomputed, latest first",
            CurveName.INTERVAL: "interval between runs",
            CurveName.REALTIME_TTL: "ttl of real time",
        }[self]

    @property
    def is_share(self) -> bool:
        """Whether its points are shares, and not seconds."""
        return self in (CurveName.HOTTEST, CurveName.LATEST)


@dataclass(frozen=True)
class Advised:
    """The point of a curve that the advice has chosen already. `at`: seconds or a share; None: none of them."""

    at: float | None
    why: str


@dataclass(frozen=True)
class CurvePoint:
    """One point. `at`: seconds or a share (0 to 1); `cost_per_day`: None if an input of the cost is not known."""

    at: float
    hit_rate: HitRate
    cost_per_day: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        rates = {"hit_rate": self.hit_rate.value, "low": self.hit_rate.low, "high": self.hit_rate.high}
        return {"at": self.at, **rates, "cost_per_day": self.cost_per_day}


@dataclass(frozen=True)
class TrafficCurve:
    """One curve. `today`: the point of the settings, None if they have none; `advised`: None if nothing is."""

    name: CurveName
    points: Sequence[CurvePoint]
    today: CurvePoint | None
    advised: CurvePoint | None
    why: str

    def label(self, point: CurvePoint | None) -> str | None:
        """Return where a point is, as settings spell it, or in percent."""
        if point is None:
            return None
        return f"{100 * point.at:g} %" if self.name.is_share else duration_setting(point.at)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name.value,
            "title": self.name.words,
            "points": [self._labelled(point) for point in self.points],
            "today": self.today and self._labelled(self.today),
            "advised": self.advised and self._labelled(self.advised),
            "why": self.why,
        }

    def _labelled(self, point: CurvePoint) -> dict[str, Any]:
        return {"label": self.label(point), **point.to_json()}


@dataclass(frozen=True)
class TrafficCurves:
    """All curves of a model. `too_little`: why nothing is advised, None if something is; `measured`: the hit rate."""

    model: str
    sample: AccessSample
    curves: Sequence[TrafficCurve]
    too_little: str | None
    measured: Figure | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "model": self.model,
            "accesses": self.sample.total,
            "hours": round(self.sample.hours, 2),
            "sampled_entities": self.sample.entities,
            "sample_rate": self.sample.rate,
            "too_little": self.too_little,
            "measured_hit_rate": None if self.measured is None else self.measured.value,
            "curves": [curve.to_json() for curve in self.curves],
        }


def traffic_curves(
    model: str,
    settings: ModelSettings,
    sample: AccessSample,
    figures: Mapping[str, Figure],
    inputs: CostInputs | None,
    *,
    run_s: float | None = None,
    oldest_s: float | None = None,
    advised: Mapping[CurveName, Advised] | None = None,
) -> TrafficCurves:
    """Return the curves of one model.

    `figures`: the known inputs of its cost, `inputs`: all of them, None if one is missing. `run_s`: seconds that a run
    takes. `oldest_s`: how old an answer may be, None if not known: a longer ttl or interval is not advised. `advised`:
    points that are the advised ones, whatever the curve itself says.
    """
    measured = figures.get("hit_rate")
    if measured is not None and measured.origin is not Basis.MEASURED:
        measured = None
    little = _too_little(settings, sample)
    if not sample.total or not sample.entities:
        return TrafficCurves(model, sample, [], little, measured)
    batch = settings.batch
    interval_s = None
    if batch.schedule is not None and batch.prediction_table and "runs_per_day" in figures:
        interval_s = SECONDS_PER_DAY / figures["runs_per_day"].value
    today = replace(Policy.of("today", settings), run_s=run_s or 0.0)
    if interval_s is None:
        today = replace(today, schedule=None)
    maker = _Maker(sample, today, interval_s, inputs, oldest_s, little is not None, advised or {})
    curves = [maker.batch_ttl(), *maker.shares(figures.get("entities")), maker.interval(), maker.realtime_ttl()]
    return TrafficCurves(model, sample, [curve for curve in curves if curve.points], little, measured)


def _too_little(settings: ModelSettings, sample: AccessSample) -> str | None:
    if not settings.access_log.enabled:
        return "the access log is off: set enabled = true in [models.M.access_log]"
    if sample.total >= LEAST_ACCESSES and sample.entities >= LEAST_ENTITIES and sample.hours >= LEAST_HOURS:
        return None
    return (
        f"too little traffic: {counted(sample.total, 'access', 'accesses')} within {sample.hours:.1f} h, "
        f"{counted(sample.entities, 'entity', 'entities')} in the sample; "
        f"{LEAST_ACCESSES:,}, {LEAST_HOURS} h and {LEAST_ENTITIES} would do"
    )


@dataclass(frozen=True)
class _Maker:
    """Makes the curves around today's policy, each of which changes one thing. `interval_s`: between runs today."""

    sample: AccessSample
    today: Policy
    interval_s: float | None
    inputs: CostInputs | None
    oldest_s: float | None
    little: bool
    advised: Mapping[CurveName, Advised]

    def batch_ttl(self) -> TrafficCurve:
        if self.interval_s is None:
            return TrafficCurve(CurveName.BATCH_TTL, [], None, None, "no schedule")
        return self._of_ttl(CurveName.BATCH_TTL, self.today.rules.batch_ttl_s, "batch_ttl_s")

    def realtime_ttl(self) -> TrafficCurve:
        return self._of_ttl(CurveName.REALTIME_TTL, self.today.rules.realtime_ttl_s, "realtime_ttl_s")

    def interval(self) -> TrafficCurve:
        now = self.interval_s
        points = [
            self._point(each, self.today if each == now else self._every(each), each)
            for each in self._durations(CurveName.INTERVAL, INTERVALS, now)
        ]
        oldest_s = math.inf if self.oldest_s is None else self.oldest_s - (self.today.run_s or 0.0)
        allowed = [point for point in points if point.at <= oldest_s]
        advised = self._cheapest(allowed) or _rarest(allowed)
        return self._curve(
            CurveName.INTERVAL, points, now, advised, "the most hits of what costs hardly more than the cheapest"
        )

    def shares(self, entities: Figure | None) -> Iterable[TrafficCurve]:
        """Yield a curve for each ranking."""
        count = self.sample.distinct if entities is None else max(entities.value, self.sample.distinct)
        policy = self.today if self.interval_s else self._every(SECONDS_PER_DAY)
        for name, ranking in ((CurveName.HOTTEST, Ranking.HOTTEST), (CurveName.LATEST, Ranking.LATEST)):
            curve = rank_curve(self.sample, policy, ranking, count)
            if curve is None:
                yield TrafficCurve(name, [], None, None, "two days of accesses are needed")
                continue
            points = self._rising([self._share_point(curve, share, count) for share in SHARES])
            advised = self._cheapest(points) or _smallest(points)
            now = 1.0 if self.interval_s else 0.0
            yield self._curve(name, points, now, advised, "the most hits of what costs hardly more than the cheapest")

    def _share_point(self, curve: RankCurve, share: float, entities: float) -> CurvePoint:
        rate = curve.at(share * entities)
        interval_s = self.interval_s or SECONDS_PER_DAY
        return CurvePoint(share, rate, self._cost(rate, share=share, interval_s=interval_s if share else None))

    def _every(self, interval_s: float) -> Policy:
        return replace(self.today, schedule=duration_setting(interval_s))

    def _durations(self, name: CurveName, usual: Iterable[float], now: float | None) -> list[float]:
        """Return the points to look at: of the usual ones those that so much traffic can tell about, today's and the
        advised one.
        """
        most = max(self.sample.hours * 1800, min(usual))
        given = self.advised.get(name)
        marked = (now, None if given is None else given.at)
        return sorted({float(each) for each in usual if each <= most} | {float(each) for each in marked if each})

    def _point(self, at: float, policy: Policy, interval_s: float | None) -> CurvePoint:
        rate = hit_rate(self.sample, policy)
        return CurvePoint(at, rate, self._cost(rate, interval_s=interval_s))

    def _cost(self, rate: HitRate, *, interval_s: float | None, share: float = 1.0) -> float | None:
        """Return the cost of a day by the formulas of the estimate; without an interval nothing is precomputed."""
        if self.inputs is None:
            return None
        runs_per_day = SECONDS_PER_DAY / interval_s if interval_s else self.inputs.runs_per_day
        entities = max(self.inputs.entities * share, 1.0)
        costs = estimate(replace(self.inputs, hit_rate=rate.value, entities=entities, runs_per_day=runs_per_day))
        runs = 0.0 if interval_s else costs.batch.compute + costs.batch.storage
        return costs.hybrid.everything - runs

    def _rising(self, points: Sequence[CurvePoint]) -> list[CurvePoint]:
        """Return points none of which is below the one before: an estimate's error must not say what cannot be."""
        risen: list[CurvePoint] = []
        for point in points:
            best = risen[-1].hit_rate if risen else point.hit_rate
            rates = (max(getattr(point.hit_rate, name), getattr(best, name)) for name in ("value", "low", "high"))
            risen.append(replace(point, hit_rate=HitRate(*rates)))
        return risen

    def _of_ttl(self, name: CurveName, now: float, rule: str) -> TrafficCurve:
        """Return the curve of a ttl that is `now` today; `rule`: its name in `FreshnessRules`."""
        policies = {
            ttl_s: replace(self.today, rules=replace(self.today.rules, **{rule: ttl_s}))
            for ttl_s in self._durations(name, TTLS, now)
        }
        points = self._rising([self._point(ttl_s, policy, self.interval_s) for ttl_s, policy in policies.items()])
        allowed = [point for point in points if self.oldest_s is None or point.at <= self.oldest_s]
        why = f"a longer ttl adds less than {100 * _WORTH:g} % of hits"
        if self.oldest_s is not None:
            why += ", or answers would be too old"
        return self._curve(name, points, now, _smallest(allowed), why)

    def _cheapest(self, points: Sequence[CurvePoint]) -> CurvePoint | None:
        """Return the point with the most hits of those that cost hardly more than the cheapest; None: no costs."""
        costs = {point.at: point.cost_per_day for point in points if point.cost_per_day is not None}
        most = min(costs.values(), default=0.0) * (1 + _HARDLY)
        fitting = [point for point in points if costs.get(point.at, math.inf) <= most]
        return min(fitting, key=lambda point: (-round(point.hit_rate.value, 3), costs[point.at]), default=None)

    def _curve(
        self, name: CurveName, points: Sequence[CurvePoint], now: float | None, advised: CurvePoint | None, why: str
    ) -> TrafficCurve:
        today = next((point for point in points if point.at == now), None)
        given = self.advised.get(name)
        if given is not None and not self.little:
            return self._as_given(TrafficCurve(name, points, today, advised, why), given)
        if self.little or advised is None:
            return TrafficCurve(name, points, today, None, "too little traffic" if self.little else "nothing fits")
        half = (advised.hit_rate.high - advised.hit_rate.low) / 2
        if half > _LARGEST_ERROR:
            return TrafficCurve(name, points, today, None, f"too uncertain: ± {100 * half:.1f} %")
        return TrafficCurve(name, points, today, advised, why)

    @staticmethod
    def _as_given(curve: TrafficCurve, given: Advised) -> TrafficCurve:
        """Return a curve whose advised point is a given one; its own one is told beside it."""
        own = curve.advised
        point = next((point for point in curve.points if point.at == given.at), None)
        if point is None or own is None or own == point:
            return replace(curve, advised=point, why=given.why)
        return replace(curve, advised=point, why=f"{given.why}; by this curve alone {curve.label(own)}: {curve.why}")


def _smallest(points: Sequence[CurvePoint]) -> CurvePoint | None:
    """Return the smallest point that is hardly worse than the best."""
    best = max((point.hit_rate.value for point in points), default=0.0)
    return next((point for point in points if point.hit_rate.value >= best - _WORTH), None)


def _rarest(points: Sequence[CurvePoint]) -> CurvePoint | None:
    """Return the longest interval that is hardly worse than the best."""
    return _smallest(points[::-1])


def duration_setting(seconds: float) -> str:
    """Return a duration as settings spell it, such as `26h`, `90m` or `30s`."""
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{math.ceil(seconds)}s"
