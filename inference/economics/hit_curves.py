"""Predicts hit rates from a sample of accesses: against ttl, schedule, and the share of entities that runs score.

Each entity's accesses are replayed under a policy; a stored answer counts as fresh as in `FreshnessRules`, and a miss
is answered and stored at once. Hits of popular entities, few of which are in a sample, would make the estimate noisy;
misses do not, since even a popular entity has few. So the misses of the sample are scaled up to all entities, and all
other accesses are hits: the numbers of all accesses and entities are known. This is the correction that SHARDS calls
SHARDS-adj, made with the number of entities too.
"""

from __future__ import annotations

import math
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
Mask = npt.NDArray[np.bool_]

#: normal distribution: 95 % lie within so many standard deviations
_CONFIDENCE = 1.96
#: standard error of the number of entities (HyperLogLog)
_COUNT_ERROR = 0.0081
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
    return _estimate(sample, _by_entity(sample, misses(sample, policy)), sample.total)


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
    span = float(ended.max()) + ttl_s + 1
    ends = visits.chain * span + ended
    first = np.flatnonzero(np.append(True, np.diff(visits.chain) != 0))
    after = np.append(first[1:], len(found))
    at, fresh_until = first, np.full(len(first), -1.0)
    while len(at):
        stale = np.floor((fresh_until - begun[at]) / gap[at] + _EPSILON).astype(np.int64) + 1
        stale = np.clip(stale, 0, visits.accesses[at] - 1)
        times_computed = (visits.accesses[at] - 1 - stale) // step[at] + 1
        found[at] += times_computed
        fresh_until = begun[at] + (stale + (times_computed - 1) * step[at]) * gap[at] + ttl_s
        at = np.maximum(np.searchsorted(ends, visits.chain[at] * span + fresh_until + _EPSILON, "right"), at + 1)
        going = at < after
        at, after, fresh_until = at[going], after[going], fresh_until[going]
    return found


def _by_entity(sample: AccessSample, of_visits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the sums over each entity's visits."""
    return np.bincount(_entities(sample), of_visits, sample.entities).astype(np.int64)


def _estimate(sample: AccessSample, missed: npt.NDArray[Any], total: int) -> HitRate:
    """Return the hit rate by the misses of each entity in the sample; `total`: of all accesses that are predicted."""
    count, part = len(missed), 1 - sample.rate
    if not total or count < (2 if part else 1):
        return HitRate(0.0, 0.0, 1.0)
    scale, deviation = sample.distinct / total, 0.0
    share = scale * float(missed.mean())
    if part:
        deviation = scale * math.sqrt(part / count) * float(missed.std(ddof=1))
        # the count of entities is not exact, and of a sample without misses nobody knows more than the rule of three
        least = 0 if missed.any() else 3 / _CONFIDENCE * scale / count
        deviation = math.hypot(deviation, _COUNT_ERROR * share, least)
    bounds = (1 - share, 1 - share - _CONFIDENCE * deviation, 1 - share + _CONFIDENCE * deviation)
    return HitRate(*(min(max(each, 0.0), 1.0) for each in bounds))


# --- which entities are precomputed ---


@dataclass(frozen=True)
class RankCurve:
    """Hit rates of the last days, if runs score the first entities of a ranking by the days before.

    `missed`: the misses that precomputing an entity avoids; `days`, `last`: on how many of the earlier days it was
    asked for, and how many days before the last ones it was last asked for (0: the day before; -1: never). All have one
    value for each entity of the sample, in the order of the ranking. `left`: misses that precomputing avoids nowhere.
    """

    sample: AccessSample
    total: int
    missed: Integers
    left: Integers
    days: Integers
    last: Integers

    def at(self, count: int) -> HitRate:
        """Return the hit rate if the first `count` entities of the sample are precomputed."""
        kept = self.missed.copy()
        kept[:count] = 0
        return _estimate(self.sample, kept + self.left, self.total)

    def at_share(self, share: float, entities: float) -> HitRate:
        """Return the hit rate if this share (0 to 1) of all `entities` is precomputed."""
        return self.at(min(round(share * entities * self.sample.rate), len(self.missed)))

    def count_for(self, wanted: float) -> int | None:
        """Return how many entities of the sample reach this hit rate; None: not even all of them."""
        left = self.left.sum() + self.missed.sum() - np.append(0, np.cumsum(self.missed))
        rates = 1 - left * (self.sample.distinct / max(len(self.missed), 1) / self.total)
        enough = np.flatnonzero(rates >= wanted - _EPSILON)
        return int(enough[0]) if len(enough) else None


@lru_cache(maxsize=_REMEMBERED)
def rank_curve(sample: AccessSample, policy: Policy, ranking: Ranking) -> RankCurve | None:
    """Return the hit rates by rank: ranks from the earlier days, hit rates of the last third; None below two days."""
    numbers = sorted(sample.totals)
    if len(numbers) < 2:
        return None
    first = numbers[-max(len(numbers) // 3, 1)]
    day = (sample.begun // DAY_S).astype(np.int64)
    late = day >= first
    counted = _by_entity(sample, np.where(late, misses(sample, policy, np.zeros(len(day), np.bool_)), 0))
    left = _by_entity(sample, np.where(late, misses(sample, policy), 0))
    entity = _entities(sample)
    earlier, count = ~late, len(counted)
    accesses = np.bincount(entity[earlier], sample.accesses[earlier], count)
    newest = np.full(count, -np.inf)
    np.maximum.at(newest, entity[earlier], sample.ended[earlier])
    days = np.bincount(np.unique(entity[earlier] * 2**20 + day[earlier]) // 2**20, minlength=count)
    last = np.where(days > 0, first - 1 - np.where(days > 0, newest, 0) // DAY_S, -1).astype(np.int64)
    keys = {
        Ranking.HOTTEST: (newest, accesses),
        Ranking.LATEST: (accesses, newest),
        Ranking.DAYS: (-last, days),
    }[ranking]
    order = np.lexsort(keys)[::-1]
    total = sum(sample.totals[number] for number in numbers if number >= first)
    avoided = np.maximum(counted - left, 0)
    return RankCurve(sample, total, avoided[order], (counted - avoided)[order], days[order], last[order])
