from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inference.monitoring.access_sample import (
    EVERYBODY,
    MOST_BYTES,
    TICK_S,
    VISITS,
    AccessSample,
    SampledDay,
    Visits,
    counts_of,
    cut,
    day_bytes,
    hottest,
    merged,
    most_asked,
    most_counted,
    visits_at,
)
from inference.monitoring.asked_filters import DAY_S

#: accesses of a day: an entity's hash (few of them), and the second
hashes = st.sampled_from([number << 58 | 77 for number in range(0, 64, 3)])
accesses = st.lists(st.tuples(hashes, st.integers(0, DAY_S - 1)), max_size=80)


def visits_of(made: list[tuple[int, int]], threshold: int = EVERYBODY) -> Visits:
    return visits_at(np.array([one for one, _ in made], np.uint64), np.array([float(at) for _, at in made]), threshold)


def together(*parts: Visits) -> Visits:
    return np.concatenate([np.zeros(0, VISITS), *parts])


@given(accesses, accesses, st.integers(0, EVERYBODY), st.integers(0, EVERYBODY))
def test_a_merge_over_processes_is_exact(
    first: list[tuple[int, int]], second: list[tuple[int, int]], threshold: int, lower: int
) -> None:
    lower, threshold = sorted((lower, threshold))
    # one process had cut what both had written, and then both went on, under the old threshold and under the new one
    early, _ = cut(together(visits_of(first, threshold), visits_of(second[::2], threshold)), lower, 1 << 20)
    both, _ = cut(together(visits_of(second[1::2], threshold), early), lower, 1 << 20)
    assert both.tolist() == merged(visits_of(first + second, lower)).tolist()


@given(accesses, st.integers(0, 40))
def test_a_cut_keeps_whole_entities_within_its_size(made: list[tuple[int, int]], room: int) -> None:
    whole = merged(visits_of(made))
    kept, threshold = cut(visits_of(made), EVERYBODY, room * VISITS.itemsize)
    assert kept.nbytes <= 0.75 * room * VISITS.itemsize
    assert kept.tolist() == [one for one in whole.tolist() if one[0] >> 16 < threshold]
    if len(whole) <= 0.75 * room:
        assert threshold == EVERYBODY


def test_hot_entities_are_counted_and_the_popular_ones_chosen_by_all_counts() -> None:
    hashes = np.array([7, 7, 7, 8, 8, 9], np.uint64) << np.uint64(16)
    counted = counts_of(hashes, 600)
    kept, fewest = hottest(np.concatenate([counted, counts_of(hashes[:1], 50)]), 2)
    assert [(int(each["begun"]) >> 16, int(each["accesses"])) for each in kept] == [(7, 350), (8, 200)]
    assert fewest == 200
    popular = visits_at(np.array([5, 5], np.uint64) << np.uint64(16), 3600.0, EVERYBODY)
    popular["accesses"] = 250
    assert most_asked(np.concatenate([kept, popular]), 2).tolist() == [5, 7]


def test_which_of_equally_hot_entities_are_counted_has_nothing_to_do_with_their_hashes() -> None:
    hashes = np.arange(10_000, dtype=np.uint64) << np.uint64(50)
    kept, _ = hottest(visits_at(hashes, 0.0, EVERYBODY), 2_000)
    assert 0.4 < (kept["begun"] < np.median(hashes)).mean() < 0.6


def test_the_days_of_a_model_take_at_most_a_megabyte() -> None:
    counts = VISITS.itemsize * np.array([(days + 1) * most_counted(days) for days in range(1, 91)])
    assert all(days * day_bytes(days) <= MOST_BYTES for days in range(1, 91))
    assert MOST_BYTES + counts[1:].max() < 2**20


@given(accesses, accesses)
def test_a_sample_has_the_accesses_under_the_lowest_threshold_of_its_days(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    lower = 1 << 46
    days = {
        20: SampledDay(visits_of(first, lower), lower, len(first)),
        21: SampledDay(visits_of(second), EVERYBODY, len(second)),
    }
    sample = AccessSample.of(days, since=20.0 * DAY_S, until=22.0 * DAY_S)
    assert (sample.rate, sample.total) == (0.25, len(first) + len(second))
    expected = sorted(
        (one >> 16, day * DAY_S + at)
        for day, made in ((20, first), (21, second))
        for one, at in made
        if one >> 16 < lower
    )
    assert sample.accesses.sum() == len(expected)
    assert sample.entities == len({one for one, _ in expected})
    assert np.all(np.diff(sample.entity.astype(np.int64)) >= 0)
    each = np.repeat(sample.begun, sample.accesses)
    assert np.allclose(np.sort(each), np.sort([at for _, at in expected]), atol=TICK_S)
