"""What all runtimes ask of a model's tensors: a free row dimension, dtypes that JSON can carry, rows in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import ModelError, PredictionFailed
from inference.schema import DType, TensorSpec


def row_spec(folder: Path, kind: str, name: str, dtype: str, shape: Sequence[int | None]) -> TensorSpec:
    """Return a tensor's dtype and the shape of one row. `kind`: input or output; None: a dimension of unknown size.

    Raises:
        ModelError: it has no free row dimension, or a dtype that numpy and JSON cannot carry.
    """
    if not shape:
        raise ModelError(f"{folder}: {kind} {name!r} is a scalar without a row dimension", field=name)
    rows, *sizes = shape
    if rows is not None:
        raise ModelError(
            f"{folder}: {kind} {name!r} has a fixed row dimension of {rows}: export it with None there "
            "(PyTorch: a torch.export.Dim), so that it takes any number of rows",
            field=name,
        )
    return TensorSpec(name, dtype_of(folder, kind, name, dtype), tuple(-1 if size is None else size for size in sizes))


def dtype_of(folder: Path, kind: str, name: str, dtype: str) -> DType:
    """Return a dtype by numpy's name for it.

    Raises:
        ModelError: numpy and JSON cannot carry it.
    """
    try:
        return DType(dtype)
    except ValueError:
        raise ModelError(f"{folder}: {kind} {name!r} is {dtype}, which cannot be served", field=name) from None


def as_served(array: npt.NDArray[Any], spec: TensorSpec, rows: int) -> npt.NDArray[Any]:
    """Return an output's values as they are served; `spec`: as the model declares it. Text becomes `str`.

    Raises:
        PredictionFailed: it has another number of rows than went in.
    """
    if array.ndim == 0 or len(array) != rows:
        raise PredictionFailed(f"output {spec.name!r} has shape {list(array.shape)} for {rows} rows of input")
    if spec.shape[-1:] == (1,):
        array = array[..., 0]
    if spec.dtype is not DType.STRING:
        return array.astype(spec.dtype.numpy, copy=False)
    text = [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in array.ravel()]
    decoded = np.empty(len(text), dtype=object)
    decoded[:] = text
    return decoded.reshape(array.shape)
