"""Trains a small TensorFlow model on a real table, exports it, and keeps its own direct answers for comparison.

Run as `python tests/support/real_models.py flights|diamonds TABLE MODEL_FOLDER ANSWERS.parquet`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

ROWS_TO_TRAIN_ON = 20_000
DIAMOND_NUMBERS = ("carat", "depth", "table", "x", "y", "z")
DIAMOND_CATEGORIES = ("cut", "color", "clarity")


def train_flights(table: pd.DataFrame, folder: Path) -> None:
    """One tensor of two numbers, in the order of features.json."""
    x = table[["distance", "time"]].to_numpy("float32")
    scale = keras.layers.Normalization()
    scale.adapt(x)
    model = keras.Sequential([keras.Input((2,)), scale, keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    fit(model, x, table["delay"].to_numpy("float32"))
    model.export(folder / "1", verbose=False)
    features = [{"name": "distance", "dtype": "float32"}, {"name": "time", "dtype": "float32"}]
    (folder / "features.json").write_text(json.dumps({"features": features}))


def train_diamonds(table: pd.DataFrame, folder: Path) -> None:
    """One named input per feature, text looked up inside the SavedModel: no features.json."""
    inputs = {name: keras.Input((1,), name=name) for name in DIAMOND_NUMBERS}
    inputs |= {name: keras.Input((1,), name=name, dtype="string") for name in DIAMOND_CATEGORIES}
    looked_up = [
        keras.layers.StringLookup(vocabulary=sorted(table[name].unique()), output_mode="one_hot")(inputs[name])
        for name in DIAMOND_CATEGORIES
    ]
    joined = keras.layers.Concatenate()([*(inputs[name] for name in DIAMOND_NUMBERS), *looked_up])
    hidden = keras.layers.Dense(32, "relu")(joined)
    model = keras.Model(inputs, keras.layers.Dense(1, name="price")(hidden))
    fit(model, as_inputs(table), table["price"].to_numpy("float32"))
    model.export(folder / "1", verbose=False)


def as_inputs(table: pd.DataFrame) -> dict[str, tf.Tensor]:
    numbers = {name: tf.constant(table[[name]].to_numpy("float32")) for name in DIAMOND_NUMBERS}
    return numbers | {name: tf.constant(table[[name]].to_numpy(str)) for name in DIAMOND_CATEGORIES}


def fit(model: keras.Model, x: object, y: np.ndarray) -> None:
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mae")
    head = {name: v[:ROWS_TO_TRAIN_ON] for name, v in x.items()} if isinstance(x, dict) else x[:ROWS_TO_TRAIN_ON]
    model.fit(head, y[:ROWS_TO_TRAIN_ON], batch_size=512, epochs=1, verbose=0)


def answer_directly(kind: str, table: pd.DataFrame, folder: Path) -> np.ndarray:
    """One direct call of the exported signature over the whole table: the truth to compare with."""
    signature = tf.saved_model.load(str(folder / "1")).signatures["serving_default"]
    if kind == "diamonds":
        outputs = signature(**as_inputs(table))
    else:
        (name,) = signature.structured_input_signature[1]
        outputs = signature(**{name: tf.constant(table[["distance", "time"]].to_numpy("float32"))})
    (answers,) = outputs.values()
    return answers.numpy().reshape(-1)


def main(kind: str, data: str, folder: str, answers: str) -> None:
    keras.utils.set_random_seed(1)
    table = pd.read_parquet(data)
    Path(folder).mkdir(parents=True)
    {"flights": train_flights, "diamonds": train_diamonds}[kind](table, Path(folder))
    direct = answer_directly(kind, table, Path(folder))
    pd.DataFrame({"entity_id": table["entity_id"], "prediction": direct}).to_parquet(answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
