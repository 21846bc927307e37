"""Keras models over the backend that KERAS_BACKEND names; their answers are those of `model.predict`."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np

from tests.support.runtimes.cases import columns_of, float_contract, keep, learnable

layers = keras.layers


def save(model: keras.Model, folder: Path) -> None:
    (folder / "1").mkdir(parents=True)
    model.save(folder / "1" / "model.keras")


def plain(folder: Path, *, broken: bool = False) -> None:
    keras.utils.set_random_seed(3)
    x, y = learnable()
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, "tanh"), layers.Dense(1, name="y")])
    model.compile("adam", "mse")
    model.fit(x, y, epochs=2, verbose=0)
    if broken:
        model.set_weights([weights * np.nan for weights in model.get_weights()])
    save(model, folder)
    answer = model.predict(x, verbose=0)[:, 0]
    keep(folder, columns_of(x), {"y": answer}, features=float_contract(["f0", "f1", "f2", "f3"]))


def several(folder: Path) -> None:
    """Inputs and outputs by name, in an order that is not the alphabet's."""
    keras.utils.set_random_seed(4)
    taste, age = keras.Input((3,), name="taste"), keras.Input((), name="age")
    joined = layers.Concatenate()([taste, layers.Reshape((1,))(age)])
    outputs = {"total": layers.Dense(1)(joined), "scaled": layers.Dense(3)(joined)}
    model = keras.Model({"taste": taste, "age": age}, outputs)
    save(model, folder)
    rng = np.random.default_rng(1)
    columns = {"age": rng.normal(size=50).astype(np.float32), "taste": rng.normal(size=(50, 3)).astype(np.float32)}
    answer = model.predict(columns, verbose=0)
    keep(folder, columns, {"scaled": answer["scaled"], "total": answer["total"][:, 0]})


def text(folder: Path) -> None:
    colour = keras.Input((1,), dtype="string", name="colour")
    code = layers.StringLookup(vocabulary=["rot", "grün"], name="code")(colour)
    english = layers.StringLookup(vocabulary=["red", "green"], invert=True, oov_token="?", name="english")(code)
    model = keras.Model([colour], [code, english])
    save(model, folder)
    columns = {"colour": np.array(["rot", "blau", "grün", "rot"])}
    import tensorflow as tf

    code_values, english_values = model(tf.constant(columns["colour"][:, None]))
    words = np.array([value.decode() for value in english_values.numpy()[:, 0]])
    keep(folder, columns, {"code": code_values.numpy()[:, 0], "english": words})


if __name__ == "__main__":
    target = Path(sys.argv[1])
    plain(target / "plain")
    plain(target / "broken", broken=True)
    several(target / "several")
    if keras.backend.backend() == "tensorflow":  # the others have no text
        text(target / "text")
