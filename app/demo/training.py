"""Trains the demo's model, in a separate process: `python -P -m app.demo.training TABLE VERSION_FOLDER`.

It prints JSON objects, one a line: `{"rows_done", "rows_total"}` during the training, `{"auc"}` at the end.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pandas as pd
import tensorflow as tf

from app.demo.data import DEVICES, FEATURES, NUMBERS, TARGET

_SEED = 7
_EPOCHS = 3
_ROWS_PER_STEP = 256
#: share of the table that evaluates the trained model
_HELD_BACK = 0.1


class _Progress(tf.keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
    """Prints the number of rows that the model has learnt from."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._rows = rows
        self._done = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002 - the signature is Keras'
        self._done += _ROWS_PER_STEP
        _print({"rows_done": min(self._done, self._rows * _EPOCHS), "rows_total": self._rows * _EPOCHS})


def train(table: str, version_folder: str) -> None:
    """Write a SavedModel that returns the probability of a click. It has one named input per feature."""
    tf.keras.utils.set_random_seed(_SEED)
    views = pd.read_parquet(table)
    kept_back = int(len(views) * _HELD_BACK)
    seen, unseen = views[kept_back:], views[:kept_back]
    model = build(seen)
    model.compile(
        optimizer=tf.keras.optimizers.Adam(0.005), loss="binary_crossentropy", metrics=[tf.keras.metrics.AUC()]
    )
    model.fit(
        tensors(seen), seen[TARGET].to_numpy(), epochs=_EPOCHS, batch_size=_ROWS_PER_STEP, verbose=0,
        callbacks=[_Progress(len(seen))],
    )  # fmt: skip
    _, auc = model.evaluate(tensors(unseen), unseen[TARGET].to_numpy(), batch_size=4096, verbose=0)
    model.export(version_folder, verbose=False)
    _print({"auc": round(float(auc), 3)})


def build(views: pd.DataFrame) -> Any:
    """Return an untrained model: it scales numbers, encodes the device, and has two small layers."""
    layers = tf.keras.layers
    inputs = {name: tf.keras.Input((1,), name=name, dtype="float32") for name in NUMBERS}
    inputs["device"] = tf.keras.Input((1,), name="device", dtype="string")
    encoded = []
    for name in NUMBERS:
        scale = layers.Normalization(axis=None)
        scale.adapt(views[name].to_numpy())
        encoded.append(scale(inputs[name]))
    encoded.append(layers.StringLookup(vocabulary=list(DEVICES), output_mode="one_hot")(inputs["device"]))
    hidden = layers.Concatenate()(encoded)
    for units in (32, 16):
        hidden = layers.Dense(units, activation="relu")(hidden)
    return tf.keras.Model(inputs, layers.Dense(1, activation="sigmoid", name="click_probability")(hidden))


def tensors(views: pd.DataFrame) -> dict[str, Any]:
    """Return the features as the model's inputs, each of shape [rows, 1]."""
    return {name: tf.convert_to_tensor(views[name].to_numpy().reshape(-1, 1)) for name in FEATURES}


def _print(fact: dict[str, Any]) -> None:
    print(json.dumps(fact), flush=True)  # noqa: T201 - `app.demo.show` reads it


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2])
