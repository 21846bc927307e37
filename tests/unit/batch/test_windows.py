"""Scored rows are gathered into windows by rows or by bytes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from inference.batch import windows
from inference.batch.sinks import Window
from inference.batch.windows import WindowBuilder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_ROWS", 8)
    monkeypatch.setattr(windows, "WINDOW_BYTES", 1024)


def part(start: int, rows: int, *, width: int = 1, features: bool = False) -> Window:
    ids = pa.array([f"e{n}" for n in range(start, start + rows)], pa.string())
    y = np.repeat(np.arange(start, start + rows, dtype=np.float32)[:, None], width, axis=1)
    return Window(ids, {"y": y}, np.arange(start, start + rows, dtype=np.float64), {"x": y + 100} if features else None)


@pytest.mark.parametrize(
    ("rows", "width", "worth", "full"),
    [
        (1, 1, False, False),
        (2, 1, True, False),  # a fourth of the rows
        (7, 1, True, False),
        (8, 1, True, True),
        (1, 63, False, False),
        (1, 64, True, False),  # a fourth of the bytes
        (1, 255, True, False),
        (1, 256, True, True),
    ],
)
def test_a_window_is_full_by_rows_or_bytes_and_worth_writing_from_a_fourth_of_either(
    rows: int, width: int, worth: bool, full: bool
) -> None:
    builder = WindowBuilder()
    builder.add(part(0, rows, width=width))
    assert (builder.is_worth_writing, builder.is_full, builder.rows) == (worth, full, rows)


@pytest.mark.parametrize("features", [False, True])
def test_parts_are_taken_as_one_in_their_order_and_the_next_window_starts_empty(features: bool) -> None:
    builder = WindowBuilder()
    for start, rows in ((0, 3), (3, 0), (3, 1), (4, 2)):
        builder.add(part(start, rows, features=features))
    window = builder.take()
    assert window.ids.to_pylist() == [f"e{n}" for n in range(6)]
    assert window.as_of.tolist() == window.block["y"][:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert (window.features is None) is not features
    if window.features is not None:
        assert window.features["x"][:, 0].tolist() == [100, 101, 102, 103, 104, 105]
    assert (builder.rows, builder.is_worth_writing, builder.is_full) == (0, False, False)
    builder.add(part(9, 1, width=63, features=features))
    assert builder.take().ids.to_pylist() == ["e9"]


def test_rows_of_different_shapes_become_a_column_of_arrays() -> None:
    builder = WindowBuilder()
    builder.add(part(0, 2, width=2))
    builder.add(part(2, 1, width=3))
    column = builder.take().block["y"]
    assert (column.dtype, [row.tolist() for row in column]) == (np.dtype(object), [[0, 0], [1, 1], [2, 2, 2]])
