from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from inference.models.loaded import answers_agree, vector_hashes


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        (1.0, 1.0 + 5e-6, True),
        (1.0, 1.0 + 5e-5, False),
        (0.0, 5e-7, True),
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.0], [1.0], False),
        ({"a": 1.0, "b": "x"}, {"a": 1.000001, "b": "x"}, True),
        ({"a": 1.0, "b": "x"}, {"a": 1.0, "b": "y"}, False),
        ({"a": 1.0}, {"b": 1.0}, False),
        (1.0, "1.0", False),
    ],
)
def test_answers_agree_but_for_rounding(one: Any, other: Any, agree: bool) -> None:
    assert answers_agree(one, other) is agree


def test_a_vector_s_hash_changes_with_any_bit_of_it_and_with_nothing_else() -> None:
    values = np.array([[1, 2], [1, 2], [1, np.nextafter(np.float32(2), 3)]], np.float32)
    first, second, third = vector_hashes({"in": values})
    assert first == second != third
    assert vector_hashes({"in": np.asfortranarray(values)}) == [first, second, third]
    texts = vector_hashes({"in": np.array([["a", "b"], ["ab", ""]], object)})
    assert texts[0] != texts[1]
    one_text_a_row = vector_hashes({"in": np.array(["a", "b", "a"], object)})
    assert one_text_a_row[0] == one_text_a_row[2] != one_text_a_row[1]
