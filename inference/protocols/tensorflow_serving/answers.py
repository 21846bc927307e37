"""A model's output tensors as the protocol's JSON."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import BadInput
from inference.protocols.json_tensors import render
from inference.protocols.tensorflow_serving.examples import CLASSES, OUTPUTS, SCORES
from inference.schema import Block, rows_in

#: outputs whose names end like that are bytes rather than text
_BYTES_SUFFIX = "_bytes"


def predict_answer(outputs: Block, *, by_row: bool) -> bytes:
    """Return the answer to a predict request. A single output drops its name.

    Raises:
        BadInput: it came by rows, but the outputs have different numbers of rows.
    """
    values = {name: _values(name, one) for name, one in outputs.items()}
    if not by_row:
        return render({"outputs": next(iter(values.values())) if len(values) == 1 else values})
    rows = rows_in(outputs)
    for name, one in outputs.items():
        if len(one) != rows:
            raise BadInput(f"Tensor name: {name} has inconsistent batch size: {len(one)} expecting: {rows}")
    if len(values) == 1:
        return render({"predictions": next(iter(values.values()))})
    return render({"predictions": [{name: one[row] for name, one in values.items()} for row in range(rows)]})


def classify_answer(outputs: Block) -> bytes:
    """Return the answer to a classify request: label and score of each class; "" or 0 for what the model lacks."""
    labels, scores = outputs.get(CLASSES), outputs.get(SCORES)
    if labels is None and scores is not None:
        labels = np.full(scores.shape, "", dtype=object)
    if scores is None and labels is not None:
        scores = np.zeros(labels.shape, dtype=np.float32)
    if labels is None or scores is None or labels.shape != scores.shape:
        raise BadInput("Tensors class and score should match in dim_size(1).")
    return render({"results": [list(map(_class, *pair)) for pair in zip(labels, scores, strict=True)]})


def regress_answer(outputs: Block) -> bytes:
    """Return the answer to a regress request: one number an example."""
    return render({"results": outputs[OUTPUTS].reshape(-1)})


def _class(label: str, score: np.float32) -> list[Any]:
    return [label, score]


def _values(name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any] | list[Any]:
    """Return numbers as an array, text as lists."""
    if values.dtype.kind != "O":
        return np.ascontiguousarray(values)
    texts: list[Any] = values.tolist()
    return _as_base64(texts) if name.endswith(_BYTES_SUFFIX) else texts


def _as_base64(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_base64(one) for one in value]
    return {"b64": b64encode(value.encode()).decode("ascii")}
