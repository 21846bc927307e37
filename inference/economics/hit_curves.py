"""Predicts hit rates from a sample of accesses: against ttl, schedule, and the share of entities that runs score.

Each entity's accesses are replayed under a policy; a stored answer counts as fresh as in `FreshnessRules`, and a miss
is answered and stored at once. `replay` does the same for whole traces, request by request; a sample has visits, each
of many accesses, so it is replayed by visits here. A test holds both equal.
The misses of popular entities are all known; those of the sample are scaled up to all entities, and all other accesses
are hits. The sample's accesses, and the days on which its entities have some, scaled up in the same way, are a few too
many or too few; their true numbers are known, and the misses are corrected by what such a difference means for them
(a regression estimator; SHARDS-adj is the same correction by accesses, without the regression).
The bounds come from the residuals of that regression, each as it would be if its entity had not been looked at (a
jackknife): so one hot entity in the sample cannot hide how much it matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.batch.schedule import slots_between
from inference.economics.policies import Policy
from inference.monitoring.access_sample import EVERYBODY, AccessSample
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
#: the misses of an entity that is hot on a day are about a sum of these powers of its accesses
_POWERS = (0.0, 0.5, 1.0)
#: a rounding error must not move an access over the edge of a ttl
_EPSILON = 1e-9


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


@lru_cache(maxsize=_REMEMBERED)
def hit_rate(sample: AccessSample, policy: Policy) -> HitRate:
    """Return the hit rate of all logged accesses, if runs score every entity. The store is empty at first."""
    apart = _apart(sample)
    return _estimate(apart, misses(apart, policy), sorted(sample.totals))


def misses(sample: AccessSample, policy: Policy, precomputed: Mask | None = None) -> Integers:
    """Return the misses of each visit of the sample. `precomputed`: whether runs score its entity; None: all.

    A miss is computed from features of its moment. Stale answers are not served, and no worker is short.
    """
    entity, number = _entities(sample), np.arange(len(sample.entity))
    start = sample.since // DAY_S * DAY_S  # small numbers, which floats hold exactly
    begun, ended = sample.begun - start, sample.ended - start
    visits = _Visits.of(entity, begun, ended, np.where(ended > begun, sample.accesses, 1), number)
    scored = np.full(len(entity), policy.schedule is not None) if precomputed is None else precomputed
    parts = [visits.where(~scored)]
    if policy.schedule is not None and len(entity):
        run_s = policy.run_s or 0.0
        slots = slots_between(policy.schedule, policy.timezone, sample.begun.min() - run_s, sample.ended.max())
        parts.append(_by_runs(visits.where(scored), np.array(slots) - start, run_s, policy.batch_fresh_s))
    found = np.zeros(len(entity), np.int64)
    for part in parts:
        np.add.at(found, part.visit, _misses_in_chains(part, policy.realtime_fresh_s))
    return found


@lru_cache(maxsize=_REMEMBERED)
def _apart(sample: AccessSample) -> AccessSample:
    """Return the sample with the popular visits of each entity as one more entity, whose number is that much larger.

    Of the entities under the threshold, both are known: all accesses, and those that are known of every popular one.
    """
    if sample.rate == 1:
        return replace(sample, popular=np.zeros(len(sample.entity), np.bool_))
    of_sample, of_popular = np.flatnonzero(sample.under_threshold), np.flatnonzero(sample.popular)
    rows = np.concatenate([of_sample, of_popular])
    entity = sample.entity[rows]
    entity[len(of_sample) :] += np.uint64(EVERYBODY)
    return replace(
        sample,
        entity=entity,
        begun=sample.begun[rows],
        ended=sample.ended[rows],
        accesses=sample.accesses[rows],
        popular=sample.popular[rows],
    )


@dataclass(frozen=True)
class _Visits:
    """Visits, or parts of them, in the order of chains and time: evenly spaced accesses, the last one at `ended`.

    A chain is an entity. `visit`: the visit that a part belongs to. `cycle`: the slot of the run that is published then
    (-1: runs do not score the entity), and `is_fresh`, whether its answer is; `slot`: the latest slot then, which comes
    before its run is published.
    """

    chain: Integers
    begun: Floats
    ended: Floats
    accesses: Integers
    visit: Integers
    cycle: Integers
    is_fresh: Mask
    slot: Integers

    @classmethod
    def of(cls, chain: Integers, begun: Floats, ended: Floats, accesses: Integers, visit: Integers) -> _Visits:
        count = len(chain)
        cycle, slot = np.full(count, -1, np.int64), np.zeros(count, np.int64)
        return cls(chain, begun, ended, accesses, visit, cycle, np.zeros(count, np.bool_), slot)

    def where(self, mask: Mask | Integers) -> _Visits:
        return _Visits(*(values[mask] for values in vars(self).values()))

    @property
    def gap(self) -> Floats:
        """Seconds between two accesses; 1 where there is only one."""
        gaps = (self.ended - self.begun) / np.maximum(self.accesses - 1, 1)
        return np.where(gaps > 0, gaps, 1.0)


def _by_runs(visits: _Visits, slots: Floats, run_s: float, fresh_s: float) -> _Visits:
    """Return the visits in parts: a part is before or after each slot, publishing, and end of a run's freshness.

    `slots`: the instants of the runs' features, from before the first access to after the last one. `run_s`: from a
    slot until the run is published; `fresh_s`: until its answers are too old.
    """
    published = slots + run_s
    if fresh_s - run_s >= np.diff(slots).max():
        return visits.where(np.zeros(len(visits.chain), np.bool_))
    first, last = (np.searchsorted(published, at + _EPSILON, "right") - 1 for at in (visits.begun, visits.ended))
    rows = np.repeat(np.arange(len(first)), last - first + 1)
    cycle = first[rows] + np.arange(len(rows)) - np.searchsorted(rows, rows)
    low, high = published[cycle], published[cycle + 1]
    # an access at the last fresh instant is fresh
    stale = np.clip(slots[cycle] + fresh_s + 2 * _EPSILON, low, high)
    later = np.clip(slots[cycle + 1], low, high)
    edges = np.stack([low, np.minimum(stale, later), np.maximum(stale, later), high], 1)
    low, high = edges[:, :-1], edges[:, 1:]
    is_fresh, is_later = high <= stale[:, None], low >= later[:, None]
    row = np.arange(3 * len(rows)) // 3
    pieces = visits.where(rows[row])
    pieces = replace(
        pieces,
        cycle=cycle[row],
        is_fresh=is_fresh.ravel(),
        slot=cycle[row] + is_later.ravel(),
        visit=visits.visit[rows[row]],
    )
    return _cut(pieces, low.ravel(), high.ravel())


def _cut(pieces: _Visits, low: Floats, high: Floats) -> _Visits:
    """Return the accesses of each piece: those of its visit from `low` until before `high`.

    A visit's first and last access are known, the others came at random times between.
    """
    rng = np.random.default_rng(len(low))
    begun, ended, accesses = pieces.begun, pieces.ended, pieces.accesses
    has_first = (begun >= low - _EPSILON) & (begun < high - _EPSILON)
    has_last = (ended >= low - _EPSILON) & (ended < high - _EPSILON) & (accesses > 1)
    low, high = np.maximum(low, begun), np.minimum(high, ended)
    between = _drawn(rng, pieces.visit, np.maximum(accesses - _KNOWN, 0), np.maximum(high - low, 0.0))
    some = np.flatnonzero(has_first | has_last | (between > 0))
    has_first, has_last, between, low, high = (each[some] for each in (has_first, has_last, between, low, high))
    begun, ended = begun[some], ended[some]
    # the first and the last of so many random times
    chance, later = rng.random((2, len(some)))
    first = low + (high - low) * (1 - chance ** (1 / np.maximum(between, 1)))
    first = np.where(has_first, begun, np.where(between > 0, first, ended))
    rest = between - ~has_first
    last = np.where(rest > 0, first + (high - first) * later ** (1 / np.maximum(rest, 1)), first)
    return replace(
        pieces.where(some),
        begun=first,
        ended=np.where(has_last, ended, last),
        accesses=between + has_first + has_last,
    )


def _drawn(rng: np.random.Generator, visit: Integers, accesses: Integers, lengths: Floats) -> Integers:
    """Return how many of a visit's random accesses come in each of its pieces, which have these lengths."""
    found = np.zeros(len(visit), np.int64)
    at = np.flatnonzero(np.append(True, np.diff(visit) != 0)[: len(visit)])
    after = np.append(at[1:], len(visit))
    left, rest = accesses[at], np.add.reduceat(lengths, at) if len(at) else lengths
    while True:
        going = (at < after) & (left > 0)
        at, after, left, rest = at[going], after[going], left[going], rest[going]
        if not len(at):
            return found
        found[at] = rng.binomial(left, np.clip(lengths[at] / np.maximum(rest, _EPSILON), 0, 1))
        at, left, rest = at + 1, left - found[at], rest - lengths[at]


def _numbered(changes: Mask, count: int) -> Integers:
    """Return the number of the group of each of `count` rows. `changes`: where the next row is of another group."""
    return np.cumsum(np.append(False, changes))[:count]


def _entities(sample: AccessSample) -> Integers:
    """Return the number of the entity of each visit."""
    return _numbered(sample.entity[1:] != sample.entity[:-1], len(sample.entity))


def _misses_in_chains(visits: _Visits, ttl_s: float) -> Integers:
    """Return the misses of each visit, if each miss is computed and kept for `ttl_s`.

    What is computed counts until a run of a later slot is published, also if that is too old; while a run's answer is
    fresh, so is what is newer. All chains advance at the same time, each from one miss to the visit of its next one.
    """
    found = np.zeros(len(visits.chain), np.int64)
    if not len(found):
        return found
    times = visits.begun.min()
    begun, ended, gap, cycle = visits.begun - times, visits.ended - times, visits.gap, visits.cycle
    step = np.floor(ttl_s / gap + _EPSILON).astype(np.int64) + 1
    # accesses that became one visit came at random: after a ttl, the next one came a gap later on average
    random = visits.accesses > _KNOWN
    period, late = np.where(random, ttl_s + gap, step * gap), np.where(random, gap, 0.0)
    # a part of a period is one or none, so that many visits have the right sum; hardly if gaps are short beside the ttl
    rounding = visits.visit * _GOLDEN % 1 * np.minimum(2 * gap / period, 1)
    span, cycles = float(ended.max()) + ttl_s + 1, int(cycle.max()) + 2
    ends, runs = visits.chain * span + ended, visits.chain * cycles + cycle
    first = np.flatnonzero(np.append(True, np.diff(visits.chain) != 0))
    after = np.append(first[1:], len(found))
    next_stale = _next_true(~visits.is_fresh)
    at, fresh_until, computed_in = first, np.full(len(first), -1.0), np.full(len(first), -2)
    while True:
        at = np.where(visits.is_fresh[at], next_stale[at], at)
        going = at < after
        at, after, fresh_until, computed_in = at[going], after[going], fresh_until[going], computed_in[going]
        if not len(at):
            return found
        # a run's answer is newer than what was computed
        fresh_until = np.where(cycle[at] > computed_in, -1.0, fresh_until)
        stale = np.where(fresh_until < begun[at], begun[at], np.minimum(fresh_until + late[at], ended[at]))
        computed = np.where(random[at] | (stale == begun[at]), stale, ended[at])
        left = ended[at] - computed
        periods = left / period[at]
        # of random accesses, the last one at least is a miss if the rest is longer than a ttl
        periods = np.where(random[at], np.maximum(periods + rounding[at], left > ttl_s), periods)
        more = np.floor(periods + _EPSILON).astype(np.int64)
        found[at] += more + 1
        fresh_until = np.minimum(computed + more * period[at], ended[at]) + ttl_s
        computed_in, chain = visits.slot[at], visits.chain[at]
        stale_at = np.maximum(np.searchsorted(ends, chain * span + fresh_until + _EPSILON, "right"), at + 1)
        replaced_at = np.searchsorted(runs, chain * cycles + np.minimum(computed_in, cycles - 2), "right")
        at = np.minimum(stale_at, np.maximum(replaced_at, at + 1))
        going = at < after
        at, after, fresh_until, computed_in = at[going], after[going], fresh_until[going], computed_in[going]


def _next_true(mask: Mask) -> Integers:
    """Return of each place the next one that is true, itself included; the length if there is none."""
    places = np.where(mask, np.arange(len(mask)), len(mask))
    return np.minimum.accumulate(places[::-1])[::-1]


def _estimate(sample: AccessSample, missed: Integers, days: Sequence[int], moved: Numbers | None = None) -> HitRate:
    """Return the hit rate of some days by the misses of each visit in them.

    `moved`: of each entity under the threshold, by how much it moves the cutoff of a ranking, in misses.
    """
    total = sum(sample.totals[day] for day in days)
    unsure = _UNSURE * _joined(sample, min(days, default=0) * DAY_S) / max(total, 1)
    known = float(missed[_of_popular(sample)].sum())
    others = _Others.of(sample, missed, days)
    if not total or (sample.rate < 1 and len(others.missed) < _LEAST):
        return HitRate(0.0, 0.0, 1.0)
    if sample.rate == 1:
        return _within(1 - (known + float(others.missed.sum())) / total, unsure)
    slopes, weight = _slopes(others.facts, others.missed)
    residual = others.missed - others.facts @ slopes
    scaled = sample.distinct * float(residual.mean())
    if moved is not None:
        residual = residual + moved
    residual = (residual - residual.mean()) / (1 - weight)
    # the count of entities is not exact, and without a miss or a hit nobody knows more than the rule of three
    accesses, part = others.facts[:, 0], math.sqrt(1 - sample.rate)
    least = 0 if others.missed.any() and (others.missed != accesses).any() else 3 / len(accesses)
    spread = math.hypot(_spread(residual) * part, least)
    deviation = math.hypot(sample.distinct * spread, _CONFIDENCE * _COUNT_ERROR * scaled) / total
    # more accesses are missing than chance explains: they are of hot entities, and not even the sample's hottest say
    # how many of them are misses; perhaps none
    missing = others.totals[0] - sample.distinct * (float(accesses.mean()) + _spread(accesses - accesses.mean()) * part)
    of_hot = min(max(slopes[0], 0.0), 1.0) * max(missing, 0.0) / total
    value = 1 - (known + scaled + float(others.totals @ slopes)) / total
    return _within(value, math.hypot(deviation, unsure), of_hot)


@dataclass(frozen=True)
class _Others:
    """What is known of the entities under the threshold on some days, while they were not popular.

    `missed`: misses by entity; `facts`: what else is known of each, and, in `totals`, of all entities together, in the
    sample or not: accesses, days with accesses if those are counted, and three sums over the days on which the entity
    was among the hottest. Shapes: (entities,), (entities, facts), (facts,).
    """

    missed: Floats
    facts: Floats
    totals: Floats

    @classmethod
    def of(cls, sample: AccessSample, missed: Integers, days: Sequence[int]) -> _Others:
        # every entity of the sample counts, also one without an access on these days, or one that was always popular
        since, day = min(days, default=0), (sample.begun // DAY_S).astype(np.int64)
        facts = [np.where(day >= since, sample.accesses, 0)]
        totals = [float(sum(sample.totals[one] - sample.popular_totals.get(one, 0) for one in days))]
        if len(day) and all(one in sample.day_entities for one in days):
            facts.append((day >= since) & np.append(True, (np.diff(sample.entity) != 0) | (np.diff(day) != 0)))
            popular = int(np.count_nonzero(facts[-1] & _of_popular(sample)))
            totals.append(max(sum(sample.day_entities[one] for one in days) - popular, 0.0))
        # what the popular visits alone say of all popular entities is off by as much as it is for those of the sample
        differences = [_differences(sample, each) for each in (np.where(day >= since, missed, 0), *facts)]
        hot = list(cls._hot(sample, days))
        return cls(
            differences[0],
            np.stack([*differences[1:], *[each for each, _ in hot]], 1),
            np.array([*totals, *[total for _, total in hot]], np.float64),
        )

    @staticmethod
    def _hot(sample: AccessSample, days: Sequence[int]) -> Iterator[tuple[Floats, float]]:
        """Yield what is known of the hottest entities of the days, by entity and in all.

        The misses of so many accesses are about a sum of powers of their number.
        """
        hottest = [sample.hottest[day] for day in days if day in sample.hottest]
        entities = np.unique(sample.entity[~_of_popular(sample)])
        if not hottest or not len(entities):
            return
        counted = np.concatenate(hottest)
        entity = counted["begun"] >> np.uint64(16)
        place = np.searchsorted(entities, entity)
        is_in = entities.take(place, mode="clip") == entity
        for power in _POWERS if len(counted) else ():
            worth = counted["accesses"].astype(np.float64) ** power
            yield np.bincount(place[is_in], worth[is_in], len(entities)), float(worth.sum())


def _of_popular(sample: AccessSample) -> Mask:
    """Tell of each visit whether it is one of a popular entity, apart from the sample."""
    found: Mask = sample.entity >= np.uint64(EVERYBODY)
    return found


def _differences(sample: AccessSample, of_visit: Numbers) -> Floats:
    """Return the sums by entity under the threshold: of its visits, less those of its popular visits alone."""
    is_popular = _of_popular(sample)
    entities = np.unique(sample.entity[~is_popular])
    place = np.searchsorted(entities, sample.entity & np.uint64(EVERYBODY - 1))
    counted = sample.entity & np.uint64(EVERYBODY - 1) < np.uint64(round(sample.rate * EVERYBODY))
    signed = of_visit * np.where(is_popular, -1, 1)
    sums: Floats = np.bincount(place[counted], signed[counted], len(entities)).astype(np.float64)
    return sums


def _within(value: float, deviation: float, more: float = 0.0) -> HitRate:
    return HitRate(*(min(max(each, 0.0), 1.0) for each in (value, value - deviation, value + deviation + more)))


def _joined(sample: AccessSample, since: float) -> float:
    """Return how many accesses since an instant are in visits whose times are not all known."""
    unknown = (sample.accesses > _KNOWN) & (sample.ended > sample.begun) & (sample.begun >= since)
    accesses = sample.accesses[unknown] - _KNOWN
    weight = np.where(sample.popular[unknown], _of_popular(sample)[unknown], 1 / sample.rate)
    return float((accesses * weight).sum())


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


def _slopes(facts: Floats, missed: Floats) -> tuple[Floats, Floats]:
    """Return how many misses one more of each fact means, and the weight of each entity in its own estimate (leverage).

    Shapes: (facts,) and (entities,).
    """
    away = facts - facts.mean(axis=0)
    inverse = np.linalg.pinv(away.T @ away)
    slopes = inverse @ (away.T @ missed)
    # a single heavy entity weighs at most nine tenths
    return slopes, np.minimum(1 / len(away) + ((away @ inverse) * away).sum(axis=1), 0.9)


# --- which entities are precomputed ---


@dataclass(frozen=True)
class RankCurve:
    """Hit rates of the last days, if runs score the first entities of a ranking by the days before.

    `place`: of each visit's entity in the ranking: how many entities of all, in the sample or not, come before it.
    `weight`: how many entities it stands for. `missed`, `left`: misses of each visit, if runs do not score its entity,
    and if they do. `predicted`: the last days; `most`: the number of all entities.
    """

    sample: AccessSample
    predicted: Sequence[int]
    most: float
    place: Floats
    weight: Floats
    missed: Integers
    left: Integers

    def at(self, entities: float) -> HitRate:
        """Return the hit rate if so many entities are precomputed, of all there are."""
        first = self.place < entities
        # one more of the first entities in the sample pushes another one over the edge: this many misses more
        near = abs(self.place - entities) < _NEAR * self.most
        gained = ((self.missed - self.left) * self.weight)[near]
        a_place = float(gained.sum()) / (min(entities, _NEAR * self.most) + _NEAR * self.most)
        moved = a_place * _differences(self.sample, first * _is_first(self.sample))
        return _estimate(self.sample, np.where(first, self.left, self.missed), self.predicted, moved)


@lru_cache(maxsize=_REMEMBERED)
def rank_curve(
    sample: AccessSample, policy: Policy, ranking: Ranking, entities: float | None = None
) -> RankCurve | None:
    """Return the hit rates by rank: ranks from the earlier days, hit rates of the last half; None below two days.

    `entities`: how many there are, asked for or not; None: those of the sample.
    """
    numbers = sorted(sample.totals)
    if len(numbers) < 2:
        return None
    sample, predicted = _apart(sample), numbers[-(len(numbers) // 2) :]
    late = sample.begun >= predicted[0] * DAY_S
    accesses, newest, days = _before(sample, numbers[: numbers.index(predicted[0])])
    keys = (newest, accesses) if ranking is Ranking.HOTTEST else (accesses, newest)
    # nobody can rank who was never asked for: they are spread among all others that were not
    entity, known = _entities(sample), int(np.count_nonzero(days))
    order = np.concatenate([np.lexsort(keys)[::-1][:known], _scattered(np.flatnonzero(days == 0))])
    weight = _weights(sample)
    stands_for = weight[order]
    ranked = float(stands_for[:known].sum())
    most = max(entities or 0.0, float(stands_for.sum()))
    stands_for[known:] *= (most - ranked) / max(float(stands_for[known:].sum()), _EPSILON)
    place = np.empty(len(order))
    before = np.cumsum(stands_for) - stands_for
    place[order] = (np.maximum.accumulate(before) + np.minimum.accumulate(before[::-1])[::-1]) / 2
    missed, left = (np.where(late, each, 0) for each in (misses(sample, policy, ~late & late), misses(sample, policy)))
    return RankCurve(sample, predicted, most, place[entity], weight[entity], np.maximum(missed, left), left)


def _before(sample: AccessSample, early: Sequence[int]) -> tuple[Floats, Floats, Integers]:
    """Return each entity's accesses on the early days, the time of its latest one (-inf: none), and days with any.

    Of an entity that is logged only while it is popular, other days are unknown: they count as its average day, with
    accesses at random times.
    """
    day, entity, count = (sample.begun // DAY_S).astype(np.int64), _entities(sample), sample.entities
    seen = np.unique(entity * 2**20 + day)
    is_early = day <= early[-1]
    accesses, newest = np.bincount(entity[is_early], sample.accesses[is_early], count), np.full(count, -np.inf)
    np.maximum.at(newest, entity[is_early], sample.ended[is_early])
    days = np.bincount(seen[seen % 2**20 <= early[-1]] // 2**20, minlength=count)
    partly = np.zeros(count, np.bool_)
    partly[entity[_of_popular(sample)]] = True
    average = np.bincount(entity, sample.accesses, count) / np.bincount(seen // 2**20, minlength=count)
    missing = np.where(partly, len(early) - days, 0)
    is_last = day == early[-1]
    by_chance = np.maximum(newest, _latest_by_chance(sample.begun[is_last], average))
    newest = np.where(partly & (np.bincount(entity, is_last, count) == 0), by_chance, newest)
    return accesses + missing * average, newest, days + missing


def _latest_by_chance(at: Floats, accesses: Floats) -> Floats:
    """Return when each entity may have had the latest of its accesses of a day. `at`: the times of others (any order).

    The latest of so many is before a time by chance (Poisson), so it is drawn: evenly, and always the same.
    """
    if not len(at):
        return np.full(len(accesses), -np.inf)
    chance = (np.arange(1, len(accesses) + 1) * _GOLDEN) % 1
    place = (1 + np.log(chance) / accesses) * len(at)
    return np.where(place < 0, -np.inf, np.sort(at)[np.maximum(place, 0).astype(np.intp)])


def _weights(sample: AccessSample) -> Floats:
    """Return how many entities each one of the sample stands for.

    Popular visits alone stand for their entity, unless it is known better, as one of the sample.
    """
    entity = sample.entity[np.flatnonzero(_is_first(sample))]
    is_popular, known = entity >= np.uint64(EVERYBODY), entity & np.uint64(EVERYBODY - 1)
    each = sample.distinct / max(int(np.count_nonzero(~is_popular)), 1)
    is_known_better = known < np.uint64(round(sample.rate * EVERYBODY))
    return np.where(is_popular, 1.0 - each * is_known_better, each)


def _is_first(sample: AccessSample) -> Mask:
    """Tell of each visit whether it is the first one of its entity."""
    return np.append(True, np.diff(sample.entity) != 0)[: len(sample.entity)]


def _scattered(entities: Integers) -> Integers:
    """Return the entities in an order that is always the same, and has nothing to do with their hashes."""
    return np.random.default_rng(len(entities)).permutation(entities)
