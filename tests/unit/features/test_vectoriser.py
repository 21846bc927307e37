"""The vectoriser: tables, requests and stored rows become the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import ContractError, SourceError
from inference.features import EARLIEST_S, Feature, FeatureContract, FeatureRows, Vectoriser, event_times
from inference.features.key_columns import exact_instants
from inference.schema import DType, Signature, TensorSpec

OUTPUT = (TensorSpec("y", DType.FLOAT32),)
F32, I32, TEXT = DType.FLOAT32, DType.INT32, DType.STRING


def stacked(*features: Feature, dtype: DType = F32) -> Vectoriser:
    width = sum(one.width for one in features)
    return Vectoriser(FeatureContract(features), Signature((TensorSpec("x", dtype, (width,)),), OUTPUT))


def named(*features: Feature) -> Vectoriser:
    specs = tuple(TensorSpec(one.name, one.dtype, one.shape or (1,)) for one in features)
    return Vectoriser(FeatureContract(features), Signature(specs, OUTPUT))


def batch(**columns: Any) -> pa.RecordBatch:
    return pa.record_batch(
        {name: pa.array(values) if isinstance(values, list) else values for name, values in columns.items()}
    )


def reasons(rows: FeatureRows) -> list[tuple[str, list[int]]]:
    return [(one.feature, one.rows.tolist()) for one in rows.reasons]


def test_columns_stand_side_by_side_in_the_contracts_order() -> None:
    vectoriser = stacked(Feature("b", F32), Feature("a", F32))
    rows = vectoriser.features_from_arrow(batch(a=[1.0, 2.0], b=[3.0, 4.0], other=["x", "y"]))
    assert not rows.rejected.any()
    x = vectoriser.inputs(rows.block)["x"]
    assert x.dtype == np.float32
    assert x.tolist() == [[3.0, 1.0], [4.0, 2.0]]


def test_each_named_input_gets_its_own_feature() -> None:
    vectoriser = named(Feature("carat", F32), Feature("cut", TEXT))
    rows = vectoriser.features_from_arrow(batch(cut=["Ideal", "ø"], carat=pa.array([1, 2], pa.int16())))
    inputs = vectoriser.inputs(rows.block)
    assert inputs["carat"].tolist() == [[1.0], [2.0]]
    assert inputs["cut"].tolist() == [["Ideal"], ["ø"]]


def test_dictionary_encoded_text_is_decoded() -> None:
    column = pa.array(["a", None, "b", "a"]).dictionary_encode()
    rows = named(Feature("cut", TEXT, default="?")).features_from_arrow(batch(cut=column))
    assert rows.block["cut"].tolist() == ["a", "?", "b", "a"]


def test_missing_values_take_the_default() -> None:
    vectoriser = stacked(Feature("a", F32, default=0.5), Feature("n", I32, default=-1))
    rows = vectoriser.features_from_arrow(batch(a=[1.0, None, float("nan")], n=pa.array([None, 2, 3], pa.int64())))
    assert not rows.rejected.any()
    assert rows.block["a"].tolist() == [1.0, 0.5, 0.5]
    assert rows.block["n"].tolist() == [-1, 2, 3]


def test_missing_values_without_a_default_reject_their_rows_only() -> None:
    rows = stacked(Feature("a", F32), Feature("b", F32)).features_from_arrow(
        batch(a=[1.0, None, 3.0, float("nan")], b=[None, 2.0, 3.0, 4.0])
    )
    assert rows.rejected.tolist() == [True, True, False, True]
    assert reasons(rows) == [("a", [1, 3]), ("b", [0])]
    assert rows.usable()["a"].tolist() == [3.0]
    assert rows.first_reasons()[3].reason == "missing, and the feature has no default"


def test_a_column_of_nothing_but_nulls_takes_defaults() -> None:
    rows = stacked(Feature("a", F32, default=2.0)).features_from_arrow(batch(a=pa.nulls(3)))
    assert rows.block["a"].tolist() == [2.0, 2.0, 2.0]


def test_numbers_that_the_feature_cannot_hold_reject_their_rows() -> None:
    vectoriser = stacked(Feature("a", F32), Feature("n", DType.INT8))
    rows = vectoriser.features_from_arrow(batch(a=[1e300, float("-inf"), 1.0, 2.0], n=[1, 2, 300, -128]))
    assert rows.rejected.tolist() == [True, True, True, False]


@pytest.mark.parametrize("default", [None, 7])
def test_a_vector_with_a_gap_and_a_number_out_of_range_is_rejected_once_and_takes_no_default(
    default: int | None,
) -> None:
    feature = Feature("v", DType.INT8, (2,), default=default)
    rows = stacked(feature, dtype=DType.INT8).features_from_arrow(batch(v=[[1, 2], [None, 400]]))
    assert reasons(rows) == [("v", [1])]
    assert rows.imputed == {}


def test_large_integers_with_nulls_keep_every_digit() -> None:
    big = 2**53 + 1
    rows = named(Feature("n", DType.INT64, default=0)).features_from_arrow(batch(n=pa.array([big, None], pa.int64())))
    assert rows.block["n"].tolist() == [big, 0]


def test_vectors_come_from_lists_of_the_right_length() -> None:
    vectoriser = stacked(Feature("e", F32, (2,)), Feature("a", F32))
    column = pa.array([[1, 2], [3], None, [4, None], [5, 6]], pa.list_(pa.float64()))
    rows = vectoriser.features_from_arrow(batch(e=column, a=[0.0] * 5))
    assert rows.rejected.tolist() == [False, True, True, True, False]
    assert vectoriser.inputs(rows.usable())["x"].tolist() == [[1, 2, 0], [5, 6, 0]]


def test_nested_lists_and_fixed_size_lists_are_vectors_too() -> None:
    feature = Feature("m", F32, (2, 2))
    nested = pa.array([[[1, 2], [3, 4]], [[1, 2], [3]]], pa.list_(pa.list_(pa.float32())))
    rows = named(feature).features_from_arrow(batch(m=nested))
    assert rows.rejected.tolist() == [False, True]
    assert rows.usable()["m"].tolist() == [[[1, 2], [3, 4]]]
    fixed = pa.array([[1, 2], None], pa.list_(pa.float32(), 2))
    rows = stacked(Feature("e", F32, (2,), default=9.0)).features_from_arrow(batch(e=fixed))
    assert rows.block["e"].tolist() == [[1, 2], [9, 9]]


def test_a_slice_of_a_column_gives_the_rows_of_the_slice() -> None:
    whole = batch(e=pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float32())), a=[1.0, None, 3.0], s=["x", "y", None])
    vectoriser = named(Feature("e", F32, (2,)), Feature("a", F32, default=7.0), Feature("s", TEXT, default="-"))
    rows = vectoriser.features_from_arrow(whole.slice(1, 2))
    assert rows.block["e"].tolist() == [[3, 4], [5, 6]]
    assert rows.block["a"].tolist() == [7.0, 3.0]
    assert rows.block["s"].tolist() == ["y", "-"]


@pytest.mark.parametrize(
    ("feature", "type_", "message"),
    [
        (Feature("a", F32), pa.string(), "is string, but the feature is float32"),
        (Feature("a", TEXT), pa.int64(), "is int64, but the feature is string"),
        (Feature("a", I32), pa.float64(), "is double, but the feature is int32: cast it to int32"),
        (Feature("a", DType.BOOL), pa.int8(), "is int8, but the feature is bool"),
        (Feature("a", F32), pa.timestamp("us"), "dates and times are no features; write what the model needs of it"),
        (Feature("a", F32, (2,)), pa.float32(), "store lists"),
        (Feature("a", F32), pa.list_(pa.float32()), "but the feature is float32"),
    ],
)
def test_a_column_of_another_kind_is_refused_by_name(feature: Feature, type_: pa.DataType, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        named(feature).check_schema(pa.schema([("a", type_)]), "rows.parquet")
    assert "rows.parquet: column 'a'" in caught.value.message
    assert caught.value.field == "a"


@pytest.mark.parametrize("type_", [pa.int8(), pa.uint64(), pa.float64(), pa.bool_(), pa.decimal128(9, 2), pa.null()])
def test_any_number_can_become_a_float(type_: pa.DataType) -> None:
    named(Feature("a", F32)).check_schema(pa.schema([("a", type_)]), "t")


def test_a_missing_column_is_named_with_the_nearest_one() -> None:
    with pytest.raises(SourceError, match="t has no column 'distance'; did you mean 'distence'"):
        named(Feature("distance", F32)).check_schema(pa.schema([("distence", pa.float32())]), "t")


def test_a_bare_tensor_without_columns_is_told_of_features_json() -> None:
    with pytest.raises(SourceError, match=r"list its 3 columns in the model's features\.json"):
        named(Feature("x", F32, (3,))).check_schema(pa.schema([("f0", pa.float32())]), "t")


def test_instances_by_name_and_by_position_give_the_same_features() -> None:
    vectoriser = stacked(Feature("e", F32, (2,)), Feature("a", F32, default=4.0))
    rows = vectoriser.features_from_rows([{"e": [1, 2]}, {"a": None, "e": [1.0, 2.0]}, [1, 2, 4]])
    assert not rows.rejected.any()
    assert vectoriser.inputs(rows.block)["x"].tolist() == [[1, 2, 4]] * 3


def test_one_bad_instance_does_not_spoil_the_others() -> None:
    vectoriser = stacked(Feature("a", F32), Feature("n", I32))
    rows = vectoriser.features_from_rows(
        [
            {"a": 1, "n": 2.0},
            {"a": "1", "n": 2},
            {"a": 1, "m": 2},
            {"a": 1},
            [1],
            {"a": 1, "n": 2.5},
            {"a": 1, "n": 2**40},
            {"a": 1e39, "n": 1},
            "text",
            {"a": True, "n": 1},
            None,
        ]
    )
    assert rows.rejected.tolist() == [False, True, True, True, True, True, True, True, True, False, True]
    told = {row: one.reason for row, one in rows.first_reasons().items()}
    assert told[1] == "feature 'a' is float32: give a number"
    assert told[2] == "unknown feature 'm'; known: a, n"
    assert told[4] == "the instance has 1 value, but the model takes 2"
    assert told[5] == "feature 'n' is int32: give a whole number"


def test_a_model_with_one_feature_takes_the_bare_value() -> None:
    assert named(Feature("s", TEXT)).features_from_rows(["a", ["b"], {"s": "c"}]).block["s"].tolist() == [
        "a",
        "b",
        "c",
    ]
    assert named(Feature("x", F32, (2,))).features_from_rows([[1, 2]]).block["x"].tolist() == [[1, 2]]


def test_stored_rows_of_an_older_contract_get_defaults_for_what_is_new() -> None:
    vectoriser = stacked(Feature("a", F32), Feature("new", F32, default=5.0))
    rows = vectoriser.features_from_block({"a": np.array([1.0, 2.0]), "gone": np.array([0, 0])}, 2)
    assert vectoriser.inputs(rows.block)["x"].tolist() == [[1, 5], [2, 5]]
    without = stacked(Feature("a", F32), Feature("new", F32)).features_from_block({"a": np.array([1.0])}, 1)
    assert without.rejected.tolist() == [True]


def test_overrides_replace_a_feature_of_every_row() -> None:
    vectoriser = stacked(Feature("a", F32), Feature("b", F32))
    stored = {"a": np.array([1, 2], np.float32), "b": np.array([3, 4], np.float32)}
    rows = vectoriser.features_from_columns(vectoriser.stored_columns(stored, 2), 2, overrides={"b": 9})
    assert vectoriser.inputs(rows.block)["x"].tolist() == [[1, 9], [2, 9]]
    assert stored["b"].tolist() == [3, 4]


def test_an_override_of_nothing_takes_the_default_and_says_so_in_every_row() -> None:
    vectoriser = stacked(Feature("a", F32), Feature("b", F32, default=7.0))
    stored = {"a": np.array([1, 2], np.float32), "b": np.array([3, 4], np.float32)}
    rows = vectoriser.features_from_columns(vectoriser.stored_columns(stored, 2), 2, overrides={"b": None})
    assert vectoriser.inputs(rows.block)["x"].tolist() == [[1, 7], [2, 7]]
    assert rows.imputed_names() == [["b"], ["b"]]


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 3000])
@pytest.mark.parametrize("dtype", [F32, DType.FLOAT64])
def test_few_rows_and_many_become_the_same_inputs(count: int, dtype: DType) -> None:
    vectoriser = stacked(Feature("b", DType.INT64), Feature("a", F32), Feature("c", F32), dtype=dtype)
    block = {name: np.arange(count) * factor for name, factor in (("a", 2), ("b", 3), ("c", 5))}
    features = {name: values.astype(np.int64 if name == "b" else np.float32) for name, values in block.items()}
    x = vectoriser.inputs(features)["x"]
    assert (x.dtype, x.shape, x.flags.c_contiguous) == (dtype.numpy, (count, 3), True)
    assert x.tolist() == np.stack([block["b"], block["a"], block["c"]], axis=1).tolist()


@pytest.mark.parametrize(("overrides", "field"), [({"c": 1}, "c"), ({"b": "x"}, "b"), ({"b": None}, "b")])
def test_an_override_that_does_not_fit_names_its_feature(overrides: dict[str, Any], field: str) -> None:
    with pytest.raises(ContractError) as caught:
        stacked(Feature("a", F32), Feature("b", F32)).override_values(overrides)
    assert caught.value.field == field
    assert field in caught.value.message


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(width=32, allow_infinity=False), st.one_of(st.none(), st.integers(-9, 9))),
        min_size=1,
    )
)
def test_table_request_and_store_give_the_same_bits(values: list[tuple[float, int | None]]) -> None:
    vectoriser = stacked(Feature("a", F32, default=0.25), Feature("n", I32, default=3))
    from_table = vectoriser.features_from_arrow(
        batch(a=pa.array([a for a, _ in values], pa.float64()), n=pa.array([n for _, n in values], pa.int64()))
    )
    from_request = vectoriser.features_from_rows([{"a": a, "n": n} for a, n in values])
    from_store = vectoriser.features_from_block(from_table.block, len(values))
    bits = vectoriser.inputs(from_table.block)["x"].tobytes()
    assert vectoriser.inputs(from_request.block)["x"].tobytes() == bits
    assert vectoriser.inputs(from_store.block)["x"].tobytes() == bits


def test_instants_of_every_unit_are_compared_alike() -> None:
    exact = [exact_instants(pa.array([10**9 + 5, -3, None], pa.timestamp("s")))]
    exact += [
        exact_instants(pa.array([(10**9 + 5) * per_s, -3 * per_s, None], pa.timestamp(unit)))
        for unit, per_s in (("ms", 10**3), ("us", 10**6), ("ns", 10**9))
    ]
    for one in exact:
        assert one.tolist() == exact[0].tolist()
    half = [
        exact_instants(pa.array([per_s // 2], pa.timestamp(unit))).tolist()
        for unit, per_s in (("ms", 10**3), ("ns", 10**9))
    ]
    assert half == [[[0, 500_000_000]]] * 2
    assert exact_instants(pa.array([2], pa.date32())).tolist() == [[2 * 86_400, 0]]


def test_event_times_are_epoch_seconds_whatever_the_unit_or_zone() -> None:
    for unit in ("s", "ms", "us", "ns"):
        column = pa.array(
            [0, 1_500_000_000 * {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[unit], None],
            pa.timestamp(unit, "Europe/Berlin"),
        )
        times = event_times(column)
        assert times[:2].tolist() == [EARLIEST_S, 1_500_000_000]
        assert np.isnan(times[2])
    assert event_times(pa.array([1], pa.date32())).tolist() == [86400]


@pytest.mark.parametrize(
    ("stored", "dtype", "fits"),
    [
        ([2**40, -3], np.int64, False),  # would wrap
        ([7, -3], np.int64, False),  # a column is one type, whatever its values are today
        ([7, -3], np.int16, True),
        ([7, 200], np.uint8, True),
        ([7, 2], np.uint32, False),
        ([7.0, 2.5], np.float64, False),
        ([True, False], np.bool_, True),
    ],
)
def test_stored_numbers_that_the_feature_might_not_hold_are_missing(stored: list[Any], dtype: Any, fits: bool) -> None:
    vectoriser = stacked(Feature("n", I32, default=-1))
    columns = vectoriser.stored_columns({"n": np.array(stored, dtype)}, 2)
    assert columns.values["n"].dtype == np.int32
    assert {name: rows.tolist() for name, rows in columns.missing.items()} == ({} if fits else {"n": [True, True]})
    assert columns.to_check == ({"n"} if fits else set())
    rows = vectoriser.features_from_columns(columns, 2)
    assert rows.block["n"].tolist() == ([int(value) for value in stored] if fits else [-1, -1])


def test_a_stored_number_that_a_cast_makes_infinite_is_rejected() -> None:
    vectoriser = stacked(Feature("a", F32))
    rows = vectoriser.features_from_block({"a": np.array([1e300, 2.0])}, 2)
    assert rows.rejected.tolist() == [True, False]
    assert rows.first_reasons()[0].reason == "infinite, or too large for float32"


def test_stored_floats_may_lose_digits_and_nothing_else_becomes_one_silently() -> None:
    vectoriser = stacked(Feature("a", F32), Feature("b", F32), Feature("c", F32, (2,)))
    block = {"a": np.array([0.1]), "b": np.array(["x"], object), "c": np.array([[1.0, 2.0, 3.0]], np.float32)}
    columns = vectoriser.stored_columns(block, 1)
    assert columns.values["a"].tolist() == [np.float32(0.1)]
    assert columns.to_check == {"a"}
    assert {name: rows.tolist() for name, rows in columns.missing.items()} == {"b": [True], "c": [True]}
