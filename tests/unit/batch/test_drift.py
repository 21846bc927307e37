from __future__ import annotations

import numpy as np
import pytest

from inference.batch.drift import MIN_VALUES, HistogramCounter, drift, population_stability_index


def histogram(values: np.ndarray) -> dict[int, int]:
    counter = HistogramCounter()
    counter.add({"y": values})
    return counter.to_json()["y"]


def normal(mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, 50_000).astype(np.float32)


def test_bins_lie_in_the_order_of_their_values() -> None:
    bins = [
        next(iter(histogram(np.array([value], np.float32)))) for value in (-1e30, -2, -1, -1e-30, 1e-30, 1, 2, 1e30)
    ]

    assert bins == sorted(set(bins))


def test_the_same_distribution_does_not_drift_and_one_that_moved_does() -> None:
    reference = histogram(normal())

    assert population_stability_index(reference, histogram(normal(seed=1))) < 0.01
    assert 0.8 < population_stability_index(reference, histogram(normal(1.0))) < 1.2
    assert population_stability_index(reference, histogram(np.zeros(100, np.float32))) > 5


@pytest.mark.parametrize("other", [0.0, 4.9, 5.3, -5.0])
def test_a_constant_that_changes_is_noticed(other: float) -> None:
    reference = histogram(np.full(100, 5.0, np.float32))

    assert population_stability_index(reference, reference) == 0
    assert population_stability_index(reference, histogram(np.full(100, other, np.float32))) > 5


def test_counts_add_up_over_windows_and_text_is_left_out() -> None:
    counter = HistogramCounter()
    for _ in range(3):
        counter.add({"y": np.ones((4, 2), np.float64), "n": np.arange(4), "label": np.array(["a"] * 4, dtype=object)})

    assert {name: sum(counts.values()) for name, counts in counter.to_json().items()} == {"y": 24, "n": 12}


def test_too_few_values_and_outputs_that_only_one_side_has_are_not_compared() -> None:
    many, few = histogram(normal()), histogram(normal()[: MIN_VALUES - 1])

    assert drift({"y": many, "z": many, "few": few}, {"y": many, "new": many, "few": many}) == {"y": 0.0}


def test_as_many_values_as_are_enough_are_compared() -> None:
    few = histogram(normal()[:MIN_VALUES])
    assert drift({"y": few}, {"y": few}) == {"y": 0.0}
    one_less = histogram(normal()[: MIN_VALUES - 1])
    assert drift({"y": few}, {"y": one_less}) == drift({"y": one_less}, {"y": few}) == {}


def test_each_output_is_compared_with_its_own() -> None:
    told = drift(
        {"y": histogram(normal()), "z": histogram(normal(5))}, {"y": histogram(normal(1)), "z": histogram(normal(5))}
    )
    assert (told["z"], 0.8 < told["y"] < 1.2) == (0.0, True)


def test_very_many_values_are_sampled_evenly_and_counted_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.batch.drift.MAX_VALUES", 100)
    counts = histogram(np.repeat(np.float32([1, 2]), 500))
    assert len(counts) == 2
    assert len(set(counts.values())) == 1
    assert 0 < sum(counts.values()) <= 1000
