"""Predicts hit rates from a sample of accesses: against ttl, schedule, and the share of entities that runs score.

Each entity's accesses are replayed under a policy; a stored answer counts as fresh as in `FreshnessRules`, and a miss
is answered and stored at once. The misses of popular entities are all known; those of the sample are scaled up to all
entities, and all other accesses are hits. The sample's accesses, scaled up in the same way, are a few too many or too
few; their true number is known, and the misses are corrected by what such a difference means for them (a regression
estimator; SHARDS-adj is the same correction without the regression).
The bounds come from the residuals of that regression, each as it would be if its entity had not been looked at (a
jackknife): so one hot entity in the sample cannot hide how much it matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.monitoring.access_sample import AccessSample
from inference.monitoring.asked_filters import DAY_S

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

#: normal distribution: 95 % lie within so many standard deviations
_CONFIDENCE = 1.96
#: standard error of the number of entities (HyperLogLog)
_COUNT_ERROR = 0.0081
#: of a visit with more accesses, only the first and the last time are known
_KNOWN = 2
#: of accesses with unknown times, the share that may be misses or hits by mistake; half of that was measured
_UNSURE = 0.01
#: the fractions of its multiples are spread evenly
_GOLDEN = (5**0.5 - 1) / 2
#: a cutoff's effect is measured on this share of all entities, to both sides of it
_NEAR = 0.05
#: a page asks for the same points every few seconds; they are of a handful of samples
_REMEMBERED = 256
#: fewer entities in a sample say nothing about all others
_LEAST = 2
#: a rounding error must not move an access over the edge of a ttl
_EPSILON = 1e-9


@dataclass(frozen=True)
class Policy:
    """How answers are made and kept; durations in seconds.

    `interval_s`: between two runs; None: no runs. `run_s`: from the time of a run's features until it is published.
    `offset_s`: epoch seconds of any slot of the schedule.
    """

    realtime_ttl_s: float
    batch_ttl_s: float = DAY_S
    interval_s: float | None = None
    run_s: float = 0.0
    offset_s: float = 0.0


@dataclass(frozen=True)
class HitRate:
    """An estimated hit rate, and the bounds within which the true one lies with 95 %; all 0 to 1."""

    value: float
    low: float
    high: float


class Ranking(StrEnum):
    """The order in which entities are precomputed, by accesses before those that are predicted."""

    #: the most accesses first
    HOTTEST = "hottest"
    #: the latest access first
    LATEST = "latest"
    #: the most days with accesses first, then the latest day: as the daily filters know it
    DAYS = "days"


@lru_cache(maxsize=_REMEMBERED)
def hit_rate(sample: AccessSample, policy: Policy) -> HitRate:
    """Return the hit rate of all logged accesses, if runs score every entity. The store is empty at first."""
    return _estimate(sample, misses(sample, policy), sorted(sample.totals))


def misses(sample: AccessSample, policy: Policy, precomputed: Mask | None = None) -> Integers:
    """Return the misses of each visit of the sample. `precomputed`: whether runs score its entity; None: all."""
    entity, number = _entities(sample), np.arange(len(sample.entity))
    start = sample.since // DAY_S * DAY_S  # small numbers, which floats hold exactly
    begun, ended = sample.begun - start, sample.ended - start
    visits = _Visits(entity, begun, ended, np.where(ended > begun, sample.accesses, 1), number)
    scored = np.full(len(entity), policy.interval_s is not None) if precomputed is None else precomputed
    parts = [visits.where(~scored)]
    if policy.interval_s is not None:
        parts.append(_while_stale(visits.where(scored), policy, policy.interval_s, policy.offset_s - start))
    found = np.zeros(len(entity), np.int64)
    for part in parts:
        np.add.at(found, part.visit, _misses_in_chains(part, policy.realtime_ttl_s))
    return found


@dataclass(frozen=True)
class _Visits:
    """Visits, or parts of them, in the order of chains and time: evenly spaced accesses, the last one at `ended`.

    Within a chain, a computed answer serves until its ttl is over. `visit`: the visit that a part belongs to.
    """

    chain: Integers
    begun: Floats
    ended: Floats
    accesses: Integers
    visit: Integers

    def where(self, mask: Mask) -> _Visits:
        return _Visits(*(values[mask] for values in vars(self).values()))

    @property
    def gap(self) -> Floats:
        """Seconds between two accesses; 1 where there is only one."""
        gaps = (self.ended - self.begun) / np.maximum(self.accesses - 1, 1)
        return np.where(gaps > 0, gaps, 1.0)


def _while_stale(visits: _Visits, policy: Policy, interval_s: float, offset_s: float) -> _Visits:
    """Return the accesses at which the run's answer is too old; a new run begins a new chain."""
    fresh_s = policy.batch_ttl_s - policy.run_s  # after publishing
    if fresh_s >= interval_s:
        return visits.where(np.zeros(len(visits.chain), np.bool_))
    first, last = (
        np.floor((at - offset_s - policy.run_s) / interval_s + _EPSILON).astype(np.int64)
        for at in (visits.begun, visits.ended)
    )
    rows = np.repeat(np.arange(len(first)), last - first + 1)
    cycle = first[rows] + np.arange(len(rows)) - np.searchsorted(rows, rows)
    begun, gap = visits.begun[rows], visits.gap[rows]
    published = offset_s + policy.run_s + cycle * interval_s
    # of each visit, the first access past the age limit, and the last one before the next run is published
    low = np.ceil((published - begun) / gap - _EPSILON)
    if fresh_s >= 0:
        low = np.floor((published + fresh_s - begun) / gap + _EPSILON) + 1
    high = np.ceil((published + interval_s - begun) / gap - _EPSILON) - 1
    low, high = np.maximum(low, 0), np.minimum(high, visits.accesses[rows] - 1)
    some = high >= low
    rows, cycle, low, high, begun, gap = (each[some] for each in (rows, cycle, low, high, begun, gap))
    chain = _numbered((np.diff(visits.chain[rows]) != 0) | (np.diff(cycle) != 0), len(rows))
    accesses = (high - low).astype(np.int64) + 1
    return _Visits(chain, begun + low * gap, begun + high * gap, accesses, visits.visit[rows])


def _numbered(changes: Mask, count: int) -> Integers:
    """Return the number of the group of each of `count` rows. `changes`: where the next row is of another group."""
    return np.cumsum(np.append(False, changes))[:count]


def _entities(sample: AccessSample) -> Integers:
    """Return the number of the entity of each visit."""
    return _numbered(sample.entity[1:] != sample.entity[:-1], len(sample.entity))


def _misses_in_chains(visits: _Visits, ttl_s: float) -> Integers:
    """Return the misses of each visit, if each miss is computed and kept for `ttl_s`.

    All chains advance at the same time, each from one miss to the visit of its next one.
    """
    found = np.zeros(len(visits.chain), np.int64)
    if not len(found):
        return found
    times = visits.begun.min()
    begun, ended, gap = visits.begun - times, visits.ended - times, visits.gap
    step = np.floor(ttl_s / gap + _EPSILON).astype(np.int64) + 1
    # accesses that became one visit came at random: after a ttl, the next one came a gap later on average
    random = visits.accesses > _KNOWN
    cycle, late = np.where(random, ttl_s + gap, step * gap), np.where(random, gap, 0.0)
    # a part of a cycle is one or none, so that many visits have the right sum; hardly if gaps are short beside the ttl
    rounding = visits.visit * _GOLDEN % 1 * np.minimum(2 * gap / cycle, 1)
    span = float(ended.max()) + ttl_s + 1
    ends = visits.chain * span + ended
    first = np.flatnonzero(np.append(True, np.diff(visits.chain) != 0))
    after = np.append(first[1:], len(found))
    at, fresh_until = first, np.full(len(first), -1.0)
    while len(at):
        stale = np.where(fresh_until < begun[at], begun[at], np.minimum(fresh_until + late[at], ended[at]))
        computed = np.where(random[at] | (stale == begun[at]), stale, ended[at])
        left = ended[at] - computed
        cycles = left / cycle[at]
        # of random accesses, the last one at least is a miss if the rest is longer than a ttl
        cycles = np.where(random[at], np.maximum(cycles + rounding[at], left > ttl_s), cycles)
        more = np.floor(cycles + _EPSILON).astype(np.int64)
        found[at] += more + 1
        fresh_until = np.minimum(computed + more * cycle[at], ended[at]) + ttl_s
        at = np.maximum(np.searchsorted(ends, visits.chain[at] * span + fresh_until + _EPSILON, "right"), at + 1)
        going = at < after
        at, after, fresh_until = at[going], after[going], fresh_until[going]
    return found


def _estimate(sample: AccessSample, missed: Integers, days: Sequence[int], moved: Numbers | None = None) -> HitRate:
    """Return the hit rate of some days by the misses of each visit in them.

    `moved`: of each visit, by how much its entity moves the cutoff of a ranking, in misses.
    """
    counted = ~sample.popular
    if len(days) < len(sample.totals):
        counted = counted & (sample.begun >= min(days, default=0) * DAY_S)
    total = sum(sample.totals[day] for day in days)
    rest = total - sum(sample.popular_totals.get(day, 0) for day in days)
    # every entity of the sample counts, also one without an access on these days, or one that was always popular
    under = sample.under_threshold
    entity = _numbered(np.diff(sample.entity[under]) != 0, int(np.count_nonzero(under)))
    count, part = int(entity[-1]) + 1 if len(entity) else 0, 1 - sample.rate
    known = float(missed[sample.popular].sum())
    unsure = _UNSURE * _joined(sample, min(days, default=0) * DAY_S) / max(total, 1)
    if not total or (part and count < _LEAST):
        return HitRate(0.0, 0.0, 1.0)
    of_entity, accesses = (
        np.bincount(entity, np.where(counted, each, 0)[under], max(count, 1)) for each in (missed, sample.accesses)
    )
    if not part:
        value = 1 - (known + float(of_entity.sum())) / total
        return _within(value, unsure)
    slope, weight = _slope(accesses, of_entity)
    scaled = sample.distinct * float((of_entity - slope * accesses).mean())
    of_cutoff = 0.0 if moved is None else moved[under][np.searchsorted(entity, np.arange(count))]
    residual = of_entity - slope * accesses + of_cutoff
    residual = (residual - residual.mean()) / (1 - weight)
    # the count of entities is not exact, and without a miss or a hit nobody knows more than the rule of three
    least = 0 if of_entity.any() and (of_entity != accesses).any() else 3 / count
    spread = math.hypot(_spread(residual) * math.sqrt(part), least)
    deviation = math.hypot(sample.distinct * spread, _CONFIDENCE * _COUNT_ERROR * scaled) / total
    # more accesses are missing than chance explains: they are of hot entities, and not even the sample's hottest say
    # how many of them are misses; at most as many as of others, at least none
    missing = rest - sample.distinct * (float(accesses.mean()) + _spread(accesses - accesses.mean()) * math.sqrt(part))
    of_hot = slope * max(missing, 0.0) / 2
    value = 1 - (known + scaled + slope * rest - of_hot) / total
    return _within(value, math.hypot(deviation, unsure) + of_hot / total)


def _within(value: float, deviation: float) -> HitRate:
    return HitRate(*(min(max(each, 0.0), 1.0) for each in (value, value - deviation, value + deviation)))


def _joined(sample: AccessSample, since: float) -> float:
    """Return how many accesses since an instant are in visits whose times are not all known."""
    unknown = (sample.accesses > _KNOWN) & (sample.ended > sample.begun) & (sample.begun >= since)
    accesses = sample.accesses[unknown] - _KNOWN
    return float((accesses / np.where(sample.popular[unknown], 1.0, sample.rate)).sum())


def _spread(residuals: Numbers) -> float:
    """Return how far the mean of residuals is from the true one with 95 %.

    A few large residuals say little about their variance: it has as many degrees of freedom as its own error tells
    (Satterthwaite), and the bounds are those of Student's distribution (Cornish and Fisher's first terms).
    """
    squares = residuals**2
    variance = float(squares.mean())
    if not variance:
        return 0.0
    freedom = max(2 * len(squares) / max(float((squares**2).mean()) / variance**2 - 1, _EPSILON), _LEAST)
    quantile = _CONFIDENCE + 2.37 / freedom + 2.82 / freedom**2
    return quantile * math.sqrt(variance / len(squares))


def _slope(accesses: Numbers, missed: Numbers) -> tuple[float, Floats]:
    """Return how many misses an access more means, and the weight of each entity in its own estimate (leverage)."""
    away = accesses - accesses.mean()
    squares = float((away**2).sum())
    if not squares:
        return 0.0, np.full(len(away), 1 / len(away))
    # an access more is at most one miss more; a single heavy entity weighs at most nine tenths
    return min(max(float((away * missed).sum()) / squares, 0.0), 1.0), np.minimum(
        1 / len(away) + away**2 / squares, 0.9
    )


# --- which entities are precomputed ---


@dataclass(frozen=True)
class RankCurve:
    """Hit rates of the last days, if runs score the first entities of a ranking by the days before.

    `place`: of each visit's entity in the ranking: how many entities of all, in the sample or not, come before it.
    `days`, `last`: on how many of the earlier days that entity was asked for, and how many days before the last ones it
    was last asked for (0: the day before; -1: never). `missed`, `left`: misses of each visit, if runs do not score its
    entity, and if they do. `predicted`: the last days; `most`: the number of all entities.
    """

    sample: AccessSample
    predicted: Sequence[int]
    most: float
    place: Floats
    days: Integers
    last: Integers
    missed: Integers
    left: Integers

    def at(self, entities: float) -> HitRate:
        """Return the hit rate if so many entities are precomputed, of all there are."""
        first = self.place < entities
        # one more of the first entities in the sample pushes another one over the edge: this many misses more
        near = abs(self.place - entities) < _NEAR * self.most
        gained = (self.missed - self.left)[near] * np.where(self.sample.popular[near], 1.0, 1 / self.sample.rate)
        a_place = float(gained.sum()) / (min(entities, _NEAR * self.most) + _NEAR * self.most)
        return _estimate(self.sample, np.where(first, self.left, self.missed), self.predicted, first * a_place)

    def entities_for(self, wanted: float) -> float | None:
        """Return how many entities have to be precomputed for a hit rate; None: more than are known."""
        steps = np.append(np.unique(self.place), np.inf)
        low, high = 0, len(steps) - 1
        if self.at(float(steps[high])).value < wanted - _EPSILON:
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (
                (low, middle) if self.at(float(steps[middle])).value >= wanted - _EPSILON else (middle + 1, high)
            )
        return float(min(steps[low], self.most))


@lru_cache(maxsize=_REMEMBERED)
def rank_curve(
    sample: AccessSample, policy: Policy, ranking: Ranking, entities: float | None = None
) -> RankCurve | None:
    """Return the hit rates by rank: ranks from the earlier days, hit rates of the last third; None below two days.

    `entities`: how many there are, asked for or not; None: those of the sample.
    """
    numbers = sorted(sample.totals)
    if len(numbers) < 2:
        return None
    predicted = numbers[-max(len(numbers) // 3, 1) :]
    late = sample.begun >= predicted[0] * DAY_S
    accesses, newest, days = _before(sample, numbers[: numbers.index(predicted[0])])
    last = np.where(days > 0, predicted[0] - 1 - np.where(days > 0, newest, 0) // DAY_S, -1).astype(np.int64)
    keys = {
        Ranking.HOTTEST: (newest, accesses),
        Ranking.LATEST: (accesses, newest),
        Ranking.DAYS: (-last, days),
    }[ranking]
    # nobody can rank who was never asked for: they are spread among all others that were not
    entity, known = _entities(sample), int(np.count_nonzero(days))
    order = np.concatenate([np.lexsort(keys)[::-1][:known], _scattered(np.flatnonzero(days == 0))])
    stands_for = _stand_for(sample)[order]
    ranked = float(stands_for[:known].sum())
    most = max(entities or 0.0, float(stands_for.sum()))
    stands_for[known:] *= (most - ranked) / max(float(stands_for[known:].sum()), _EPSILON)
    place = np.empty(len(order))
    place[order] = np.cumsum(stands_for) - stands_for
    missed, left = (np.where(late, each, 0) for each in (misses(sample, policy, ~late & late), misses(sample, policy)))
    return RankCurve(sample, predicted, most, place[entity], days[entity], last[entity], np.maximum(missed, left), left)


def _before(sample: AccessSample, early: Sequence[int]) -> tuple[Floats, Floats, Integers]:
    """Return each entity's accesses on the early days, the time of its latest one (-inf: none), and days with any.

    Of an entity that is logged only while it is popular, other days are unknown: they count as its average day.
    """
    day, entity, count = (sample.begun // DAY_S).astype(np.int64), _entities(sample), sample.entities
    seen = np.unique(entity * 2**20 + day)
    is_early = day <= early[-1]
    accesses, newest = np.bincount(entity[is_early], sample.accesses[is_early], count), np.full(count, -np.inf)
    np.maximum.at(newest, entity[is_early], sample.ended[is_early])
    days = np.bincount(seen[seen % 2**20 <= early[-1]] // 2**20, minlength=count)
    partly = np.ones(count, np.bool_)
    partly[entity[sample.under_threshold]] = False
    average = np.bincount(entity, sample.accesses, count) / np.bincount(seen // 2**20, minlength=count)
    missing = np.where(partly, len(early) - days, 0)
    ends = (early[-1] + 1.0) * DAY_S
    newest = np.where(missing > 0, np.maximum(newest, ends - DAY_S / (average + 1)), newest)
    return accesses + missing * average, newest, days + missing


def _stand_for(sample: AccessSample) -> Floats:
    """Return how many entities each one of the sample stands for: one that was popular stands for itself."""
    entity, count = _entities(sample), sample.entities
    was_popular = np.bincount(entity, sample.popular, count) > 0
    others = count - int(was_popular.sum())
    each = max(sample.distinct - (count - others), others) / max(others, 1)
    return np.where(was_popular, 1.0, each)


def _scattered(entities: Integers) -> Integers:
    """Return the entities in an order that is always the same, and has nothing to do with their hashes."""
    return np.random.default_rng(len(entities)).permutation(entities)
