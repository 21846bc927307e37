"""Predicts hit rates from a sample of accesses: against ttl, schedule, and the share of entities that runs score.

The accesses of a sample of entities are replayed (`visit_replay`), and their misses are scaled up to all entities; all
other accesses are hits. Three things make that exact enough:
- Of the popular entities, the accesses while they were popular are logged, all of them. Their misses are counted as if
  there were no other accesses. How far that is off is known for those of them in the sample, and scaled up (a
  difference estimator: Saerndal, Swensson and Wretman, 1992).
- The sample's accesses, the days on which its entities have some, and those that are hot on a day are, scaled up, a few
  too many or too few. Their true numbers are known, and the misses are corrected by what such a difference means for
  them (a regression estimator; SHARDS-adj is the same correction by accesses, without the regression).
- What is known of a ranking by the popular accesses is corrected in the same way.
The bounds come from the residuals of that regression, each as it would be if its entity had not been looked at (a
jackknife): so one hot entity in the sample cannot hide how much it matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

import numpy as np

from inference.economics.policies import Policy
from inference.economics.visit_replay import (
    EPSILON,
    GOLDEN,
    KNOWN,
    Floats,
    Integers,
    Mask,
    Numbers,
    entities_of,
    misses,
)
from inference.monitoring.access_sample import EVERYBODY, AccessSample
from inference.monitoring.asked_filters import DAY_S

#: normal distribution: 95 % lie within so many standard deviations
_CONFIDENCE = 1.96
#: standard error of the number of entities (HyperLogLog)
_COUNT_ERROR = 0.0081
#: of accesses with unknown times, the share that may be misses or hits by mistake; half of that was measured
_UNSURE = 0.01
#: a cutoff's effect is measured on this share of all entities, to both sides of it
_NEAR = 0.05
#: a page asks for the same points every few seconds; they are of a handful of samples
_REMEMBERED = 256
#: fewer entities in a sample say nothing about all others
_LEAST = 2
#: the misses of an entity that is hot on a day are about a sum of these powers of its accesses
_POWERS = (0.0, 0.5, 1.0)
#: of fewer hot entities, the sample does not tell these sums: they would be extrapolated
_LEAST_HOT = 45


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
        is_enough = len(np.unique(place[is_in])) >= _LEAST_HOT
        for power in _POWERS if is_enough else ():
            worth = counted["accesses"].astype(np.float64) ** power
            yield np.bincount(place[is_in], worth[is_in], len(entities)).astype(np.float64), float(worth.sum())


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
    unknown = (sample.accesses > KNOWN) & (sample.ended > sample.begun) & (sample.begun >= since)
    accesses = sample.accesses[unknown] - KNOWN
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
    freedom = max(2 * len(squares) / max(float((squares**2).mean()) / variance**2 - 1, EPSILON), _LEAST)
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
    entity, known = entities_of(sample), int(np.count_nonzero(days))
    order = np.concatenate([np.lexsort(keys)[::-1][:known], _scattered(np.flatnonzero(days == 0))])
    weight = _weights(sample)
    stands_for = weight[order]
    ranked = float(stands_for[:known].sum())
    most = max(entities or 0.0, float(stands_for.sum()))
    stands_for[known:] *= (most - ranked) / max(float(stands_for[known:].sum()), EPSILON)
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
    day, entity, count = (sample.begun // DAY_S).astype(np.int64), entities_of(sample), sample.entities
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
    chance = (np.arange(1, len(accesses) + 1) * GOLDEN) % 1
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
