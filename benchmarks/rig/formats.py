"""One network in every format: 20 numbers, 64 tanh (or `BENCH_HIDDEN`), one number out, with the same weights.

Run as a script, `python formats.py FORMAT FOLDER` writes it into a version's folder, in a process of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

FEATURES, HIDDEN = 20, int(os.environ.get("BENCH_HIDDEN", "64"))


def weights() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(11)
    first = rng.normal(size=(FEATURES, HIDDEN)) / FEATURES**0.5
    last = rng.normal(size=(HIDDEN, 1)) / HIDDEN**0.5
    return tuple(one.astype(np.float32) for one in (first, rng.normal(size=HIDDEN), last, rng.normal(size=1)))


def expected(x: np.ndarray) -> np.ndarray:
    w1, b1, w2, b2 = weights()
    return (np.tanh(x @ w1 + b1) @ w2 + b2)[:, 0]


def saved_model(folder: Path) -> None:
    import tensorflow as tf

    w1, b1, w2, b2 = map(tf.Variable, weights())
    module = tf.Module()
    module.kept = [w1, b1, w2, b2]

    @tf.function(input_signature=[tf.TensorSpec((None, FEATURES), tf.float32, name="x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.tanh(x @ w1 + b1) @ w2 + b2}

    module.serve = serve
    tf.saved_model.save(module, str(folder), signatures=serve)


def keras(folder: Path) -> None:
    import keras as library

    model = library.Sequential(
        [library.Input((FEATURES,)), library.layers.Dense(HIDDEN, "tanh"), library.layers.Dense(1, name="y")]
    )
    model.set_weights(list(weights()))
    model.save(folder / "model.keras")


def torch_export(folder: Path) -> None:
    import torch

    first, last = torch.nn.Linear(FEATURES, HIDDEN), torch.nn.Linear(HIDDEN, 1)
    w1, b1, w2, b2 = map(torch.from_numpy, weights())
    with torch.no_grad():
        first.weight[:], first.bias[:], last.weight[:], last.bias[:] = w1.T, b1, w2.T, b2
    network = torch.nn.Sequential(first, torch.nn.Tanh(), last).eval()
    shapes = ({0: torch.export.Dim("rows")},)
    program = torch.export.export(network, (torch.zeros(2, FEATURES),), dynamic_shapes=shapes)
    torch.export.save(program, folder / "model.pt2")


def onnx(folder: Path) -> None:
    import onnx as library
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Gemm", ["t", "w2", "b2"], ["y"]),
    ]
    kept = [numpy_helper.from_array(one, name) for one, name in zip(weights(), ("w1", "b1", "w2", "b2"), strict=True)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", FEATURES])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])
    graph = helper.make_graph(nodes, "g", [x], [y], kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    library.save(model, folder / "model.onnx")


def skops(folder: Path) -> None:
    import skops.io
    from sklearn.neural_network import MLPRegressor

    w1, b1, w2, b2 = weights()
    rows = np.random.default_rng(0).normal(size=(50, FEATURES)).astype(np.float32)
    model = MLPRegressor(hidden_layer_sizes=(HIDDEN,), activation="tanh", max_iter=1, batch_size=50)
    model.partial_fit(rows, rows[:, 0])
    model.coefs_, model.intercepts_ = [w1, w2], [b1, b2]
    skops.io.dump(model, folder / "model.skops")


FORMATS = {"saved_model": saved_model, "keras": keras, "torch_export": torch_export, "onnx": onnx, "skops": skops}

if __name__ == "__main__":
    FORMATS[sys.argv[1]](Path(sys.argv[2]))
