from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import BadInput
from inference.protocols.tensors import (
    MAX_TENSOR_ROWS,
    are_rows_of,
    check_rows,
    check_tensors,
    objects,
    pack,
    packed_rows,
    text_from_bytes,
    text_to_bytes,
    unpack,
)
from inference.schema import DType, TensorSpec


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype is not DType.STRING])
def test_numbers_come_back_from_a_message_bit_for_bit(dtype: DType) -> None:
    values = np.arange(6).reshape(3, 2).astype(dtype.numpy)
    back = unpack(json.loads(json.dumps(pack({"x": values}))))["x"]
    assert back.dtype == values.dtype
    assert (back == values).all()
    assert packed_rows(pack({"x": values})) == 3


@given(st.lists(st.text() | st.binary().filter(lambda data: not _is_text(data))))
def test_texts_and_bytes_come_back_as_they_were(values: list[Any]) -> None:
    assert text_from_bytes(text_to_bytes(objects(values))).tolist() == values


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("data", [b"\x01", b"\x05\x00\x00\x00abc"])
def test_texts_that_are_cut_off_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="cut off"):
        text_from_bytes(data)


@pytest.mark.parametrize(
    "packed",
    [None, {}, {"x": 1}, {"x": {"dtype": "int32", "shape": [2], "data": "AAAA"}}, {"x": {"dtype": "?"}}],
)
def test_a_message_that_holds_no_tensors_is_refused(packed: Any) -> None:
    with pytest.raises(BadInput):
        unpack(packed)


SPECS = (TensorSpec("a", DType.FLOAT32, (-1,)), TensorSpec("b", DType.INT64))
A, B = np.zeros((2, 5), np.float32), np.zeros(2, np.int64)


def test_a_dimension_of_unknown_size_takes_any() -> None:
    check_tensors({"a": A, "b": B}, SPECS)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": A}, "tensor 'b' is missing"),
        ({"a": A, "b": B, "c": B}, "tensor 'c' is no input of the model: a, b"),
        ({"a": A.astype("f8"), "b": B}, "tensor 'a' is float64, but the model takes float32"),
        ({"a": A[0], "b": B}, r"tensor 'a' has shape \[5\], but the model takes \[-1,-1\]"),
        ({"a": A, "b": B[:1]}, "tensor 'b' has 1 row, another one 2"),
        ({"a": A[:0], "b": B[:0]}, "0 rows"),
        ({"a": np.zeros((5000, 1), "f4"), "b": np.zeros(5000, "i8")}, f"send 1 to {MAX_TENSOR_ROWS}"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused(tensors: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_tensors(tensors, SPECS)


@pytest.mark.parametrize(
    ("shapes", "are_rows"),
    [
        ([(2, 3), (1, 3)], True),
        ([(2, 3), (1, 4)], False),
        ([(2, 3), (2, 3)], False),
        ([(), ()], False),
    ],
)
def test_outputs_of_parts_are_joined_only_if_they_are_rows_of_one_shape(
    shapes: list[tuple[int, ...]], are_rows: bool
) -> None:
    parts = [{"x": np.zeros(2)}, {"x": np.zeros(1)}]
    assert are_rows_of(parts, [{"y": np.zeros(shape)} for shape in shapes]) is are_rows
    assert are_rows_of(parts[:1], [{"y": np.zeros(())}])


@pytest.mark.parametrize(
    ("rows", "passes"), [(0, False), (1, True), (MAX_TENSOR_ROWS, True), (MAX_TENSOR_ROWS + 1, False)]
)
def test_from_one_row_up_to_the_most_are_taken(rows: int, passes: bool) -> None:
    tensors = {"x": np.zeros((rows, 2), np.float32), "y": np.zeros(rows, np.int64)}
    specs = [TensorSpec("x", DType.FLOAT32, (2,)), TensorSpec("y", DType.INT64)]
    if passes:
        check_tensors(tensors, specs)
        check_rows(rows)
        return
    for check in (lambda: check_tensors(tensors, specs), lambda: check_rows(rows)):
        with pytest.raises(BadInput, match=f"{rows} rows: send 1 to {MAX_TENSOR_ROWS}"):
            check()
