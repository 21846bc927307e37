"""The worker's side of the serving protocols, over a model that is a few lines of numpy."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from inference.errors import DeadlineExceeded, PredictionFailed
from inference.features import FeatureContract, Vectoriser, contract_from_signature
from inference.models import LoadedModel, ModelHost, VersionRecord
from inference.protocols.tensors import pack, unpack
from inference.schema import Block, DType, GraphSignature, GraphTensor, Signature, TensorSpec
from inference.serving import scorer
from inference.serving.scorer import TensorScorer, model_outputs
from inference.settings import Settings

SIGNATURE = Signature.of_model([TensorSpec("x", DType.FLOAT32)], [TensorSpec("y", DType.FLOAT32, (1,))])


class Doubling:
    """Gives 2x as it is served, a number a row; fails on rows that are all negative."""

    signature, device = SIGNATURE, "cpu-1"

    def predict(self, inputs: Block) -> Block:
        if (inputs["x"] < 0).all():
            raise PredictionFailed("node 'secret' failed")
        return {"y": 2 * inputs["x"]}


class Host:
    """Holds versions 2 and 3 of model m; 3 is active."""

    def versions(self) -> dict[str, tuple[int, ...]]:
        return {"m": (2, 3)}

    def get(self, model: str, version: int | None = None) -> LoadedModel:
        contract: FeatureContract = contract_from_signature(SIGNATURE)
        record = VersionRecord(
            version=version or 3, state="ready", signature=SIGNATURE, contract=contract,
            fingerprint="f", inspected_at=0.0,
        )  # fmt: skip
        return LoadedModel(model, record, Vectoriser(contract, SIGNATURE), Doubling())


def in_time(model: str, deadline: float | None) -> float:
    if deadline is not None and deadline < 100.0:
        raise DeadlineExceeded("late")
    return 100.0


SCORER = TensorScorer(Settings.model_validate({"models": {"m": {"path": "m"}}}), cast("ModelHost", Host()), in_time)
X = pack({"x": np.array([1.5, np.nan, np.inf], np.float32)})


def test_tensors_are_computed_as_they_are_and_keep_the_models_own_shape() -> None:
    result = SCORER.predict_tensors("m", X, deadline=101.0)
    assert (result["model"], result["model_version"]) == ("m", 3)
    assert str(unpack(result["outputs"])["y"].tolist()) == "[[3.0], [nan], [inf]]"


def test_a_version_that_is_held_computes_and_no_other_is_loaded() -> None:
    assert SCORER.predict_tensors("m", X, version=2)["model_version"] == 2
    assert SCORER.predict_tensors("m", X, version=1)["error"]["code"] == "not-found"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"model": "nobody"}, "unknown-model"),
        ({"model": None}, "bad-input"),
        ({"deadline": 99.0}, "deadline-exceeded"),
        ({"deadline": "soon"}, "bad-input"),
        ({"version": True}, "bad-input"),
        ({"inputs": {"x": 1}}, "bad-input"),
        ({"inputs": pack({"x": np.zeros((2, 2), np.float32)})}, "bad-input"),
        ({"inputs": pack({"z": np.zeros(2, np.float32)})}, "bad-input"),
        ({"inputs": pack({"x": np.array([-1.0], np.float32)})}, "prediction-failed"),
    ],
)
def test_what_cannot_be_computed_is_the_error_of_the_result(arguments: dict[str, Any], code: str) -> None:
    result = SCORER.predict_tensors(**({"model": "m", "inputs": X} | arguments))
    assert result.pop("error")["code"] == code
    # it names the version that refused these inputs, or failed on them
    assert result == ({"model_version": 3} if "inputs" in arguments else {})


def test_further_calls_of_a_message_are_answered_one_by_one() -> None:
    calls: list[dict[str, Any]] = [
        {"inputs": pack({"x": np.array([value], np.float32)}), "version": version}
        for value, version in [(1, 2), (-1, None), (3, None)]
    ]
    result = SCORER.predict_tensors("m", X, deadline=101.0, more=[*calls, {}])
    assert unpack(result["outputs"])["y"].shape == (3, 1)
    first, failed, last, empty = result["more"]
    assert (first["model_version"], unpack(first["outputs"])["y"].item()) == (2, 2)
    assert failed["error"]["code"] == "prediction-failed"
    assert unpack(last["outputs"])["y"].item() == 6
    assert empty["error"]["code"] == "bad-input"


def test_further_calls_are_left_out_when_the_answers_take_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "MAX_ANSWER_BYTES", 20)
    call = {"inputs": pack({"x": np.array([1], np.float32)})}
    assert len(SCORER.predict_tensors("m", X, more=[call] * 5)["more"]) == 2  # 12 bytes, and 4 each


@pytest.mark.parametrize("more", ["x", [1], {"inputs": X}])
def test_further_calls_that_are_none_are_refused(more: Any) -> None:
    assert SCORER.predict_tensors("m", X, more=more)["error"]["field"] == "more"


class Signed(Doubling):
    """Has a second signature, which sums numbers of any shape."""

    signatures = {"sum": GraphSignature("predict", (GraphTensor("x", "DT_FLOAT", None, "x:0"),), ())}  # noqa: RUF012
    signature_name = "own"

    def call(self, signature: str, tensors: Block) -> Block:
        return {"total": tensors["x"].sum(keepdims=False).reshape(())}


class SignedHost(Host):
    def get(self, model: str, version: int | None = None) -> LoadedModel:
        loaded = super().get(model, version)
        loaded.record = replace(loaded.record, signatures=Signed.signatures)
        loaded.runtime = Signed()
        return loaded


SIGNED = TensorScorer(
    Settings.model_validate({"models": {"m": {"path": "m"}}}), cast("ModelHost", SignedHost()), in_time
)


@pytest.mark.parametrize("values", [3.0, [1.0, 2.0], [[1.0], [1.0], [1.0]], []])
def test_a_signature_gets_tensors_of_any_shape(values: Any) -> None:
    x = np.array(values, np.float32)
    result = SIGNED.predict_tensors("m", pack({"x": x}), signature="sum")
    assert unpack(result["outputs"])["total"].shape == ()
    assert unpack(result["outputs"])["total"] == x.sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"signature": "other"}, "the model has no signature 'other'"),
        ({"signature": 1}, "signature must be text"),
        ({"inputs": pack({"z": np.zeros(1, np.float32)})}, "tensor '[xz]' is "),
        ({"inputs": pack({"x": np.zeros(1, np.float64)})}, "tensor 'x' is float64, but the model takes DT_FLOAT"),
        ({"inputs": pack({"x": np.zeros(5000, np.float32)})}, "5000 rows"),
    ],
)
def test_a_forged_message_to_a_signature_is_refused(arguments: dict[str, Any], message: str) -> None:
    result = SIGNED.predict_tensors(**({"model": "m", "inputs": X, "signature": "sum"} | arguments))
    assert result["error"]["code"] == "bad-input"
    assert re.match(message, str(result["error"]["message"]))


def test_each_output_keeps_its_own_shape_and_the_signatures_order() -> None:
    column, vector = TensorSpec("column", DType.FLOAT32, (1,)), TensorSpec("vector", DType.FLOAT32, (2,))
    signature = Signature.of_model([], [vector, column, TensorSpec("plain", DType.FLOAT32)])
    served = {
        "plain": np.zeros(3, np.float32), "column": np.ones(3, np.float32), "vector": np.ones((3, 2), np.float32),
    }  # fmt: skip
    shapes = {name: values.shape for name, values in model_outputs(served, signature).items()}
    assert list(shapes.items()) == [("vector", (3, 2)), ("column", (3, 1)), ("plain", (3,))]


def test_a_deadline_is_asked_about_the_model_that_was_meant() -> None:
    asked: list[tuple[str, float | None]] = []

    def note(model: str, deadline: float | None) -> float:
        asked.append((model, deadline))
        return 0.0

    settings = Settings.model_validate({"models": {"m": {"path": "m"}}})
    noting = TensorScorer(settings, cast("ModelHost", Host()), note)
    assert noting.predict_tensors("m", X, deadline=5)["model_version"] == 3
    assert noting.predict_tensors("nobody", X)["error"]["code"] == "unknown-model"
    assert asked == [("m", 5)]
