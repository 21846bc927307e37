"""TensorFlow SavedModels."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.support.runtimes.cases import columns_of, float_contract, keep, learnable, learnt_weights


def spec(name: str, *shape: int, dtype: tf.DType = tf.float32) -> tf.TensorSpec:
    return tf.TensorSpec((None, *shape), dtype, name=name)


def plain(folder: Path, *, broken: bool = False) -> None:
    weights, bias = learnt_weights()

    class Plain(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable(weights * np.float32("nan") if broken else weights)

        @tf.function(input_signature=[spec("x", 4)])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": x @ self.weights + bias}

    module = Plain()
    tf.saved_model.save(module, str(folder / "1"), signatures=module.serve)
    x, _ = learnable()
    y = module.serve(x)["y"].numpy()
    keep(folder, columns_of(x), {"y": y[:, 0]}, features=float_contract(["f0", "f1", "f2", "f3"]))


def several(folder: Path) -> None:
    class Several(tf.Module):
        @tf.function(input_signature=[spec("age"), spec("taste", 3)])
        def serve(self, age: tf.Tensor, taste: tf.Tensor) -> dict[str, tf.Tensor]:
            scaled = age[:, None] * taste
            return {"scaled": scaled, "total": tf.reduce_sum(scaled, axis=1, keepdims=True)}

    module = Several()
    tf.saved_model.save(module, str(folder / "1"), signatures=module.serve)
    rng = np.random.default_rng(1)
    columns = {"age": rng.normal(size=50).astype(np.float32), "taste": rng.normal(size=(50, 3)).astype(np.float32)}
    answer = module.serve(**columns)
    keep(folder, columns, {"scaled": answer["scaled"].numpy(), "total": answer["total"].numpy()[:, 0]})


def text(folder: Path) -> None:
    class Text(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            codes = tf.lookup.KeyValueTensorInitializer(["rot", "grün"], tf.constant([1, 2], tf.int64))
            self.codes = tf.lookup.StaticHashTable(codes, default_value=0)

        @tf.function(input_signature=[spec("colour", dtype=tf.string)])
        def serve(self, colour: tf.Tensor) -> dict[str, tf.Tensor]:
            code = self.codes.lookup(colour)
            return {"code": code, "english": tf.gather(["?", "red", "green"], code)}

    module = Text()
    tf.saved_model.save(module, str(folder / "1"), signatures=module.serve)
    columns = {"colour": np.array(["rot", "blau", "grün", "rot"])}
    answer = module.serve(tf.constant(columns["colour"].tolist()))
    english = np.array([value.decode() for value in answer["english"].numpy()])
    keep(folder, columns, {"code": answer["code"].numpy(), "english": english})


if __name__ == "__main__":
    target = Path(sys.argv[1])
    plain(target / "plain")
    plain(target / "broken", broken=True)
    several(target / "several")
    text(target / "text")
