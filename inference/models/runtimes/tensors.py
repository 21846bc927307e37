"""What all runtimes ask of a model's tensors: a free row dimension, dtypes that JSON can carry, rows in order."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import ModelError, PredictionFailed
from inference.schema import DType, TensorSpec

#: what makes the rows free in most libraries
_FREE_ROWS = "export it with None there (PyTorch: a torch.export.Dim)"


class MisshapenOutput(PredictionFailed):
    """Raised when an output has a form that no row can be blamed for: such a version is never served."""


def row_spec(
    folder: Path, kind: str, name: str, dtype: str, shape: Sequence[int | None], *, free_rows: str = _FREE_ROWS
) -> TensorSpec:
    """Return a tensor's dtype and the shape of one row. `kind`: input or output; None: a dimension of unknown size.

    `free_rows`: how the author of the model makes the rows free.

    Raises:
        ModelError: it has no free row dimension, or a dtype that numpy and JSON cannot carry.
    """
    if not shape:
        raise ModelError(f"{folder}: {kind} {name!r} is a scalar without a row dimension", field=name)
    rows, *sizes = shape
    if rows is not None:
        raise ModelError(
            f"{folder}: {kind} {name!r} has a fixed row dimension of {rows}: {free_rows}, so that it takes any number "
            "of rows",
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
        raise ModelError(
            f"{folder}: {kind} {name!r} is {dtype}, which cannot be served: {_fix_of(kind, dtype)}", field=name
        ) from None


def _fix_of(kind: str, dtype: str) -> str:
    if dtype.startswith(("datetime64", "timedelta64")):
        return "have the model give text or a number in its place, in training too"
    if dtype.startswith("complex"):
        return f"have the model {'take' if kind == 'input' else 'give'} its real and imaginary parts as two {kind}s"
    where = "convert it to float32 at the end of the model" if kind == "output" else "have the model convert a float32"
    return f"{where} (PyTorch: .float(); else a cast), and export it again"


def as_served(array: npt.NDArray[Any], spec: TensorSpec, rows: int) -> npt.NDArray[Any]:
    """Return an output's values in the shape that the model gives them. Text becomes `str`.

    Raises:
        MisshapenOutput: it has another number of rows than went in, or its rows differ in length.
    """
    if array.ndim == 0 or len(array) != rows:
        raise MisshapenOutput(f"output {spec.name!r} has shape {list(array.shape)} for {rows} rows of input")
    if array.dtype.kind not in "OSUT":
        return array
    values = array.ravel().tolist() if array.dtype.kind == "O" else array.astype(object).ravel().tolist()
    if any(isinstance(value, np.ndarray | list | tuple) for value in values):
        raise MisshapenOutput(
            f"output {spec.name!r} is ragged, its rows differ in length: export it dense, padded to one length"
        )
    if spec.dtype is not DType.STRING and not any(isinstance(value, str | bytes) for value in values):
        return _as_numbers(array, spec)
    decoded = np.empty(len(values), dtype=object)
    decoded[:] = [_as_text(value, spec) for value in values]
    return decoded.reshape(array.shape)


def plain_numbers(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array of Python's own numbers as one of numpy's, with NaN for None; any other as it is."""
    values = array.ravel().tolist() if array.dtype.kind == "O" else []
    if not values or not all(value is None or isinstance(value, bool | int | float | Decimal) for value in values):
        return array
    odd = any(value is None or isinstance(value, Decimal) for value in values)
    numbers = np.array(values, dtype=np.float64) if odd else np.array(values)
    return numbers.reshape(array.shape)


def _as_text(value: Any, spec: TensorSpec) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str | bool | int | float):
        if value != value:
            raise PredictionFailed(f"output {spec.name!r} is missing: the model gives NaN for the row")
        return str(value)
    if value is None:
        raise PredictionFailed(f"output {spec.name!r} is missing: the model gives None for the row")
    raise PredictionFailed(
        f"output {spec.name!r} is a {type(value).__name__}, which is neither text nor a number: have the model give "
        "one of these, or an array of numbers, for each row"
    )


def _as_numbers(array: npt.NDArray[Any], spec: TensorSpec) -> npt.NDArray[Any]:
    """Return Python's own numbers as those of the declared dtype; None is NaN."""
    try:
        return array.astype(spec.dtype.numpy)
    except (TypeError, ValueError, OverflowError) as error:
        raise PredictionFailed(f"output {spec.name!r} is no {spec.dtype}: {error}") from error
