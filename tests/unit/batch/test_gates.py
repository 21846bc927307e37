from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from inference.batch.gates import (
    MIN_VALUES,
    BadRows,
    HistogramCounter,
    RunFacts,
    check_gates,
    check_partial_gates,
    failed_gates,
    measure_drift,
    merge_bad_rows,
    population_stability_index,
)


def failed(**facts: Any) -> dict[str, str]:
    return {gate.name: gate.detail for gate in check_gates(RunFacts(**facts)) if not gate.passed}


def test_a_whole_run_passes_every_gate() -> None:
    gates = check_gates(RunFacts(rows=100, stored=100, current=100))

    assert failed_gates(gates) == ""
    assert [gate.name for gate in gates] == [
        "coverage",
        "duplicates",
        "quarantine",
        "finite",
        "size",
        "drift",
        "version",
    ]


def test_a_missing_entity_fails_coverage() -> None:
    assert failed(rows=100, stored=99, distinct=100) == {"coverage": "99 of 100 entities are stored (1 missing)"}


def test_an_entity_that_the_source_lacks_fails_coverage() -> None:
    assert failed(rows=100, stored=101, distinct=100) == {"coverage": "101 of 100 entities are stored (1 too many)"}


def test_repeated_ids_are_named_and_are_no_missing_entities() -> None:
    assert failed(rows=100, stored=98, distinct=98, duplicates=("a", "b")) == {
        "duplicates": "2 rows repeat an entity id, such as 'a', 'b': make the ids unique"
    }


def test_a_row_that_cannot_be_scored_is_named_with_its_feature() -> None:
    bad = (BadRows("distance", "missing, and the feature has no default", 3, ("x", "y")),)

    detail = failed(rows=100, stored=97, quarantined=3, bad_rows=bad)["quarantine"]

    assert detail == (
        "3 of 100 rows cannot be scored (max_quarantined_fraction is 0): "
        "'distance' missing, and the feature has no default in 3 rows (such as 'x', 'y')"
    )


def test_a_prediction_that_is_not_finite_fails_the_run() -> None:
    assert set(failed(rows=10, stored=9, non_finite=1)) == {"finite"}


@pytest.mark.parametrize(("current", "passes"), [(None, True), (0, True), (100, True), (200, True), (201, False)])
def test_a_truncated_source_covers_itself_but_not_what_serves(current: int | None, passes: bool) -> None:
    assert ("size" not in failed(rows=100, stored=100, current=current, min_size_ratio=0.5)) is passes


def test_a_version_that_was_rolled_back_does_not_come_back_with_a_run() -> None:
    assert failed(rows=1, stored=1, model_version=4, held=True) == {
        "version": "model version 4 is held back since a rollback"
    }


def test_reasons_are_merged_over_chunks_with_a_few_examples() -> None:
    parts = [
        BadRows("a", "r", 4, ("1", "2", "3")),
        BadRows("b", "r", 9),
        BadRows("a", "r", 7, ("4", "5", "6")),
    ]

    assert merge_bad_rows(parts) == (BadRows("a", "r", 11, ("1", "2", "3", "4", "5")), BadRows("b", "r", 9))


def test_each_gate_names_only_its_own_rows() -> None:
    bad = (BadRows("x", "missing", 3, ("a",)), BadRows(None, "output 'y' is not a finite number", 1, ("b",), True))

    told = failed(rows=100, stored=96, quarantined=3, non_finite=1, bad_rows=bad)

    assert "missing" in told["quarantine"]
    assert "finite" not in told["quarantine"]
    assert "not a finite number" in told["finite"]
    assert "missing" not in told["finite"]


@pytest.mark.parametrize(("fraction", "passes"), [(0.0, False), (0.039, False), (0.04, True), (1.0, True)])
def test_rows_left_out_for_whatever_reason_share_the_fraction_allowed(fraction: float, passes: bool) -> None:
    told = failed(rows=100, stored=96, quarantined=3, non_finite=1, max_quarantined_fraction=fraction)

    assert (set(told) == set()) is passes
    assert passes or set(told) == {"quarantine", "finite"}


def test_predictions_that_moved_away_fail_and_name_the_output() -> None:
    assert failed(rows=1, stored=1, drift={"a": 0.2, "b": 1.5}, max_drift=1.0) == {
        "drift": "output 'b' moved away from what serves now: population stability index a 0.2, b 1.5 (max_drift is 1)"
    }
    assert failed(rows=1, stored=1, drift={"a": 0.2, "b": 1.0}, max_drift=1.0) == {}


# --- the value itself ---


@pytest.mark.parametrize(("left_out", "passes"), [(9, True), (10, True), (11, False)])
def test_up_to_the_fraction_allowed_rows_may_be_left_out(left_out: int, passes: bool) -> None:
    for kind in ({"quarantined": left_out}, {"non_finite": left_out}, {"quarantined": 4, "non_finite": left_out - 4}):
        told = failed(rows=100, stored=100 - left_out, max_quarantined_fraction=0.1, **kind)
        assert (told == {}) is passes


@pytest.mark.parametrize(("stored", "passes"), [(49, False), (50, True), (51, True)])
def test_a_run_of_half_the_size_is_large_enough(stored: int, passes: bool) -> None:
    told = failed(rows=stored, stored=stored, current=100, min_size_ratio=0.5)
    assert list(told) == ([] if passes else ["size"])
    assert failed(rows=stored, stored=stored, current=0, min_size_ratio=0.5) == {}


@pytest.mark.parametrize(("index", "passes"), [(0.999, True), (1.0, True), (1.001, False)])
def test_the_largest_drift_of_several_outputs_decides(index: float, passes: bool) -> None:
    told = failed(rows=1, stored=1, drift={"a": 0.1, "b": index, "c": 0.2}, max_drift=1.0)
    assert list(told) == ([] if passes else ["drift"])
    if not passes:
        assert "output 'b' moved away" in told["drift"]
        assert "a 0.1, b 1, c 0.2" in told["drift"]


@pytest.mark.parametrize(
    ("facts", "needed"),
    [({"stored": 90}, False), ({"stored": 91}, True), ({"stored": 89}, True), ({"stored": 90, "counted": False}, True)],
)
def test_ids_are_counted_again_only_where_the_sums_differ_or_nobody_counted(
    facts: dict[str, Any], needed: bool
) -> None:
    assert RunFacts(rows=100, quarantined=7, non_finite=3, **facts).needs_recount is needed


def test_rows_of_one_reason_are_added_up_with_a_few_examples_and_the_most_frequent_come_first() -> None:
    parts = [
        BadRows("x", "missing", 2, ("a", "b")), BadRows(None, "bad id", 9, ("1",)),
        BadRows("x", "missing", 5, ("c", "d", "e", "f")), BadRows("x", "missing", 1, ("z",), non_finite=True),
    ]  # fmt: skip
    assert merge_bad_rows(parts) == (
        BadRows(None, "bad id", 9, ("1",)),
        BadRows("x", "missing", 7, ("a", "b", "c", "d", "e")),
        BadRows("x", "missing", 1, ("z",), non_finite=True),
    )


def test_features_must_be_stored_of_exactly_the_rows_that_are() -> None:
    assert failed(rows=9, stored=9, features=9) == {}
    for features in (8, 10):
        told = f"the features of {features} entities are stored, and 9 predictions"
        assert failed(rows=9, stored=9, features=features) == {"features": told}


@pytest.mark.parametrize(
    ("rule", "current_rule", "stored", "outside", "current", "current_outside", "passes"),
    [
        ("hit rate 0.9", "all", 10, 90, 100, 0, True),
        ("hit rate 0.9", "all", 10, 39, 100, 0, False),
        ("all", "hit rate 0.9", 100, 0, 10, 90, True),
        ("all", "hit rate 0.9", 49, 0, 10, 90, False),
        ("hit rate 0.9", "hit rate 0.9", 5, 95, 10, 90, True),
        ("hit rate 0.9", "hit rate 0.9", 4, 96, 10, 90, False),
    ],
)
def test_sets_by_one_rule_are_compared_and_after_a_change_the_sources(
    rule: str, current_rule: str, stored: int, outside: int, current: int, current_outside: int, passes: bool
) -> None:
    facts = {"rows": stored + outside, "stored": stored, "outside": outside, "rule": rule, "current": current}

    verdict = failed(**facts, current_rule=current_rule, current_outside=current_outside)

    assert list(verdict) == ([] if passes else ["size"])


def test_drift_is_told_and_not_judged_when_other_entities_are_chosen() -> None:
    facts: dict[str, Any] = {"rows": 5, "stored": 5, "drift": {"y": 9.0}, "rule": "asked within 3d"}

    gate = next(gate for gate in check_gates(RunFacts(**facts)) if gate.name == "drift")

    assert gate.passed
    assert "not judged" in gate.detail
    assert "y 9" in gate.detail
    assert "drift" in failed(**facts, current_rule="asked within 3d")


def test_features_must_be_stored_of_the_rows_outside_the_set_too() -> None:
    facts: dict[str, Any] = {"rows": 10, "stored": 4, "outside": 6}

    assert failed(**facts, features=10) == {}
    assert failed(**facts, features=4) == {
        "features": "the features of 4 entities are stored, and 4 predictions and 6 entities outside the active set"
    }


def test_a_held_version_is_not_published_and_each_kind_of_row_tells_its_own_reasons() -> None:
    bad = (BadRows("x", "missing", 2), BadRows("y", "is not a finite number", 1, non_finite=True))
    told = failed(rows=9, stored=6, quarantined=2, non_finite=1, bad_rows=bad, held=True, model_version=4)
    assert set(told) == {"quarantine", "finite", "version"}
    assert "'x' missing in 2 rows" in told["quarantine"]
    assert "finite number" not in told["quarantine"]
    assert "'y' is not a finite number in 1 row" in told["finite"]
    assert "4" in told["version"]


@pytest.mark.parametrize(("serving", "passed"), [(4, True), (3, False), (None, False)])
def test_a_partial_run_is_not_compared_with_a_whole_source_but_its_version_must_serve(
    serving: int | None, passed: bool
) -> None:
    gates = check_partial_gates(RunFacts(rows=9, stored=9, features=9, current=1000, model_version=4), serving)
    assert {gate.name: gate.passed for gate in gates} == {
        "coverage": True, "features": True, "quarantine": True, "finite": True, "version": passed,
    }  # fmt: skip


def histogram(values: np.ndarray) -> dict[int, int]:
    counter = HistogramCounter()
    counter.add({"y": values})
    return dict(counter.histograms["y"])


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

    assert {name: sum(counts.values()) for name, counts in counter.histograms.items()} == {"y": 24, "n": 12}


def test_too_few_values_and_outputs_that_only_one_side_has_are_not_compared() -> None:
    many, few = histogram(normal()), histogram(normal()[: MIN_VALUES - 1])

    assert measure_drift({"y": many, "z": many, "few": few}, {"y": many, "new": many, "few": many}) == {"y": 0.0}


def test_as_many_values_as_are_enough_are_compared() -> None:
    few = histogram(normal()[:MIN_VALUES])
    assert measure_drift({"y": few}, {"y": few}) == {"y": 0.0}
    one_less = histogram(normal()[: MIN_VALUES - 1])
    assert measure_drift({"y": few}, {"y": one_less}) == measure_drift({"y": one_less}, {"y": few}) == {}


def test_each_output_is_compared_with_its_own() -> None:
    told = measure_drift(
        {"y": histogram(normal()), "z": histogram(normal(5))}, {"y": histogram(normal(1)), "z": histogram(normal(5))}
    )
    assert (told["z"], 0.8 < told["y"] < 1.2) == (0.0, True)


def test_very_many_values_are_sampled_evenly_and_counted_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.batch.gates.MAX_VALUES", 100)
    counts = histogram(np.repeat(np.float32([1, 2]), 500))
    assert len(counts) == 2
    assert len(set(counts.values())) == 1
    assert 0 < sum(counts.values()) <= 1000
