"""What every runtime is to those who call it, and what it is told when it loads a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from inference.schema import Block, Signature

_LONGEST_LINE = 300
#: what the lines around the message of one of TensorFlow's graph errors begin with
_FRAME_LINES = ("Graph execution error", "Detected at node", "<stack", "File ", "[[", "(")
#: where in the graph, before the message itself
_NODE = re.compile(r"^(\{\{[^}]*\}\}\s*)+")


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
    `code_folder`: where their modules, and those that a pickle needs, are looked for when Python does not find them.
    `signature`: which one of a SavedModel's is served; None for its default one, or its only one.
    `gpu_memory_share`: the fraction of each GPU's memory to take; None takes what is needed as it is needed.
    `engine_hosts`: which hosts a `remote.toml` may name; None for all.
    """

    allow_code: bool = False
    gpu_memory_share: float | None = None
    import_functions: bool = True
    code_folder: Path | None = None
    signature: str | None = None
    engine_hosts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class SavedSignature:
    """One of the signatures of a SavedModel. `reads_examples`: its input is serialized tf.Examples, not columns."""

    signature: Signature
    reads_examples: bool


def one_line(error: BaseException) -> str:
    """Return what a library's error says, as one line of bounded length."""
    return " ".join(str(error).split())[:_LONGEST_LINE] or type(error).__name__


def telling_line(error: BaseException) -> str:
    """Return the line of a TensorFlow error that tells what is wrong, rather than where in the graph."""
    lines = [_NODE.sub("", line.strip()) for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(_FRAME_LINES)]
    return telling[0][:_LONGEST_LINE] if telling else one_line(error)
