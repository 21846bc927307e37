"""Triton's classification extension: the best classes of each row as texts."""

from __future__ import annotations

import numpy as np
import pytest

from inference.errors import BadInput
from inference.protocols.classes import MOST_CLASSES, best_classes


def test_the_best_come_first_and_of_equals_the_first() -> None:
    values = np.array([[1, 3, 3, 2], [9, 9, 9, 9]], np.int64)
    assert best_classes(values, 3).tolist() == [["3:1", "3:2", "2:3"], ["9:0", "9:1", "9:2"]]


def test_labels_follow_if_there_is_one_for_each_class() -> None:
    values = np.array([[0.5, 0.25]], np.float32)
    assert best_classes(values, 9, ["a:b", "c"]).tolist() == [["0.500000:0:a:b", "0.250000:1:c"]]
    assert best_classes(values, 1, ["only one"]).tolist() == [["0.500000:0"]]


def test_every_shape_has_classes() -> None:
    assert best_classes(np.float32([3, 4]), 5).tolist() == [["3.000000:0"], ["4.000000:0"]]
    assert best_classes(np.arange(8, dtype=np.uint8).reshape(1, 2, 2, 2), 1).tolist() == [["7:7"]]
    assert best_classes(np.zeros((2, 0), np.float32), 5).shape == (2, 0)


def test_nan_comes_last() -> None:
    assert best_classes(np.float16([[np.nan, -1, 2]]), 3).tolist() == [["2.000000:2", "-1.000000:1", "nan:0"]]


def test_an_answer_holds_no_more_texts_than_the_limit() -> None:
    rows = np.zeros((MOST_CLASSES // 64, 65), np.float32)
    assert best_classes(rows, 64).size == MOST_CLASSES
    with pytest.raises(BadInput, match="65 classes of 4096 rows: an answer has at most 262144, ask for fewer"):
        best_classes(rows, 65)
