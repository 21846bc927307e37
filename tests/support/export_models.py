"""Exports the SavedModels that tests use: `python -m tests.support.export_models KIND FOLDER [KIND FOLDER …]`.

Run as its own process, so that the test process needs no TensorFlow. KIND:

- `dense:K:SEED`  one input [None, K] float32 → one output [None, 1]
- `sum:K[:S]`     one input [None, K] float32 → its sum [None, 1], S seconds later
- `mixed`         inputs carat, depth [None] float32 and cut [None] string, looked up inside → price [None, 1]
- `several`       one input [None, 4] float32 → score [None, 1], embedding [None, 3], label [None] string
- `fussy`         one input [None, 2] float32; raises when a row's first value is negative
- `fixed`         one input [1, 2]: a row dimension that cannot be served
- `echo`          number [None, 2] float32, count int64, text string, flag bool, all [None] → the same as `same_…`
- `raw`           one input [None] string → its length [None] int64, and itself as `image_bytes`
- `classify`, `regress`  serialized examples with x of 2 floats → classes and scores [None, 2], or outputs [None, 1]
- those of `serving_models.py`: `half_plus_two`, `digits`, …
- `keras:K`       a Keras model of the functional interface, exported by `model.export`
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf

from tests.support import serving_models


def weights(k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Deterministic weights, which `tests.support.models` computes with as well."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(k, 8)).astype(np.float32) / np.float32(k**0.5),
        rng.normal(size=(8, 1)).astype(np.float32),
    )


def spec(*shape: int | None, dtype: tf.DType = tf.float32, name: str) -> tf.TensorSpec:
    return tf.TensorSpec(shape, dtype, name=name)


def dense(folder: str, k: str, seed: str = "0") -> None:
    first, last = weights(int(k), int(seed))

    class Dense(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = tf.Variable(first), tf.Variable(last)

        @tf.function(input_signature=[spec(None, int(k), name="x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": tf.tanh(x @ self.first) @ self.last}

    _save(Dense(), folder)


def let_pass(seconds: str) -> None:
    """Have a function that is being traced take so long, however fast the machine is."""
    until = tf.timestamp() + float(seconds)
    tf.while_loop(lambda now: now < until, lambda _: tf.timestamp(), [tf.timestamp()])


def add_up(folder: str, k: str, seconds: str = "") -> None:
    class Sum(tf.Module):
        @tf.function(input_signature=[spec(None, int(k), name="x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            if seconds:
                let_pass(seconds)
            return {"y": tf.reduce_sum(x, axis=1, keepdims=True)}

    _save(Sum(), folder)


def mixed(folder: str) -> None:
    class Mixed(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            words = tf.lookup.KeyValueTensorInitializer(["Fair", "Good", "Ideal"], [1.0, 2.0, 3.0])
            self.table = tf.lookup.StaticHashTable(words, default_value=0.0)

        @tf.function(
            input_signature=[
                spec(None, name="carat"),
                spec(None, name="depth"),
                spec(None, dtype=tf.string, name="cut"),
            ]
        )
        def serve(self, carat: tf.Tensor, depth: tf.Tensor, cut: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"price": tf.expand_dims(100.0 * carat + depth + 10.0 * self.table.lookup(cut), 1)}

    _save(Mixed(), folder)


def several(folder: str) -> None:
    class Several(tf.Module):
        @tf.function(input_signature=[spec(None, 4, name="x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            score = tf.reduce_sum(x, axis=1, keepdims=True)
            label = tf.where(score[:, 0] > 0, "über", "unter")
            return {"score": score, "embedding": x[:, :3] * 2.0, "label": label}

    _save(Several(), folder)


def fussy(folder: str) -> None:
    class Fussy(tf.Module):
        @tf.function(input_signature=[spec(None, 2, name="x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            tf.debugging.assert_non_negative(x[:, 0], message="negative distance")
            # the logarithm of 0 is not finite
            return {"y": tf.math.log(x[:, 1])}

    _save(Fussy(), folder)


def fixed(folder: str) -> None:
    class Fixed(tf.Module):
        @tf.function(input_signature=[spec(1, 2, name="x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": x}

    _save(Fixed(), folder)


def echo(folder: str) -> None:
    class Echo(tf.Module):
        @tf.function(
            input_signature=[
                spec(None, 2, name="number"),
                spec(None, dtype=tf.int64, name="count"),
                spec(None, dtype=tf.string, name="text"),
                spec(None, dtype=tf.bool, name="flag"),
            ]
        )
        def serve(self, number: tf.Tensor, count: tf.Tensor, text: tf.Tensor, flag: tf.Tensor) -> dict[str, tf.Tensor]:
            given = {"number": number, "count": count, "text": text, "flag": flag}
            return {f"same_{name}": tf.identity(tensor) for name, tensor in given.items()}

    _save(Echo(), folder)


def scaled(folder: str) -> None:
    """`factor` and `shift` have values of their own, so a request may leave them out."""

    two, half = tf.constant(2.0), tf.constant([0.5])

    class Scaled(tf.Module):
        @tf.function(
            input_signature=[spec(None, 2, name="x"), tf.TensorSpec([], name="factor"), spec(None, name="shift")]
        )
        def serve(self, x: tf.Tensor, factor: tf.Tensor = two, shift: tf.Tensor = half) -> dict[str, tf.Tensor]:
            return {"y": x * factor + shift[:, None]}

    _save(Scaled(), folder)


def lengths(folder: str) -> None:
    class Lengths(tf.Module):
        @tf.function(
            input_signature=[spec(None, None, None, name="grid"), spec(None, None, dtype=tf.string, name="words")]
        )
        def serve(self, grid: tf.Tensor, words: tf.Tensor) -> dict[str, tf.Tensor]:
            return {
                "doubled": 2.0 * grid,
                "joined": tf.strings.reduce_join(words, axis=1, separator=" "),
                "upper": tf.strings.upper(words),
            }

    _save(Lengths(), folder)


def scalars(folder: str) -> None:
    class Scalars(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], name="a"), tf.TensorSpec([], dtype=tf.string, name="word")])
        def serve(self, a: tf.Tensor, word: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"half": a / 2.0, "twice": tf.strings.join([word, word])}

    _save(Scalars(), folder)


def raw(folder: str) -> None:
    class Raw(tf.Module):
        @tf.function(input_signature=[spec(None, dtype=tf.string, name="image")])
        def serve(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"length": tf.cast(tf.strings.length(image), tf.int64), "image_bytes": tf.identity(image)}

    _save(Raw(), folder)


def _parse_x(inputs: tf.Tensor) -> tf.Tensor:
    return tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([2], tf.float32, [0.0, 0.0])})["x"]


def classify(folder: str) -> None:
    class Classify(tf.Module):
        @tf.function(input_signature=[spec(None, dtype=tf.string, name="inputs")])
        def serve(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            x = _parse_x(inputs)
            return {"scores": x, "classes": tf.tile([["first", "second"]], [tf.shape(x)[0], 1])}

    _save(Classify(), folder)


def regress(folder: str) -> None:
    class Regress(tf.Module):
        @tf.function(input_signature=[spec(None, dtype=tf.string, name="inputs")])
        def serve(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"outputs": tf.reduce_sum(_parse_x(inputs), axis=1, keepdims=True)}

    _save(Regress(), folder)


def keras(folder: str, k: str) -> None:
    import keras as library

    library.utils.set_random_seed(7)
    model = library.Sequential([library.Input((int(k),)), library.layers.Dense(4, "relu"), library.layers.Dense(1)])
    model.export(folder, verbose=False)


def _save(module: tf.Module, folder: str) -> None:
    tf.saved_model.save(module, folder, signatures={"serving_default": module.serve})


KINDS = {
    "dense": dense,
    "sum": add_up,
    "mixed": mixed,
    "several": several,
    "fussy": fussy,
    "fixed": fixed,
    "echo": echo,
    "lengths": lengths,
    "scalars": scalars,
    "scaled": scaled,
    "raw": raw,
    "classify": classify,
    "regress": regress,
    "keras": keras,
    **serving_models.KINDS,
}

if __name__ == "__main__":
    for kind, target in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        name, *arguments = kind.split(":")
        KINDS[name](target, *arguments)
