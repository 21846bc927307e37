"""What callers hold, as the API takes it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecache import BadRequest, Failed, ForecacheError, Prediction, Predictions
from forecache.inputs import body_of, entity_id_of, entity_ids_of, instances_of, instant_of
from forecache.requests import MAX_BYTES, Rows


@pytest.mark.parametrize(("value", "text"), [("F1", "F1"), (7, "7"), (np.int64(7), "7"), (np.uint8(0), "0"), ("", "")])
def test_ids_are_text_or_integers(value: Any, text: str) -> None:
    assert entity_id_of(value) == text


@pytest.mark.parametrize("value", [1.0, True, None, b"F1", ["F1"]])
def test_other_ids_are_refused_by_name(value: Any) -> None:
    with pytest.raises(BadRequest, match=f"entity_id: .* is {type(value).__name__}") as refused:
        entity_id_of(value)
    assert refused.value.field == "entity_id"


@pytest.mark.parametrize("values", [["1", "2"], [1, 2], pd.Series([1, 2]), np.array([1, 2]), {1: 0, 2: 0}, range(1, 3)])
def test_ids_come_in_any_list(values: Any) -> None:
    assert entity_ids_of(values) == ["1", "2"]


@pytest.mark.parametrize("values", ["F1", b"F1", 7])
def test_a_single_id_is_no_list(values: Any) -> None:
    with pytest.raises(BadRequest, match="call predict"):
        entity_ids_of(values)


def test_a_table_is_no_list_of_ids() -> None:
    with pytest.raises(BadRequest, match="give its column of ids, or its rows as instances="):
        entity_ids_of(pd.DataFrame({"user": ["a", "b"], "age": [1, 2]}))


def test_a_table_becomes_objects() -> None:
    table = pd.DataFrame(
        {"age": [1.5, None], "city": ["A", None], "at": pd.to_datetime(["2026-01-01", None], utc=True)}
    )
    assert json.loads(body_of(instances_of(table))) == [
        {"age": 1.5, "city": "A", "at": "2026-01-01T00:00:00+00:00"},
        {"age": None, "city": None, "at": None},
    ]


def test_numpy_becomes_plain_json() -> None:
    assert json.loads(body_of({"a": np.float32(0.5), "b": np.array([1.0, np.nan]), "c": float("inf")})) == {
        "a": 0.5,
        "b": [1.0, None],
        "c": None,
    }


def test_what_json_cannot_hold_is_named() -> None:
    with pytest.raises(BadRequest, match="is set, which JSON cannot hold"):
        body_of({"a": {1, 2}})


def test_an_instant_needs_a_zone() -> None:
    assert instant_of(datetime(2026, 1, 1, tzinfo=UTC), "event_time") == "2026-01-01T00:00:00+00:00"
    with pytest.raises(BadRequest, match=r"event_time: .* has no time zone"):
        instant_of(datetime(2026, 1, 1), "event_time")  # noqa: DTZ001 - what is refused


@pytest.mark.parametrize(("ids", "instances"), [(None, None), (["a"], [[1.0]])])
def test_rows_are_ids_or_instances(ids: Any, instances: Any) -> None:
    with pytest.raises(BadRequest, match="either entity_ids or instances"):
        Rows.of(ids, instances)


def test_rows_are_cut_by_number_and_by_bytes() -> None:
    assert [len(part) for part in Rows.of(range(2_500), None).parts()] == [1_000, 1_000, 500]
    wide = Rows.of(None, [["x" * 100_000]] * 200)
    assert sum(len(part) for part in wide.parts()) == 200
    assert all(len(body_of(part)) <= MAX_BYTES for part in wide.parts())


def prediction(entity_id: str, value: Any) -> Prediction:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Prediction(entity_id, "m", 1, value, "hit_batch", "batch", True, False, False, now, now)


def test_predictions_come_back_with_the_index_of_what_was_asked() -> None:
    asked = pd.Series(["a", "b"], index=[10, 20])
    answered = [prediction("a", 0.5), Failed("b", ForecacheError("no such entity"))]
    table = Predictions(answered, Rows.of(asked, None).index).to_pandas()
    assert table["value"].to_dict() == {10: 0.5, 20: None} or table["value"].isna().tolist() == [False, True]
    assert table.loc[20, "error"] == "no such entity"
    assert list(table.index) == [10, 20]


def test_failures_keep_their_place() -> None:
    answers = Predictions([prediction("a", 1.0), Failed("b", ForecacheError("no"))])
    assert answers.values == [1.0, None]
    assert [one.entity_id for one in answers.failed] == ["b"]
    with pytest.raises(ForecacheError, match="no"):
        answers.raise_failed()
