"""The models of Triton's client examples, made anew as ONNX: sums of numbers and of texts, and an image's class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from tests.support.plain_onnx import tensor, write_onnx

INT32, STRING = TensorProto.INT32, TensorProto.STRING
LABELS = ("cat", "dog", "bird")


def write_simple(folder: Path, dtype: int = INT32) -> None:
    """Write a version of two inputs [rows, 16]: OUTPUT0 is their sum, OUTPUT1 their difference."""
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]
    both = [[tensor(f"{kind}{n}", 16, dtype=dtype) for n in range(2)] for kind in ("INPUT", "OUTPUT")]
    write_onnx(folder, nodes, *both)


def write_simple_string(folder: Path) -> None:
    """Write a version that does the same with numbers written as texts."""
    nodes = []
    for n in range(2):
        nodes.append(helper.make_node("Cast", [f"INPUT{n}"], [f"number{n}"], to=INT32))
    for n, op in enumerate(("Add", "Sub")):
        nodes.append(helper.make_node(op, ["number0", "number1"], [f"result{n}"]))
        nodes.append(helper.make_node("Cast", [f"result{n}"], [f"OUTPUT{n}"], to=STRING))
    both = [[tensor(f"{kind}{n}", 16, dtype=STRING) for n in range(2)] for kind in ("INPUT", "OUTPUT")]
    write_onnx(folder, nodes, *both)


def write_identity(folder: Path) -> None:
    """Write a version that returns its texts: INPUT0 [rows, 16] → OUTPUT0."""
    node = helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])
    write_onnx(folder, [node], [tensor("INPUT0", 16, dtype=STRING)], [tensor("OUTPUT0", 16, dtype=STRING)])


def write_image_classes(folder: Path) -> None:
    """Write a version that scores three classes, with labels: image [rows, 4, 4, 3] → the mean of each colour."""
    mean = helper.make_node("ReduceMean", ["image"], ["scores"], axes=[1, 2], keepdims=0)
    write_onnx(folder, [mean], [tensor("image", 4, 4, 3)], [tensor("scores", 3)])
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")


def write_column(folder: Path) -> None:
    """Write a version of one value a row: x [rows] float32 → y [rows], which is twice x."""
    weights = {"two": np.array(2, np.float32)}
    write_onnx(folder, [helper.make_node("Mul", ["x", "two"], ["y"])], [tensor("x")], [tensor("y")], **weights)
