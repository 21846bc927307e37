"""A column means the same whatever Arrow type its writer chose: in runs, loads, partial runs and left-out rows."""

from __future__ import annotations

import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from inference.batch import RunState
from inference.batch.scoring import Preparer
from inference.features import Feature, FeatureContract, Vectoriser
from inference.features.columns import column_values, type_problem
from inference.redis.clients import Client
from inference.schema import DType, Signature, TensorSpec
from inference.sources import concat_rows, open_source, plain_column, read_slices, whole_slices
from inference.sources.column_types import common_type, plain_type
from tests.support.any_table import AnyTable, text_value

CITY = Feature("city", DType.STRING, default="?")
X = Feature("x", DType.FLOAT64)
UUIDS = [uuid.UUID(int=number << 100) for number in range(5)]


def dictionary(values: list[Any], type_: pa.DataType | None = None) -> pa.Array:
    return pa.array(values, type_).dictionary_encode()


def in_lists(values: pa.Array) -> pa.Array:
    """Five rows: two values, nothing, null, two values, one."""
    return pa.ListArray.from_arrays(pa.array([0, 2, None, 2, 4, 5], pa.int32()), values)


#: five rows with a null each, and what they are to anybody
COLUMNS: dict[str, tuple[pa.Array, list[Any]]] = {
    name: (column, column.to_pylist() if expected is None else expected)
    for name, column, expected in [
        ("string", pa.array(["a", None, "", "b" * 40, "ü"]), None),
        ("string_view", pa.array(["a", None, "", "b" * 40, "ü"], pa.string_view()), None),
        ("large_string", pa.array(["a", None, "", "b" * 40, "ü"], pa.large_string()), None),
        ("dictionary", dictionary(["a", None, "", "b", "a"]), None),
        ("dictionary of views", dictionary(["a", None, "", "b", "a"], pa.large_string()), None),
        (
            "dictionary with a null value",
            pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, None, 2]), pa.array(["a", None, "b"])),
            None,
        ),
        ("dictionary of integers", dictionary([5, None, 2**62, 5, -1], pa.int64()), None),
        ("json", pa.array(["{}", None, "1", "[]", "null"], pa.json_()), None),
        (
            "uuid",
            pa.array([*(u.bytes for u in UUIDS[:3]), None, UUIDS[4].bytes], pa.uuid()),
            [*map(str, UUIDS[:3]), None, str(UUIDS[4])],
        ),
        ("binary_view", pa.array([b"a", None, b"", b"\xff" * 40, b"b"], pa.binary_view()), None),
        ("half float", pa.array([1.5, None, 0, -2, 4], pa.float16()), None),
        ("decimal32", pa.array([1, None, 2, 3, 4], pa.int8()).cast(pa.decimal128(9, 2)).cast(pa.decimal32(9, 2)), None),
        ("decimal64", pa.array([1, None, 2, 3, 4], pa.int8()).cast(pa.decimal128(9, 2)).cast(pa.decimal64(9, 2)), None),
        ("decimal256", pa.array([1, None, 2, 3, 4], pa.int8()).cast(pa.decimal256(76, 3)), None),
        ("lists of views", pa.array([["a"], None, [], ["b", None], ["c"]], pa.list_(pa.string_view())), None),
        ("list views", pa.array([["a"], None, [], ["b", None], ["c"]], pa.list_view(pa.string())), None),
        ("large list views", pa.array([[1], None, [], [2, None], [3]], pa.large_list_view(pa.int8())), None),
        ("large lists", pa.array([["a"], None, [], ["b", None], ["c"]], pa.large_list(pa.large_string())), None),
        ("lists of a fixed size", pa.array([[1, 2], None, [3, None], [4, 5], [6, 7]], pa.list_(pa.int8(), 2)), None),
        ("lists of categories", in_lists(dictionary(["a", "b", "a", None, "c"])), None),
        (
            "lists of uuids",
            in_lists(pa.array([u.bytes for u in UUIDS], pa.uuid())),
            [[str(UUIDS[0]), str(UUIDS[1])], [], None, [str(UUIDS[2]), str(UUIDS[3])], [str(UUIDS[4])]],
        ),
        (
            "lists of lists",
            pa.array([[["a"]], None, [[], None], [["b"]], [[None]]], pa.list_(pa.large_list(pa.string_view()))),
            None,
        ),
        (
            "bool8",
            pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None, 0, 1, 0], pa.int8())),
            [True, None, False, True, False],
        ),
        ("nothing", pa.nulls(5), None),
    ]
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize(("start", "length"), [(0, 5), (1, 3), (3, 0), (4, 1)])
def test_a_plain_column_has_its_rows_and_every_kernel(kind: str, start: int, length: int) -> None:
    whole, expected = COLUMNS[kind]
    rows = expected[start : start + length]

    plain = plain_column(whole.slice(start, length))

    plain.validate(full=True)
    assert plain.to_pylist() == rows
    assert plain.type == plain_type(whole.type) == plain_type(plain.type)
    every_other = [number % 2 == 0 for number in range(length)]
    assert plain.filter(pa.array(every_other, pa.bool_())).to_pylist() == rows[::2]
    assert plain.take(pa.array(range(length)[::-1], pa.int64())).to_pylist() == rows[::-1]
    assert pa.concat_arrays([plain, plain]).to_pylist() == rows * 2


# Parquet takes no dictionary with a null among its values
@pytest.mark.parametrize("kind", sorted(COLUMNS.keys() - {"dictionary with a null value"}))
def test_a_column_comes_out_of_a_file_plain(tmp_path: Path, kind: str) -> None:
    column, expected = COLUMNS[kind]
    pq.write_table(pa.table({"id": list("abcde"), "c": column}), tmp_path / "t.parquet")

    source = open_source(str(tmp_path / "t.parquet"))
    [batch] = read_slices(source.files, whole_slices(source.files), columns=["c", "id"], batch_rows=10)

    assert batch.column("c").to_pylist() == expected
    assert batch.schema.types == [source.schema.field("c").type, pa.large_string()]


TEXTS = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "category": pa.dictionary(pa.int32(), pa.string()),
}


@pytest.mark.parametrize("of_ids", TEXTS)
@pytest.mark.parametrize("of_city", TEXTS)
def test_text_gives_the_same_predictions_everywhere(
    redis_client: Client, tmp_path: Path, of_ids: str, of_city: str
) -> None:
    world = AnyTable(redis_client, tmp_path, CITY, X)
    ids = pa.array(["a", "b", "c", ""]).cast(TEXTS[of_ids])
    city = pa.array(["Ulm", None, "Bonn", "Rom"]).cast(TEXTS[of_city])
    world.write(id=ids, city=city, x=[1.0, 2.0, 3.0, 4.0])
    world.configure_quarantine(1)

    done = world.run()

    assert (done.state, done.rows_quarantined, done.error) == (RunState.PUBLISHED, 1, None)
    right = [1.0 + text_value("Ulm"), 2.0 + text_value("?"), 3.0 + text_value("Bonn")]
    assert world.answers("a", "b", "c") == right
    [left_out] = pq.read_table(tmp_path / ".forecache" / "quarantine" / done.run_id).to_pylist()
    assert (left_out["entity_id"], left_out["values"]) == ("", {"id": "", "city": "Rom", "x": 4.0})
    assert world.run(entities=["b", "c"]).state is RunState.PUBLISHED
    assert world.ids_in(world.write("ids.parquet", id=ids.slice(0, 2))) == ["a", "b"]

    world.load(world.write("good.parquet", id=ids.slice(0, 3), city=city.slice(0, 3), x=[1.0, 2.0, 3.0]))
    assert [world.loaded(one).get("city") for one in "abc"] == ["Ulm", None, "Bonn"]  # None: the default stands for it


@pytest.mark.parametrize(
    ("column", "shape"),
    [
        (pa.array([["a", "b"], ["c", "d"], ["e", None]], pa.list_(pa.string_view())), (2,)),
        (pa.array([["a", "b"], ["c", "d"], ["e", None]], pa.list_(pa.large_string(), 2)), (2,)),
        (pa.ListArray.from_arrays([0, 2, 4, 6], dictionary(["a", "b", "c", "d", "e", None])), (2,)),
        (
            pa.array([[["a"], ["b"]], [["c"], ["d"]], [["e"], None]], pa.large_list(pa.list_view(pa.string_view()))),
            (2, 1),
        ),
    ],
)
def test_lists_of_text_are_features_whatever_their_layout(column: pa.Array, shape: tuple[int, ...]) -> None:
    feature = Feature("v", DType.STRING, shape)
    assert type_problem(feature, column.type) is None

    values, missing, misfit = column_values(column, feature)

    assert values[:2].reshape(2, 2).tolist() == [["a", "b"], ["c", "d"]]
    assert missing.tolist() == [False, False, True]
    assert not misfit.any()


NUMBERS = [Decimal(n) / 100 for n in (115, -115, 1, 3333333, 99999999, 0, 10)]


@pytest.mark.parametrize(
    "type_", [pa.decimal128(38, 2), pa.decimal256(60, 2), pa.decimal64(18, 2), pa.decimal128(38, 11)]
)
def test_a_decimal_is_the_number_that_a_request_would_send(type_: pa.DataType) -> None:
    feature = Feature("x", DType.FLOAT64)
    vectoriser = Vectoriser(FeatureContract((feature,)), Signature((feature.spec,), (TensorSpec("y", DType.FLOAT64),)))
    column = pa.array(NUMBERS, pa.decimal128(38, 11)).cast(pa.decimal128(38, type_.scale)).cast(type_)

    from_table = vectoriser.features_from_arrow(pa.record_batch({"x": column})).block["x"]
    from_request = vectoriser.features_from_rows([{"x": float(str(n))} for n in NUMBERS]).block["x"]

    assert from_table.tobytes() == from_request.tobytes()


def test_random_decimals_round_as_their_text_does() -> None:
    rng = np.random.default_rng(3)
    texts = [
        f"{whole}.{part:09d}"
        for whole, part in zip(rng.integers(-(10**9), 10**9, 2_000), rng.integers(0, 10**9, 2_000), strict=True)
    ]
    column = pa.array([Decimal(text) for text in texts], pa.decimal128(38, 9))

    assert column_values(column, X).array.tolist() == [float(text) for text in texts]


@pytest.mark.parametrize("dtype", [DType.INT64, DType.UINT64, DType.INT8])
def test_a_decimal_without_a_fraction_is_an_integer_and_what_does_not_fit_is_told(dtype: DType) -> None:
    limits = np.iinfo(dtype.numpy)
    numbers = [int(limits.max), int(limits.min), 7, None, int(limits.max) + 1, int(limits.min) - 1]
    column = pa.array([None if n is None else Decimal(n) for n in numbers], pa.decimal128(38, 0))
    feature = Feature("n", dtype)

    assert type_problem(feature, column.type) is None
    values, missing, misfit = column_values(column, feature)

    assert values[:3].tolist() == numbers[:3]
    assert missing.tolist() == [False, False, False, True, False, False]
    assert misfit.tolist() == [False, False, False, False, True, True]


def test_a_sample_of_a_batch_can_be_prepared(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": pa.array(list("abc"), pa.string_view()), "city": pa.array(["x", None, "y"], pa.string_view())}),
        tmp_path / "t.parquet",
    )
    files = open_source(str(tmp_path / "t.parquet")).files
    vectoriser = Vectoriser(FeatureContract((CITY,)), Signature((CITY.spec,), (TensorSpec("y", DType.FLOAT64),)))
    [batch] = read_slices(files, whole_slices(files), columns=["id", "city"], batch_rows=10)

    drawn = Preparer(vectoriser, "id", None, 1.0).prepare(batch.take(pa.array([0, 2])))

    assert (drawn.usable.ids.to_pylist(), drawn.features["city"].tolist()) == (["a", "c"], ["x", "y"])


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (pa.null(), pa.large_string(), pa.large_string()),
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.uint32(), pa.int8(), pa.int64()),
        (pa.uint64(), pa.int64(), pa.decimal128(20, 0)),
        (pa.int64(), pa.float64(), pa.float64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.decimal128(10, 2), pa.decimal128(12, 4), pa.decimal128(12, 4)),
        (pa.decimal128(38, 0), pa.int64(), pa.decimal128(38, 0)),
        (pa.decimal128(38, 0), pa.decimal128(38, 10), pa.decimal256(48, 10)),
        (pa.decimal128(38, 2), pa.float64(), pa.float64()),
        (pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.timestamp("us", "UTC")),
        (pa.date32(), pa.timestamp("ms"), pa.timestamp("us")),
        (pa.list_(pa.null()), pa.list_(pa.float32()), pa.list_(pa.float32())),
        (pa.list_(pa.int8(), 2), pa.list_(pa.int8()), pa.list_(pa.int8())),
        (pa.large_string(), pa.int64(), None),
        (pa.bool_(), pa.int64(), None),
        (pa.list_(pa.large_string()), pa.list_(pa.int64()), None),
        (pa.large_binary(), pa.large_string(), None),
    ],
)
def test_two_files_have_the_type_that_holds_both(
    one: pa.DataType, other: pa.DataType, common: pa.DataType | None
) -> None:
    assert common_type(one, other) == common_type(other, one) == common


def test_rows_of_files_with_other_types_are_joined() -> None:
    tables = [
        pa.table(
            {"n": pa.array([1, 2], pa.int32()), "city": pa.nulls(2), "v": pa.array([[], None], pa.list_(pa.null()))}
        ),
        pa.table({"n": [2**40], "city": pa.array(["x"], pa.large_string()), "v": [[1.5]]}),
    ]

    joined = concat_rows(tables)

    assert joined.to_pylist() == [
        {"n": 1, "city": None, "v": []},
        {"n": 2, "city": None, "v": None},
        {"n": 2**40, "city": "x", "v": [1.5]},
    ]
    assert pc.sum(joined.column("n")).as_py() == 3 + 2**40
