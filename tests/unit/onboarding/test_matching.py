"""Columns become inputs: by name, else by type and order, else with a message that names all that could."""

from __future__ import annotations

import pyarrow as pa
import pytest

from inference.errors import BadInput
from inference.onboarding.matching import UserTable, WidthMismatch, match_columns, match_listed
from inference.schema import DType, Signature, TensorSpec


def tensor(*shape: int, dtype: DType = DType.FLOAT32, name: str = "x") -> Signature:
    return Signature((TensorSpec(name, dtype, shape),), (TensorSpec("y", DType.FLOAT32),))


def table(*, taken: tuple[str, ...] = ("user_id",), targets: tuple[str, ...] = (), **columns: pa.DataType) -> UserTable:
    return UserTable("users.parquet", pa.schema({"user_id": pa.string(), **columns}), taken, targets)


F, N, S = pa.float64(), pa.int64(), pa.string()


def test_columns_with_the_inputs_names_are_taken_in_any_order() -> None:
    inputs = tuple(TensorSpec(name, dtype) for name, dtype in (("a", DType.FLOAT32), ("b", DType.STRING)))
    match = match_columns(Signature(inputs, ()), table(b=S, extra=F, a=N))
    assert match.contract.names == ["a", "b"]


def test_a_single_tensor_takes_the_columns_of_its_type_in_the_order_of_the_table() -> None:
    match = match_columns(tensor(3), table(c=F, at=pa.timestamp("us"), city=S, a=N, flag=pa.bool_()))
    assert match.contract.names == ["c", "a", "flag"]
    assert {feature.dtype for feature in match.contract.features} == {DType.FLOAT32}
    assert match.reason == "the 3 numeric columns, in the order of the table: c, a, flag"


def test_an_integer_tensor_takes_no_fractions() -> None:
    assert match_columns(tensor(1, dtype=DType.INT64), table(a=F, n=N)).contract.names == ["n"]


@pytest.mark.parametrize(
    ("extra", "targets", "words"),
    [
        ("delay", ("delay",), "what the model predicts"),
        ("target", (), "what the model predicts"),
        ("churn_label", (), "what the model predicts"),
        ("__index_level_0__", (), "a row number"),
        ("Unnamed: 0", (), "a row number"),
        ("shop_id", (), "another id"),
    ],
)
def test_leftovers_give_way_when_there_is_a_column_too_many(extra: str, targets: tuple[str, ...], words: str) -> None:
    match = match_columns(tensor(2), table(targets=targets, **{extra: N, "a": F, "b": F}))
    assert match.contract.names == ["a", "b"]
    assert match.reason.endswith(f"(left out as {words}: {extra})")


def test_leftovers_stay_when_the_tensor_needs_them() -> None:
    assert match_columns(tensor(3), table(target=F, a=F, b=F)).contract.names == ["target", "a", "b"]


def test_as_few_columns_as_possible_are_left_out() -> None:
    match = match_columns(tensor(2), table(a=F, target=F, shop_id=N))
    assert match.contract.names == ["a", "shop_id"]


def test_too_many_columns_are_named_with_both_ways_out() -> None:
    with pytest.raises(WidthMismatch) as caught:
        match_columns(tensor(2), table(a=F, b=F, c=F))
    assert caught.value.message == (
        "the model's input 'x' takes 2 values, but users.parquet has 3 numeric columns: a, b, c; name those of the "
        "tensor in its order with --columns a,… or write features.json in the model's folder: "
        '{"features": [{"name": "a", "dtype": "float32"}, …]}'
    )


def test_too_few_columns_name_those_that_are_not_numbers_yet() -> None:
    with pytest.raises(WidthMismatch, match=r"has only a; encode the others as in training: city$"):
        match_columns(tensor(2), table(a=F, city=S))


def test_no_column_at_all_is_said_plainly() -> None:
    with pytest.raises(WidthMismatch, match=r"takes 2 values, but .* it has none"):
        match_columns(tensor(2), table())


def test_one_column_of_lists_fills_the_tensor() -> None:
    match = match_columns(tensor(4), table(embedding=pa.list_(pa.float32(), 4), city=S))
    assert [(feature.name, feature.shape) for feature in match.contract.features] == [("embedding", (4,))]


def test_inputs_without_a_column_are_named_with_the_nearest() -> None:
    inputs = tuple(TensorSpec(name, DType.FLOAT32) for name in ("carat", "dpth", "zzz"))
    with pytest.raises(BadInput) as caught:
        match_columns(Signature(inputs, ()), table(Carat=F, depth=F))
    assert caught.value.message == (
        "none of the model's 3 inputs are columns of users.parquet; missing: 'carat' (nearest: 'Carat'), "
        "'dpth' (nearest: 'depth'), 'zzz' (its columns: user_id, Carat, depth): "
        "rename the table's columns to the inputs' names, or give each feature its \"column\" in features.json"
    )


def test_text_for_a_number_is_refused_by_name() -> None:
    inputs = (TensorSpec("a", DType.FLOAT32), TensorSpec("b", DType.FLOAT32))
    with pytest.raises(BadInput, match=r"column 'b' is string, but the feature is float32"):
        match_columns(Signature(inputs, ()), table(a=F, b=S))


def test_listed_columns_are_taken_in_their_order() -> None:
    assert match_listed(tensor(2), table(a=F, b=F, c=F), ["c", "a"]).contract.names == ["c", "a"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["a", "bb"], r"has no column 'bb' \(nearest: 'b'\)"),
        (["a"], "gives 1 value but the model's input 'x' takes 2 values"),
        (["a", "a"], "names 'a' twice"),
        (["a", "city"], "'city' is string"),
        ([], "gives 0 values"),
    ],
)
def test_listed_columns_that_do_not_fit_are_refused(columns: list[str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        match_listed(tensor(2), table(a=F, b=F, city=S), columns)


def test_columns_cannot_be_listed_for_named_inputs() -> None:
    inputs = (TensorSpec("a", DType.FLOAT32), TensorSpec("b", DType.FLOAT32))
    with pytest.raises(BadInput, match="this one's inputs: a, b"):
        match_listed(Signature(inputs, ()), table(a=F, b=F), ["a", "b"])


def test_messages_stay_on_one_line_and_short_whatever_columns_are_called() -> None:
    columns = {f"column\n{number}{'x' * 99}": F for number in range(200)}
    with pytest.raises(WidthMismatch) as caught:
        match_columns(tensor(2), table(**columns))
    assert caught.value.message.isprintable()
    assert "and 180 more" in caught.value.message
    assert len(caught.value.message) < 2_000
