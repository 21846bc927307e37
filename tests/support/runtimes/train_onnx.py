"""ONNX models, written node by node; their answers are those of ONNX' own reference evaluator."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.support.runtimes.cases import columns_of, float_contract, keep, learnable, learnt_weights

FLOAT, STRING, INT = TensorProto.FLOAT, TensorProto.STRING, TensorProto.INT64


def save(folder: Path, nodes: list, inputs: list, outputs: list, **weights: np.ndarray) -> ReferenceEvaluator:
    (folder / "1").mkdir(parents=True)
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in weights.items()]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "1" / "model.onnx")
    return ReferenceEvaluator(model)


def tensor(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["rows", *shape])


def plain(folder: Path, *, broken: bool = False) -> None:
    weights, bias = learnt_weights()
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["y"])]
    if broken:
        weights = weights * np.float32("nan")
    evaluator = save(folder, nodes, [tensor("x", FLOAT, 4)], [tensor("y", FLOAT, 1)], w=weights, b=bias)
    x, _ = learnable()
    (y,) = evaluator.run(["y"], {"x": x})
    keep(folder, columns_of(x), {"y": y[:, 0]}, features=float_contract(["f0", "f1", "f2", "f3"]))


def several(folder: Path) -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["age", "one"], ["column"]),
        helper.make_node("Mul", ["column", "taste"], ["scaled"]),
        helper.make_node("ReduceSum", ["scaled", "one"], ["total"], keepdims=1),
    ]
    evaluator = save(
        folder, nodes, [tensor("age", FLOAT), tensor("taste", FLOAT, 3)],
        [tensor("scaled", FLOAT, 3), tensor("total", FLOAT, 1)], one=np.array([1]),
    )  # fmt: skip
    rng = np.random.default_rng(1)
    columns = {"age": rng.normal(size=50).astype(np.float32), "taste": rng.normal(size=(50, 3)).astype(np.float32)}
    scaled, total = evaluator.run(["scaled", "total"], columns)
    keep(folder, columns, {"scaled": scaled, "total": total[:, 0]})


def text(folder: Path) -> None:
    nodes = [
        helper.make_node(
            "LabelEncoder", ["colour"], ["code"], domain="ai.onnx.ml",
            keys_strings=["rot", "grün"], values_int64s=[1, 2], default_int64=0,
        ),
        helper.make_node(
            "LabelEncoder", ["code"], ["english"], domain="ai.onnx.ml",
            keys_int64s=[1, 2], values_strings=["red", "green"], default_string="?",
        ),
    ]  # fmt: skip
    evaluator = save(folder, nodes, [tensor("colour", STRING)], [tensor("code", INT), tensor("english", STRING)])
    columns = {"colour": np.array(["rot", "blau", "grün", "rot"])}
    code, english = evaluator.run(["code", "english"], {"colour": columns["colour"].astype(object)})
    keep(folder, columns, {"code": code, "english": english.astype(str)})


if __name__ == "__main__":
    target = Path(sys.argv[1])
    plain(target / "plain")
    plain(target / "broken", broken=True)
    several(target / "several")
    text(target / "text")
