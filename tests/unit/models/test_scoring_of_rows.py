"""One model call for many rows, some of which the model refuses, or has no memory for."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from inference.errors import ModelOutOfMemory, PredictionFailed
from inference.features import Feature, FeatureContract, Vectoriser
from inference.models import LoadedModel, VersionRecord, prediction_values, score_rows
from inference.schema import Block, DType, Signature, TensorSpec

CONTRACT = FeatureContract((Feature("x", DType.FLOAT32),))
OUTPUTS = (TensorSpec("y", DType.FLOAT32), TensorSpec("label", DType.STRING))


class Fussy:
    """Doubles x; raises if any is below zero, has no answer to 1 000, and memory for `most` rows a call."""

    device = "cpu-1"

    def __init__(self, most: int = 1_000) -> None:
        self.most = most
        self.calls: list[int] = []
        self.signature = Signature((TensorSpec("x", DType.FLOAT32),), OUTPUTS)

    def predict(self, inputs: Block) -> Block:
        x = inputs["x"]
        self.calls.append(len(x))
        if len(x) > self.most:
            raise ModelOutOfMemory("no memory")
        if (x < 0).any():
            raise PredictionFailed(f"no {x[x < 0][0]:g}")
        y = np.where(x == 1000, np.nan, 2 * x).astype(np.float32)
        return {"y": y, "label": np.array([f"l{one:g}" for one in x], object)}


def score(model: Fussy, *x: float) -> Any:
    record = VersionRecord(
        version=1, state="ready", signature=model.signature, contract=CONTRACT, fingerprint="f", inspected_at=0.0
    )
    loaded = LoadedModel("m", record, Vectoriser(CONTRACT, model.signature), cast("Any", model))
    return score_rows(loaded, {"x": np.array(x, np.float32)})


def test_good_rows_take_one_call() -> None:
    model = Fussy()
    scored = score(model, 1, 2, 3)
    assert (model.calls, scored.failed.tolist(), scored.too_many_rows) == ([3], [False] * 3, None)
    assert prediction_values(scored.outputs) == [
        {"y": 2.0, "label": "l1"}, {"y": 4.0, "label": "l2"}, {"y": 6.0, "label": "l3"},
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [{0}, {6}, {2, 3}, {0, 1, 2, 3, 4, 5, 6}, {1, 4, 6}])
def test_each_bad_row_fails_alone_wherever_it_stands(bad: set[int]) -> None:
    scored = score(Fussy(), *[-1 - n if n in bad else n for n in range(7)])
    assert set(np.flatnonzero(scored.failed).tolist()) == bad
    assert scored.reasons == {n: f"no {-1 - n}" for n in bad}
    for n in set(range(7)) - bad:
        assert (scored.outputs["y"][n], scored.outputs["label"][n]) == (2 * n, f"l{n}")
    assert (scored.outputs["y"].dtype, scored.outputs["label"].dtype) == (np.float32, np.dtype(object))


def test_an_answer_that_is_no_number_fails_its_row_and_keeps_the_models_own_reason() -> None:
    scored = score(Fussy(), 1, 1000, -5, 2)
    assert scored.failed.tolist() == [False, True, True, False]
    assert scored.reasons == {1: "output 'y' is not a finite number", 2: "no -5"}


@pytest.mark.parametrize(
    ("most", "calls", "too_many"), [(4, [4], None), (3, [4, 2, 2], 4), (1, [4, 2, 1, 1, 2, 1, 1], 2)]
)
def test_rows_are_halved_until_they_fit_and_the_fewest_that_did_not_are_told(
    most: int, calls: list[int], too_many: int | None
) -> None:
    model = Fussy(most)
    scored = score(model, 0, 1, 2, 3)
    assert (model.calls, scored.too_many_rows, scored.failed.any()) == (calls, too_many, False)
    assert scored.outputs["y"].tolist() == [0, 2, 4, 6]


def test_a_single_row_that_does_not_fit_is_nobodys_fault() -> None:
    with pytest.raises(ModelOutOfMemory):
        score(Fussy(0), 1, 2)


def test_no_rows_are_no_call() -> None:
    model = Fussy()
    scored = score(model)
    assert (model.calls, len(scored.failed), scored.outputs["y"].shape) == ([], 0, (0,))


def test_a_single_output_is_its_value() -> None:
    assert prediction_values({"y": np.array([[1, 2], [3, 4]])}) == [[1, 2], [3, 4]]
