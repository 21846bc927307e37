"""What a model answers decides the form of its outputs, whatever it declares."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper
from sklearn.base import BaseEstimator

from inference.errors import ModelError, PredictionFailed
from inference.models import LoadedModel, prediction_values, score_rows
from inference.models.loading import load_version
from inference.models.runtimes import LoadOptions
from inference.models.runtimes.runtime import as_served
from inference.models.warm_up import SampleRows
from inference.schema import Block, DType, Signature, TensorSpec
from inference.serving.scorer import model_outputs
from inference.store.codec import codec_for
from tests.support.models import write_features
from tests.support.plain_models import write_version
from tests.support.plain_onnx import FLOAT, tensor, write_onnx

X = np.array([[1, 2], [-1, 2]], np.float32)
PROBABILITIES = np.array([[0.2, 0.8], [0.9, 0.1]], np.float32)


def write_lying_tree(folder: Path, declared: list[Any] | None, label: list[Any] | None = None) -> None:
    """A classifier of two classes by ai.onnx.ml 1, whose shapes ONNX Runtime does not infer: it gives [N, 2]."""
    tree = helper.make_node(
        "TreeEnsembleClassifier", ["x"], ["label", "probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1],
        post_transform="NONE", nodes_treeids=[0] * 3, nodes_nodeids=[0, 1, 2], nodes_featureids=[0] * 3,
        nodes_values=[0.0] * 3, nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0], class_treeids=[0] * 4, class_nodeids=[1, 1, 2, 2], class_ids=[0, 1, 0, 1],
        class_weights=[0.9, 0.1, 0.2, 0.8],
    )  # fmt: skip
    outputs = [
        tensor("label", dtype=TensorProto.INT64),
        helper.make_tensor_value_info("probabilities", FLOAT, declared),
    ]
    graph = helper.make_graph([tree], "g", [tensor("x", 2)], outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    folder.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "m.onnx")


def write_reshape(folder: Path, declared: list[int | str] | None) -> None:
    """Gives x back by a shape that is only known when it runs; declared as wanted."""
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Reshape", ["x", "s"], ["y"])]
    write_onnx(folder, nodes, [tensor("x", 2)], [helper.make_tensor_value_info("y", FLOAT, declared)])


def load(folder: Path) -> LoadedModel:
    return load_version("m", folder, 1, folder / "1")


DECLARED = [["N", 1], ["N", 3], ["N"], ["N", 2, 1], ["N", 2], ["N", "K"], None]


@pytest.mark.parametrize("declared", DECLARED, ids=str)
@pytest.mark.parametrize("label", [["N"], ["N", 1], None], ids=str)
def test_every_probability_of_a_lying_classifier_is_served(
    tmp_path: Path, declared: list[Any] | None, label: list[Any] | None
) -> None:
    write_lying_tree(tmp_path / "1", declared, label)
    loaded = load(tmp_path)
    outputs = loaded.predict({"x": X})
    own = onnxruntime.InferenceSession(tmp_path / "1" / "m.onnx").run(None, {"x": X})
    assert [values.tolist() for values in outputs.values()] == [values.tolist() for values in own]
    assert outputs["probabilities"].tolist() == PROBABILITIES.tolist()
    shapes = {spec.name: spec.shape for spec in loaded.record.signature.outputs}
    assert shapes == {"label": (), "probabilities": (-1,) if declared == ["N", "K"] else (2,)}
    served = model_outputs(outputs, loaded.record.signature)
    assert served["probabilities"].shape == (2, 2)


def test_the_prediction_store_and_files_keep_all_of_it(tmp_path: Path) -> None:
    write_lying_tree(tmp_path / "1", ["N", 1])
    loaded = load(tmp_path)
    fields, outputs = loaded.record.signature.outputs, loaded.predict({"x": X})
    rows = codec_for(fields).pack(outputs, np.zeros(2)).to_pylist()
    assert codec_for(fields).unpack_rows(rows)[0][1]["probabilities"] == pytest.approx([0.2, 0.8])
    assert prediction_values(outputs)[1]["probabilities"] == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize("declared", [["N", 1], ["N", 3], ["N"], ["N", 1, 1], ["N", 2]])
def test_both_columns_of_a_reshaped_output_are_served(tmp_path: Path, declared: list[Any]) -> None:
    write_reshape(tmp_path / "1", declared)
    loaded = load(tmp_path)
    assert loaded.predict({"x": X})["y"].tolist() == X.tolist()
    assert loaded.record.signature.outputs == (TensorSpec("y", DType.FLOAT32, (2,)),)


def test_a_declared_number_that_is_a_column_of_one_stays_a_number(tmp_path: Path) -> None:
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Reshape", ["x", "s"], ["y"])]
    write_onnx(tmp_path / "1", nodes, [tensor("x", 1)], [helper.make_tensor_value_info("y", FLOAT, ["N"])])
    loaded = load(tmp_path)
    assert loaded.predict({"x": X[:, :1]})["y"].tolist() == [1.0, -1.0]
    assert model_outputs(loaded.predict({"x": X[:, :1]}), loaded.record.signature)["y"].shape == (2, 1)


def test_an_output_without_rows_is_refused(tmp_path: Path) -> None:
    write_onnx(
        tmp_path / "1",
        [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)],
        [tensor("x", 2)],
        [helper.make_tensor_value_info("y", FLOAT, [])],
    )
    with pytest.raises(ModelError, match=r"output 'y' has shape \[\] for 1 row of input"):
        load(tmp_path)


def test_an_output_whose_rank_changes_with_the_rows_is_refused(tmp_path: Path) -> None:
    # rows that are squeezed away when there is one
    nodes = [helper.make_node("Squeeze", ["x"], ["y"])]
    write_onnx(tmp_path / "1", nodes, [tensor("x", 1)], [helper.make_tensor_value_info("y", FLOAT, None)])
    with pytest.raises(ModelError, match=r"output 'y'"):
        load(tmp_path)


@pytest.mark.parametrize(("name", "x_rows", "y_rows"), [("y", "N", 1), ("x", 1, 1)])
def test_a_fixed_row_dimension_of_onnx_has_the_fix_of_onnx(tmp_path: Path, name: str, x_rows: Any, y_rows: Any) -> None:
    x, y = (helper.make_tensor_value_info(one, FLOAT, [rows, 2]) for one, rows in (("x", x_rows), ("y", y_rows)))
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Reshape", ["x", "s"], ["y"])]
    write_onnx(tmp_path / "1", nodes, [x], [y])
    with pytest.raises(ModelError, match=rf"'{name}' has a fixed row dimension of 1: .*update_model_dims") as caught:
        load(tmp_path)
    assert "torch" not in caught.value.message


class Answers:
    """A runtime that answers with what a test says, after what it said while it was loaded."""

    device = "cpu"

    def __init__(self, *outputs: TensorSpec) -> None:
        self.signature = Signature.of_model([TensorSpec("x", DType.FLOAT32)], outputs)
        self.outputs = outputs

    def answer(self, rows: npt_array) -> npt_array:
        return rows

    def predict(self, inputs: Block) -> Block:
        given = self.answer(inputs["x"])
        return {spec.name: as_served(given, spec, len(inputs["x"])) for spec in self.outputs}


npt_array = np.ndarray[Any, Any]


def loaded_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Any) -> LoadedModel:
    from inference.models import loading

    write_features(tmp_path, [{"name": "x", "dtype": "float32"}])
    write_reshape(tmp_path / "1", ["N", 2])
    monkeypatch.setattr(loading, "load_runtime", lambda *_, **__: runtime)
    return load(tmp_path)


@pytest.mark.parametrize(
    ("given", "dtype", "shape"),
    [
        (np.array([0.5], np.float32), DType.FLOAT32, ()),
        (np.array([3], np.int32), DType.FLOAT32, ()),
        (np.array([0.5], np.float64), DType.FLOAT64, ()),
        (np.array(["a"], object), DType.STRING, ()),
        (np.array([[1, 2, 3]], np.int8), DType.FLOAT32, (3,)),
    ],
)
def test_values_that_the_declared_dtype_cannot_hold_become_the_declaration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: npt_array, dtype: DType, shape: tuple[int, ...]
) -> None:
    declared = DType.INT32 if dtype is DType.FLOAT64 else DType.FLOAT32
    runtime = Answers(TensorSpec("y", declared))
    monkeypatch.setattr(runtime, "answer", lambda rows: np.repeat(given, len(rows), axis=0))
    loaded = loaded_with(tmp_path, monkeypatch, runtime)
    assert loaded.record.signature.outputs == (TensorSpec("y", dtype, shape),)
    assert loaded.predict({"x": X[:, 0]})["y"].tolist() == np.repeat(given, 2, axis=0).tolist()


def test_an_answer_in_another_form_later_is_a_failure_of_those_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Answers(TensorSpec("y", DType.FLOAT32))
    loaded = loaded_with(tmp_path, monkeypatch, runtime)

    def moody(rows: npt_array) -> npt_array:
        return np.column_stack([rows, rows]) if (rows < 0).any() else rows

    monkeypatch.setattr(runtime, "answer", moody)
    with pytest.raises(PredictionFailed, match=r"declared 1 value a row, and the model gives \[2\] values"):
        loaded.predict({"x": np.array([-1.0], np.float32)})
    scored = score_rows(loaded, {"x": np.array([1, -1, 3, 4], np.float32)})
    assert scored.failed.tolist() == [False, True, False, False]
    assert scored.outputs["y"][[0, 2, 3]].tolist() == [1, 3, 4]


def ragged(rows: npt_array) -> npt_array:
    whole = np.empty(len(rows), object)
    for number, row in enumerate(rows):
        whole[number] = np.ones(int(abs(row)) + 1, np.float32)
    return whole


def test_rows_of_different_lengths_are_refused_when_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Answers(TensorSpec("y", DType.FLOAT32, (-1,)))
    monkeypatch.setattr(runtime, "answer", ragged)
    with pytest.raises(ModelError, match="output 'y' is ragged, its rows differ in length: export it dense"):
        loaded_with(tmp_path, monkeypatch, runtime)


@pytest.mark.parametrize(
    "error", [ValueError("setting an array element with a sequence."), KeyError("y"), ZeroDivisionError(), OSError("x")]
)
def test_whatever_a_runtime_raises_fails_its_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    runtime = Answers(TensorSpec("y", DType.FLOAT32))
    loaded = loaded_with(tmp_path, monkeypatch, runtime)

    def moody(rows: npt_array) -> npt_array:
        if (rows < 0).any():
            raise error
        return rows

    monkeypatch.setattr(runtime, "answer", moody)
    scored = score_rows(loaded, {"x": np.array([1, 2, 3, 4, -5], np.float32)})
    assert np.flatnonzero(scored.failed).tolist() == [4]
    assert type(error).__name__ in scored.reasons[4]


def test_rows_of_a_free_dimension_that_differ_between_calls_keep_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Answers(TensorSpec("y", DType.FLOAT32, (-1,)))

    def padded(rows: npt_array) -> npt_array:
        if (rows < 0).any():
            raise ValueError("negative")
        return np.ones((len(rows), int(rows.max()) + 1), np.float32)

    monkeypatch.setattr(runtime, "answer", padded)
    loaded = loaded_with(tmp_path, monkeypatch, runtime)
    scored = score_rows(loaded, {"x": np.array([1, -1, 3, 3], np.float32)})
    assert scored.failed.tolist() == [False, True, False, False]
    values = prediction_values(scored.outputs)
    assert (values[0], values[2]) == ([1.0, 1.0], [1.0] * 4)


class Gives(BaseEstimator):
    """Answers each row with what a function makes of its first value, whatever that is."""

    n_features_in_ = 1

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer

    def predict(self, x: Any) -> Any:
        answers = np.empty(len(x), dtype=object)
        answers[:] = [self.answer(value) for value in np.asarray(x)[:, 0].tolist()]
        return answers


def whole(value: float) -> int:
    return int(value)


def whole_or_none(value: float) -> int | None:
    return None if value < 0 else int(value)


def decimal(value: float) -> Decimal:
    return Decimal(str(value))


def word(value: float) -> str | None:
    return None if value < 0 else f"w{value:g}"


def one_dict(value: float) -> dict[str, float]:
    return {"score": value}


def gives(folder: Path, answer: Any) -> LoadedModel:
    write_version(folder / "m", 1, Gives(answer), [{"name": "x", "dtype": "float64"}])
    pq.write_table(pa.table({"id": ["a", "b", "c"], "x": [1.5, 2.0, -1.0]}), folder / "t.parquet")
    options = LoadOptions(allow_code=True)
    return load_version(
        "m", folder / "m", 1, folder / "m" / "1", rows=SampleRows(str(folder / "t.parquet")), options=options
    )


@pytest.mark.parametrize(
    ("answer", "dtype", "right"),
    [
        (float, DType.FLOAT64, [1.5, 2.0, -1.0]),
        (whole, DType.INT64, [1, 2, -1]),
        (whole_or_none, DType.INT64, [1, 2, None]),
        (decimal, DType.FLOAT64, [1.5, 2.0, -1.0]),
        (word, DType.STRING, ["w1.5", "w2", None]),
    ],
)
def test_objects_of_python_are_the_numbers_and_texts_that_they_are(
    tmp_path: Path, answer: Any, dtype: DType, right: list[Any]
) -> None:
    loaded = gives(tmp_path, answer)
    assert loaded.record.signature.outputs == (TensorSpec("prediction", dtype),)
    scored = score_rows(loaded, {"x": np.array([1.5, 2.0, -1.0])})
    assert scored.failed.tolist() == [one is None for one in right]
    values = prediction_values(scored.outputs)
    assert [None if one is None else value for one, value in zip(right, values, strict=True)] == right


def test_an_answer_that_is_neither_text_nor_number_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="output 'prediction' is a dict, which is neither text nor a number"):
        gives(tmp_path, one_dict)
