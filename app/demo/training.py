"""Trains the demo's model: `python -P -m app.demo.training TABLE VERSION_FOLDER`, a process of its own."""

from __future__ import annotations

import sys

import pandas as pd
import tensorflow as tf

from app.demo.data import FEATURES, TARGET

_SEED = 7


def train(table: str, version_folder: str) -> None:
    """Write a SavedModel that predicts the delay (minutes) from the features in the contract's order."""
    tf.keras.utils.set_random_seed(_SEED)
    flights = pd.read_parquet(table)
    inputs = flights[list(FEATURES)].to_numpy("float32")
    scale = tf.keras.layers.Normalization()
    scale.adapt(inputs)
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            tf.keras.Input((len(FEATURES),), name="flight"),
            scale,
            layers.Dense(32, activation="relu"),
            layers.Dense(16, activation="relu"),
            layers.Dense(1, name=TARGET),
        ]
    )
    model.compile(optimizer=tf.keras.optimizers.Adam(0.01), loss="mae")
    model.fit(inputs, flights[TARGET].to_numpy(), epochs=4, batch_size=256, verbose=0)
    model.export(version_folder, verbose=False)


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2])
