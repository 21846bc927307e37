"""ONNX models of a few nodes, written in milliseconds and loaded in a tenth of a second: most tests need no more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def write_onnx(
    folder: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights_file: str | None = None,
    **weights: np.ndarray,
) -> None:
    """Write a version's folder with one ONNX model; `weights` are its constants, in `weights_file` if named."""
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(
        model, folder / "model.onnx", save_as_external_data=bool(weights_file), location=weights_file, size_threshold=0
    )


def tensor(name: str, *shape: int | str, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    """An input or output with a free first dimension."""
    return helper.make_tensor_value_info(name, dtype, ["rows", *shape])


def write_sum(folder: Path, k: int) -> None:
    """Write a version that adds up: x [rows, k] float32 → y [rows, 1]."""
    add_up = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)
    write_onnx(folder, [add_up], [tensor("x", k)], [tensor("y", 1)], axes=np.array([1]))


def write_weighted_sum(folder: Path, weights: Sequence[float]) -> None:
    """Write a version that adds up with weights: x [rows, k] float32 → y [rows, 1]."""
    add_up = helper.make_node("MatMul", ["x", "weights"], ["y"])
    column = np.array([[one] for one in weights], np.float32)
    write_onnx(folder, [add_up], [tensor("x", len(weights))], [tensor("y", 1)], weights=column)


def write_times(folder: Path, factor: float) -> None:
    """Write a version that multiplies: x [rows] float32 → y [rows]."""
    weights = {"factor": np.array(factor, np.float32)}
    write_onnx(folder, [helper.make_node("Mul", ["x", "factor"], ["y"])], [tensor("x")], [tensor("y")], **weights)


def write_dense(folder: Path, k: int, seed: int = 0) -> None:
    """Write a version of two layers, in two files; `tests.support.models.dense_predictions` has its answers."""
    first, last = dense_weights(k, seed)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["hidden"]),
        helper.make_node("Tanh", ["hidden"], ["bent"]),
        helper.make_node("MatMul", ["bent", "last"], ["y"]),
    ]
    write_onnx(folder, nodes, [tensor("x", k)], [tensor("y", 1)], weights_file="weights.bin", first=first, last=last)


def dense_weights(k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights [k, 8] and [8, 1] of a dense model."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(k, 8)).astype(np.float32) / np.float32(k**0.5)
    return first, rng.normal(size=(8, 1)).astype(np.float32)


def write_fixed(folder: Path) -> None:
    """Write a version whose row dimension is fixed, which cannot be served."""
    x, y = (helper.make_tensor_value_info(name, FLOAT, [1, 2]) for name in "xy")
    write_onnx(folder, [helper.make_node("Identity", ["x"], ["y"])], [x], [y])


def write_fussy(folder: Path) -> None:
    """Write a version that fails where the first value is negative or missing: x [rows, 2] → log of the second."""
    nodes = [
        helper.make_node("Gather", ["x", "first"], ["a"], axis=1),
        helper.make_node("Gather", ["x", "second"], ["b"], axis=1),
        # the only way to raise: a negative value, or a missing one, asks for a weight that is not there
        helper.make_node("GreaterOrEqual", ["a", "zero"], ["is_good"]),
        helper.make_node("Not", ["is_good"], ["is_negative"]),
        helper.make_node("Cast", ["is_negative"], ["place"], to=TensorProto.INT64),
        helper.make_node("Gather", ["one", "place"], ["factor"]),
        helper.make_node("Log", ["b"], ["log"]),
        helper.make_node("Mul", ["log", "factor"], ["y"]),
    ]
    numbers = {"first": np.array([0]), "second": np.array([1])}
    floats = {"zero": np.zeros(1, np.float32), "one": np.ones(1, np.float32)}
    write_onnx(folder, nodes, [tensor("x", 2)], [tensor("y", 1)], **numbers, **floats)


def write_mixed(folder: Path) -> None:
    """Write a version that takes numbers and text: carat, depth float32 and cut text → price [rows, 1]."""
    look_up = helper.make_node(
        "LabelEncoder", ["cut"], ["grade"], domain="ai.onnx.ml",
        keys_strings=["Fair", "Good", "Ideal"], values_floats=[10.0, 20.0, 30.0], default_float=0.0,
    )  # fmt: skip
    nodes = [
        look_up,
        helper.make_node("Mul", ["carat", "hundred"], ["by_weight"]),
        helper.make_node("Sum", ["by_weight", "depth", "grade"], ["price"]),
    ]
    inputs = [tensor("carat"), tensor("cut", dtype=TensorProto.STRING), tensor("depth")]
    write_onnx(folder, nodes, inputs, [tensor("price")], hundred=np.array(100, np.float32))
