"""What every runtime is to those who call it, and what it is told when it loads a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from inference.schema import Block, Signature

_LONGEST_LINE = 300


class Runtime(Protocol):
    """A loaded model. `predict` may be called from one thread at a time or from many."""

    #: as the model declares it; outputs as they are served: a trailing dimension of 1 is dropped
    signature: Signature
    #: the kind of device that computes, such as "cpu-8" or a GPU's name: what is fast on one is fast on its like
    device: str

    def predict(self, inputs: Block) -> Block:
        """Return the outputs by name in the model's own shapes, rows in the order of the inputs.

        Raises:
            PredictionFailed: the model raised on these rows.
            ModelOutOfMemory: so many rows do not fit into the device's memory.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What the settings say about loading a model.

    `allow_code`: files that run code when they are loaded may be loaded.
    `import_functions`: the functions that the features name are imported at once, not when they are first called;
    `code_folder`: where their modules are looked for that Python does not find by itself.
    `gpu_memory_share`: the fraction of each GPU's memory to take; None takes what is needed as it is needed.
    """

    allow_code: bool = False
    gpu_memory_share: float | None = None
    import_functions: bool = True
    code_folder: Path | None = None


def one_line(error: BaseException) -> str:
    """Return what a library's error says, as one line of bounded length."""
    return " ".join(str(error).split())[:_LONGEST_LINE] or type(error).__name__
