from __future__ import annotations

from typing import Any

import pytest

from inference.batch.gates import BadRows, RunFacts, check_gates, failures, merge_bad_rows


def failed(**facts: Any) -> dict[str, str]:
    return {gate.name: gate.detail for gate in check_gates(RunFacts(**facts)) if not gate.passed}


def test_a_whole_run_passes_every_gate() -> None:
    gates = check_gates(RunFacts(rows=100, stored=100, current=100))

    assert failures(gates) == ""
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
