"""Runtimes: how a model's folder becomes something that computes. One file each, imported by workers only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from inference.errors import ModelError
from inference.models.runtimes.greetings import without_greetings
from inference.schema import Block, Signature


class Runtime(Protocol):
    """A loaded model. `predict` may be called from one thread at a time or from many."""

    #: outputs are given as they are served: a trailing dimension of 1 is dropped
    signature: Signature
    #: the kind of device that computes, such as "cpu-8" or a GPU's name: what is fast on one is fast on its like
    device: str

    def predict(self, inputs: Block) -> Block:
        """Return the outputs by name, rows in the order of the inputs.

        Raises:
            PredictionFailed: the model raised on these rows.
            ModelOutOfMemory: so many rows do not fit into the device's memory.
        """
        ...


def load_runtime(folder: Path) -> Runtime:
    """Load the model in a version's folder. Takes seconds the first time: TensorFlow is imported here.

    Raises:
        ModelError: it cannot be loaded or served, or TensorFlow is not installed.
    """
    runtime: Runtime = _tensorflow().TensorFlowRuntime(folder)
    return runtime


def prepare_devices(*, use_gpus: bool, gpu_memory_share: float | None) -> list[str]:
    """Set up this process's GPUs, before any model is loaded; returns their names.

    `gpu_memory_share`: the fraction of each GPU's memory to take; None takes what is needed as it is needed.

    Raises:
        ModelError: TensorFlow is not installed.
        SettingsError: a share is asked for, but the size of the GPU's memory cannot be found out.
    """
    library = _tensorflow()
    with without_greetings():
        names: list[str] = library.prepare_devices(use_gpus=use_gpus, gpu_memory_share=gpu_memory_share)
    return names


def _tensorflow() -> Any:
    try:
        with without_greetings():
            from inference.models.runtimes import tensorflow
    except ImportError as error:
        raise ModelError(
            f"TensorFlow cannot be imported ({error}): install forecache[tensorflow] where workers run"
        ) from error
    return tensorflow
