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
