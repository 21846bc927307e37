"""Triton's classification extension: an output's best classes as texts instead of its numbers.

Specification: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import BadInput
from inference.protocols.tensors import objects

#: texts in one answer: each is written by itself
MOST_CLASSES = 256 * 1024


def best_classes(values: npt.NDArray[Any], most: int, labels: Sequence[str] = ()) -> npt.NDArray[Any]:
    """Return the best classes of each row, best first, as `VALUE:INDEX`, or `VALUE:INDEX:LABEL`.

    `values`: of rows; all values of a row are its classes. `most`: of a row. `labels`: by index, used if there is one
    for each class. NaN comes last.

    Raises:
        BadInput: that would be too many texts for an answer.
    """
    rows = values.reshape(len(values), -1) if values.size else values.reshape(len(values), 0)
    most = min(most, rows.shape[1])
    if rows.shape[0] * most > MOST_CLASSES:
        raise BadInput(
            f"{most} classes of {rows.shape[0]} rows: an answer has at most {MOST_CLASSES}, ask for fewer classes or "
            "rows"
        )
    ranked = np.where(np.isnan(rows), -np.inf, rows) if rows.dtype.kind == "f" else rows
    # the last of the reversed order, so that the first of equals comes first
    best = (rows.shape[1] - 1 - np.argsort(ranked[:, ::-1], axis=1, kind="stable")[:, ::-1])[:, :most]
    named = [f":{label}" for label in labels] if len(labels) == rows.shape[1] else [""] * rows.shape[1]
    shown = "{:f}" if rows.dtype.kind == "f" else "{}"
    found = np.take_along_axis(rows, best, axis=1)
    texts = [
        f"{shown.format(value)}:{index}{named[index]}"
        for value, index in zip(found.ravel().tolist(), best.ravel().tolist(), strict=True)
    ]
    return objects(texts).reshape(rows.shape[0], most)
