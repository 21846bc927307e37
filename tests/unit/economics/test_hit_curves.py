from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inference.economics.histories import OUTCOMES
from inference.economics.hit_curves import Ranking, hit_rate, rank_curve
from inference.economics.policies import Policy
from inference.economics.replay import Replay, Speeds
from inference.economics.traces import Requests, Trace
from inference.economics.visit_replay import misses
from inference.monitoring.access_sample import EVERYBODY, AccessSample, hottest, visits_at
from inference.monitoring.asked_filters import DAY_S
from inference.outcomes import Outcome
from inference.serving.answers import FreshnessRules

FIRST_DAY = 20_000
START = float(FIRST_DAY * DAY_S)

#: (entity, seconds since the first midnight)
Accesses = list[tuple[int, int]]
accesses = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3 * DAY_S - 1)), min_size=1, max_size=60)
ttls = st.one_of(st.integers(1, 2 * DAY_S), st.sampled_from([60, 600, 3600, DAY_S]))


def sample_of(made: Accesses, rate: float = 1.0) -> AccessSample:
    """Return a sample that holds each access as a visit of its own."""
    made = sorted(set(made))
    at = np.array([START + second for _, second in made])
    days, counts = np.unique((at // DAY_S).astype(int), return_counts=True)
    return AccessSample(
        entity=np.array([entity for entity, _ in made], np.uint64),
        begun=at,
        ended=at,
        accesses=np.ones(len(made), np.int64),
        popular=np.zeros(len(made), np.bool_),
        rate=rate,
        distinct=len({entity for entity, _ in made}) / rate,
        totals={int(day): int(count / rate) for day, count in zip(days, counts, strict=True)},
        popular_totals={},
        day_entities={},
        since=START,
        until=START + 3 * DAY_S,
    )


def part_of(
    whole: AccessSample, hashed: npt.NDArray[np.uint64], rate: float, popular: npt.NDArray[np.bool_] | None = None
) -> AccessSample:
    """Return the part of `rate` that the hashes choose, and the popular accesses. `hashed`: of each access's entity."""
    popular = np.zeros(len(hashed), np.bool_) if popular is None else popular
    kept = np.flatnonzero((hashed < int(EVERYBODY * rate)) | popular)
    kept = kept[np.argsort(hashed[kept], kind="stable")]
    days = np.unique((whole.begun[popular] // DAY_S).astype(int), return_counts=True)
    return replace(
        whole,
        entity=hashed[kept],
        begun=whole.begun[kept],
        ended=whole.ended[kept],
        accesses=whole.accesses[kept],
        popular=popular[kept],
        rate=rate,
        popular_totals=dict(zip(*(each.tolist() for each in days), strict=True)),
    )


def policy_of(
    realtime_ttl_s: float, batch_ttl_s: float = DAY_S, schedule: str | None = None, run_s: float = 0.0, **rules: float
) -> Policy:
    limits = FreshnessRules(batch_ttl_s, realtime_ttl_s, rules.get("min_recompute_interval_s", 0.0))
    return Policy("", limits, keep_s=1e6, realtime_keep_s=1e6, schedule=schedule, run_s=run_s)


def replayed_misses(made: Accesses, policy: Policy) -> int:
    """Return the requests that the simulator computes."""
    made = sorted(set(made), key=lambda access: access[1])
    requests = Requests(
        np.array([entity for entity, _ in made], np.int32), np.array([1000 * (int(START) + at) for _, at in made])
    )
    parts = Replay(Trace(requests, 5), policy, 5, Speeds(1.0, 0.0, 1.0))
    return sum(int((part.outcomes == OUTCOMES.index(Outcome.COMPUTED)).sum()) for part in parts)


@given(
    accesses,
    ttls,
    ttls,
    st.sampled_from([None, "10m", "6h", "31h", "0 3 * * *", "30 */5 * * *", "0 8,9,20 * * mon,wed"]),
    st.integers(1, 500),
    st.sampled_from([0.0, 700.0]),
)
@settings(max_examples=300)
@example([(0, 100)], 1, 1, "10m", 101, 700.0)
def test_misses_are_those_of_the_simulator(
    made: Accesses, ttl_s: int, batch_ttl_s: int, schedule: str | None, run_s: int, recompute_s: float
) -> None:
    policy = policy_of(ttl_s, batch_ttl_s, schedule, run_s, min_recompute_interval_s=recompute_s)
    found = misses(sample_of(made), policy)
    assert found.sum() == replayed_misses(made, policy)
    assert found.max() <= 1


@given(accesses, ttls, ttls, st.sampled_from(["10m", "5h", "0 3 * * *"]))
def test_a_larger_ttl_never_lowers_the_hit_rate(made: Accesses, ttl_s: int, longer_s: int, schedule: str) -> None:
    ttl_s, longer_s = sorted((ttl_s, longer_s))
    sample = sample_of(made)
    realtime = [hit_rate(sample, policy_of(ttl)).value for ttl in (ttl_s, longer_s)]
    # what is computed while a run goes on outlives the run's answer: a longer ttl can move a miss into that time
    batch = [hit_rate(sample, policy_of(600, ttl, schedule, run_s=0)).value for ttl in (ttl_s, longer_s)]
    assert realtime == sorted(realtime)
    assert batch == sorted(batch)


def visits_of(made: Accesses) -> AccessSample:
    """Return the sample with one visit for each entity."""
    whole = sample_of(made)
    first = np.flatnonzero(np.append(True, np.diff(whole.entity.astype(int)) != 0))
    after = np.append(first[1:], len(whole.entity))
    return replace(
        whole,
        entity=whole.entity[first],
        begun=whole.begun[first],
        ended=whole.begun[after - 1],
        accesses=after - first,
        popular=whole.popular[first],
    )


def test_accesses_that_became_one_visit_come_at_random_times() -> None:
    rng = np.random.default_rng(2)
    for size in (3, 5, 12, 80):
        made = [
            (entity, int(second))
            for entity in range(400)
            for second in np.append(rng.integers(3600, 5 * 3600, size - 2), (3599, 5 * 3600))
        ]
        often = policy_of(300, 900, "20m", 25)
        for policy in (policy_of(60), policy_of(900), policy_of(7000), policy_of(600, 3600, "6h", 25), often):
            true = hit_rate(sample_of(made), policy).value
            found = hit_rate(visits_of(made), policy)
            assert found.value == pytest.approx(true, abs=0.04)
            assert found.low < found.value < found.high or size == 3 or found.value == true


def test_the_bounds_hold_for_nearly_all_samples() -> None:
    rng = np.random.default_rng(5)
    made = [
        (int(entity), int(at))
        for entity, at in zip(rng.zipf(1.3, 40_000) % 3_000, rng.integers(0, 3 * DAY_S, 40_000), strict=True)
    ]
    whole = sample_of(made)
    policy, within = policy_of(3600), 0
    truth = hit_rate(whole, policy)
    assert truth.low == truth.value == truth.high
    counts = np.bincount(whole.entity.astype(int), minlength=3_000)
    for _ in range(100):
        popular = np.argsort(-counts)[: rng.integers(20, 60)]
        hashes = rng.permutation(3_000).astype(np.uint64) * np.uint64(EVERYBODY // 3_000)
        part = part_of(whole, hashes[whole.entity.astype(int)], 0.1, np.isin(whole.entity, popular))
        found = hit_rate(part, policy)
        within += found.low <= truth.value <= found.high
    assert within >= 88


def test_a_sample_ranks_entities_as_all_accesses_do() -> None:
    rng, number = np.random.default_rng(6), 20_000
    chances = np.cumsum(np.arange(1, number + 1) ** -1.2)
    made = [
        (int(entity), int(at))
        for entity, at in zip(
            np.searchsorted(chances, rng.random(40_000) * chances[-1]), rng.integers(0, 3 * DAY_S, 40_000), strict=True
        )
    ]
    whole = sample_of(made)
    day, entity = (whole.begun // DAY_S).astype(int), whole.entity.astype(int)
    # entities are popular on a day by the day before, so that of most of them only some days are known
    is_popular = np.zeros(len(day), np.bool_)
    for one in (FIRST_DAY + 1, FIRST_DAY + 2):
        before = np.bincount(entity[day == one - 1], minlength=number)
        is_popular |= (day == one) & np.isin(entity, np.argsort(-before, kind="stable")[:150])
    policy, errors = policy_of(1800, 2 * DAY_S, "24h"), []
    for _ in range(12):
        hashes = rng.permutation(number).astype(np.uint64) * np.uint64(EVERYBODY // number)
        part = part_of(whole, hashes[entity], 0.05, is_popular)
        for ranking in (Ranking.HOTTEST, Ranking.LATEST):
            found, true = (rank_curve(sample, policy, ranking, float(number)) for sample in (part, whole))
            assert found is not None
            assert true is not None
            errors.append([found.at(count).value - true.at(count).value for count in (200, 2_000, 8_000, 14_000)])
    assert np.abs(np.mean(errors, axis=0)).max() < 0.008


def test_a_day_on_which_an_entity_is_not_popular_is_no_new_beginning() -> None:
    number, hours = 400, np.arange(72)
    made = [(entity, int(3600 * hour) + entity) for entity in range(number) for hour in hours]
    whole, policy = sample_of(made), policy_of(36 * 3600)
    hashed = whole.entity * np.uint64(EVERYBODY // number)
    # popular on the first and on the last day
    is_popular = (whole.begun // DAY_S).astype(int) != FIRST_DAY + 1
    part = part_of(whole, hashed, 0.1, is_popular)
    assert hit_rate(part, policy).value == pytest.approx(hit_rate(whole, policy).value, abs=0.002)


def test_an_hours_favourites_hardly_change_a_curve_if_they_are_in_the_sample() -> None:
    rng, number = np.random.default_rng(8), 3_000
    hour = np.repeat(np.arange(72), 400)
    favourites, others = rng.permutation(number)[hour], rng.integers(0, number, len(hour))
    entity = np.where(rng.random(len(hour)) < 0.4, favourites, others)
    made = list(zip(entity.tolist(), (hour * 3600 + rng.integers(0, 3600, len(hour))).tolist(), strict=True))
    whole, policy, errors = sample_of(made), policy_of(300), []
    truth, day = hit_rate(whole, policy).value, (whole.begun // DAY_S).astype(int)
    for _ in range(20):
        hashes = rng.permutation(number).astype(np.uint64) * np.uint64(EVERYBODY // number)
        hashed, counted = hashes[whole.entity.astype(int)], {}
        for one in set(day.tolist()):
            counted[one], _ = hottest(visits_at(hashed[day == one] << np.uint64(16), 0.0, EVERYBODY), 900)
        part = part_of(whole, hashed, 0.05)
        samples = (part, replace(part, hottest=counted))
        errors.append([hit_rate(sample, policy).value - truth for sample in samples])
    without, with_counts = np.std(errors, axis=0)
    assert with_counts < 0.5 * without
    # a handful of hot entities in the sample say nothing about all others
    few = replace(part, hottest={one: visits[::6] for one, visits in counted.items()})
    assert hit_rate(few, policy) == hit_rate(part, policy)
    assert abs(np.mean(errors, axis=0)[1]) < 0.01


def test_a_sample_without_misses_still_has_a_bound() -> None:
    found = hit_rate(sample_of([(0, 5), (0, 6), (1, 7)], rate=0.001), policy_of(60, DAY_S, "12h"))
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 0.0, 1.0))
    nothing = AccessSample.empty()
    empty = hit_rate(nothing, policy_of(60))
    assert (empty.low, empty.high) == (0.0, 1.0)
    assert rank_curve(nothing, policy_of(60), Ranking.HOTTEST) is None


@pytest.mark.parametrize(("ranking", "order"), [(Ranking.HOTTEST, [1, 2, 3, 4]), (Ranking.LATEST, [3, 2, 1, 4])])
def test_entities_are_ranked_by_the_days_before(ranking: Ranking, order: list[int]) -> None:
    day = DAY_S
    earlier = [(1, 10), (1, 20), (1, 30), (2, 40), (2, day + 50), (3, day + 60)]
    asked = [(entity, 2 * day + 100 * entity) for entity in (1, 2, 3, 4)]
    curve = rank_curve(sample_of(earlier + asked), policy_of(60, 3 * day, "24h"), ranking)
    assert curve is not None
    entity = curve.sample.entity.tolist()
    assert [one for _, one in sorted(set(zip(curve.place.tolist(), entity, strict=True)))] == order
    assert [curve.at(count).value for count in range(5)] == [0, 0.25, 0.5, 0.75, 1]


@given(accesses, st.sampled_from(Ranking), ttls, ttls)
def test_more_precomputed_entities_never_lower_the_hit_rate(
    made: Accesses, ranking: Ranking, ttl_s: int, batch_ttl_s: int
) -> None:
    curve = rank_curve(sample_of(made), policy_of(ttl_s, batch_ttl_s, "6h", 300), ranking)
    if curve is not None:
        rates = [curve.at(count).value for count in range(6)]
        assert all(fewer <= more for fewer, more in pairwise(rates))
