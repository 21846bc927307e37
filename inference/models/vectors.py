"""Which vectors are the same: what a model was fed, row by row, as a digest."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.schema import Block, rows_in

#: batch sizes change the last bits of float32 matrix products
RTOL, ATOL = 1e-5, 1e-6


def vector_hashes(inputs: Block) -> list[str]:
    """Return sixteen hex digits for each row of a model's inputs; the same bits give the same digits."""
    columns = [np.ascontiguousarray(values) for values in inputs.values()]
    # a row of a column of texts is a bare str
    return [_digest([np.asarray(column[row], column.dtype) for column in columns]) for row in range(rows_in(inputs))]


def answers_agree(one: Any, other: Any) -> bool:
    """Whether two predictions, as plain values, are the same but for rounding (relative 1e-5, absolute 1e-6)."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(answers_agree(one[name], other[name]) for name in one)
    first, second = np.array(one), np.array(other)
    if first.shape != second.shape:
        return False
    if first.dtype.kind in "iufb" and second.dtype.kind in "iufb":
        return bool(np.allclose(first, second, rtol=RTOL, atol=ATOL, equal_nan=True))
    return bool((first == second).all())


def _digest(values: list[npt.NDArray[Any]]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        digest.update(repr(value.tolist()).encode() if value.dtype.kind in "OUS" else value.tobytes())
    return digest.hexdigest()
