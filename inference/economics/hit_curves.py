"""Predicts hit rates from a sample of accesses: against ttl, schedule, and the share of entities that runs score.

Each entity's accesses are replayed under a policy; a stored answer counts as fresh as in `FreshnessRules`, and a miss
is answered and stored at once. The misses of popular entities are all known; those of the sample are scaled up to all
entities, and all other accesses are hits. The sample's accesses, scaled up in the same way, are a few too many or too
few; their true number is known, and the misses are corrected by what such a difference means for them (a regression
estimator; SHARDS-adj is the same correction without the regression).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from inference.monitoring.access_sample import AccessSample
from inference.monitoring.asked_filters import DAY_S

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: normal distribution: 95 % lie within so many standard deviations
_CONFIDENCE = 1.96
#: standard error of the number of entities (HyperLogLog)
_COUNT_ERROR = 0.0081
#: a visit of more accesses counts as random, one of fewer as evenly spaced
_MANY = 16
#: a page asks for the same points every few seconds; they are of a handful of samples
_REMEMBERED = 256
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
    # many accesses that became one visit were not so even: after a ttl, the next one came a gap later on average
    cycle = np.where(visits.accesses > _MANY, ttl_s + gap, step * gap)
    span = float(ended.max()) + ttl_s + 1
    ends = visits.chain * span + ended
    first = np.flatnonzero(np.append(True, np.diff(visits.chain) != 0))
    after = np.append(first[1:], len(found))
    at, fresh_until = first, np.full(len(first), -1.0)
    while len(at):
        stale = np.floor((fresh_until - begun[at]) / gap[at] + _EPSILON).astype(np.int64) + 1
        stale = np.clip(stale, 0, visits.accesses[at] - 1)
        computed = begun[at] + stale * gap[at]
        more = np.floor((ended[at] - computed) / cycle[at] + _EPSILON).astype(np.int64)
        found[at] += more + 1
        fresh_until = computed + more * cycle[at] + ttl_s
        at = np.maximum(np.searchsorted(ends, visits.chain[at] * span + fresh_until + _EPSILON, "right"), at + 1)
        going = at < after
        at, after, fresh_until = at[going], after[going], fresh_until[going]
    return found


def _estimate(sample: AccessSample, missed: Integers, days: Sequence[int]) -> HitRate:
    """Return the hit rate of some days by the misses of each visit in them."""
    within = ~sample.popular
    if len(days) < len(sample.totals):
        within &= sample.begun >= min(days, default=0) * DAY_S
    total = sum(sample.totals[day] for day in days)
    rest = total - sum(sample.popular_totals.get(day, 0) for day in days)
    # every entity of the sample counts, also one without an access on these days
    entity = _numbered(np.diff(sample.entity[~sample.popular]) != 0, int(np.count_nonzero(~sample.popular)))
    of_each = np.where(within, missed, 0)[~sample.popular], np.where(within, sample.accesses, 0)[~sample.popular]
    count, part = int(entity[-1]) + 1 if len(entity) else 0, 1 - sample.rate
    known = float(missed[sample.popular].sum())
    if not total or (part and count < 2):
        return HitRate(0.0, 0.0, 1.0)
    of_entity, accesses = (np.bincount(entity, each, max(count, 1)) for each in of_each)
    if not part:
        value = 1 - (known + float(of_entity.sum())) / total
        return HitRate(value, value, value)
    variance = float(accesses.var(ddof=1))
    slope = float(np.cov(of_entity, accesses)[0, 1]) / variance if variance else 0.0
    slope = min(max(slope, 0.0), 1.0)  # an access more is at most one miss more
    corrected = of_entity - slope * accesses
    scaled = sample.distinct * float(corrected.mean())
    # the count of entities is not exact, and of a sample without misses nobody knows more than the rule of three
    least = 0 if of_entity.any() else 3 / _CONFIDENCE / count
    spread = math.hypot(math.sqrt(part / count) * float(corrected.std(ddof=1)), least)
    deviation = math.hypot(sample.distinct * spread, _COUNT_ERROR * scaled) / total
    value = 1 - (known + scaled + slope * rest) / total
    bounds = (value, value - _CONFIDENCE * deviation, value + _CONFIDENCE * deviation)
    return HitRate(*(min(max(each, 0.0), 1.0) for each in bounds))


# --- which entities are precomputed ---


@dataclass(frozen=True)
class RankCurve:
    """Hit rates of the last days, if runs score the first entities of a ranking by the days before.

    `place`: of each visit's entity in the ranking: how many entities of all, in the sample or not, come before it.
    `days`, `last`: on how many of the earlier days that entity was asked for, and how many days before the last ones it
    was last asked for (0: the day before; -1: never). `missed`, `left`: misses of each visit, if runs do not score its
    entity, and if they do. `predicted`: the last days.
    """

    sample: AccessSample
    predicted: Sequence[int]
    place: Floats
    days: Integers
    last: Integers
    missed: Integers
    left: Integers

    def at(self, entities: float) -> HitRate:
        """Return the hit rate if so many entities are precomputed, of all there are."""
        return _estimate(self.sample, np.where(self.place < entities, self.left, self.missed), self.predicted)

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
        return float(min(steps[low], self.sample.distinct))


@lru_cache(maxsize=_REMEMBERED)
def rank_curve(sample: AccessSample, policy: Policy, ranking: Ranking) -> RankCurve | None:
    """Return the hit rates by rank: ranks from the earlier days, hit rates of the last third; None below two days."""
    numbers = sorted(sample.totals)
    if len(numbers) < 2:
        return None
    predicted = numbers[-max(len(numbers) // 3, 1) :]
    day, entity, count = (sample.begun // DAY_S).astype(np.int64), _entities(sample), sample.entities
    late = day >= predicted[0]
    accesses, newest = np.bincount(entity[~late], sample.accesses[~late], count), np.full(count, -np.inf)
    np.maximum.at(newest, entity[~late], sample.ended[~late])
    days = np.bincount(np.unique(entity[~late] * 2**20 + day[~late]) // 2**20, minlength=count)
    last = np.where(days > 0, predicted[0] - 1 - np.where(days > 0, newest, 0) // DAY_S, -1).astype(np.int64)
    keys = {
        Ranking.HOTTEST: (newest, accesses),
        Ranking.LATEST: (accesses, newest),
        Ranking.DAYS: (-last, days),
    }[ranking]
    order = np.lexsort(keys)[::-1]
    stands_for = np.where(np.bincount(entity, sample.popular, count) > 0, 1.0, 1 / max(sample.rate, _EPSILON))
    place = np.empty(count)
    place[order] = np.cumsum(stands_for[order]) - stands_for[order]
    missed, left = (np.where(late, each, 0) for each in (misses(sample, policy, ~late & late), misses(sample, policy)))
    return RankCurve(sample, predicted, place[entity], days[entity], last[entity], np.maximum(missed, left), left)
