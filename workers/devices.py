"""What a worker process decides before a model's library is used for the first time."""

from __future__ import annotations

import os

from inference.models.runtimes import keras_environment
from inference.settings import Settings


def prepare_gpus(settings: Settings) -> None:
    """Hide the GPUs from every library when the settings say so, and choose what Keras computes by.

    Which GPU this process is pinned to was decided by whoever started it, through `CUDA_VISIBLE_DEVICES`. How much of
    its memory a library may take is decided when it loads its first model: no library is imported for a format that
    no model has.
    """
    if settings.workers.gpus == "none":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ.update(keras_environment(settings.workers.keras_backend))
