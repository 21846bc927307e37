"""The model as Spark's Python workers load it; a module of its own, so that a worker has one memory of it."""

from __future__ import annotations

from functools import cache
from typing import Any


def load(path: str) -> Any:
    """Return the Keras model; TensorFlow loads only where it computes."""
    import tensorflow as tf

    return tf.keras.models.load_model(path)


@cache
def load_once(path: str) -> Any:
    """Return the Keras model, loaded on the first call in this process."""
    return load(path)
