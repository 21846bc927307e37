"""The form of a model's outputs: what it declares, what it answers, and which of the two is served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import ForecacheError, ModelError, ModelOutOfMemory, PredictionFailed
from inference.models.runtimes import Runtime
from inference.models.runtimes.runtime import one_line
from inference.schema import Block, DType, Signature, TensorSpec, rows_in


def call(runtime: Runtime, inputs: Block) -> Block:
    """Return what a model answers, in its own shapes. Whatever a library raises becomes an error of these rows.

    Raises:
        PredictionFailed: the model raised, or its answer cannot be read.
        ModelOutOfMemory: so many rows do not fit into memory.
        ModelUnavailable: an engine elsewhere did not answer.
    """
    try:
        return runtime.predict(inputs)
    except ForecacheError:
        raise
    except MemoryError as error:
        raise ModelOutOfMemory(f"{rows_in(inputs)} rows do not fit into memory") from error
    except SystemExit as error:
        if type(error) is not SystemExit:  # a subclass is the worker's own wish to end
            raise
        raise PredictionFailed(f"the model failed: it calls sys.exit({error.code!r})") from error
    except Exception as error:
        raise PredictionFailed(f"the model failed: {type(error).__name__}: {one_line(error)}") from error


def served(answer: Block, signature: Signature) -> Block:
    """Return a model's answer as it is served: a trailing dimension of 1 is dropped where the signature says so.

    Raises:
        PredictionFailed: an output has another shape or another kind of values than the signature says.
    """
    return {spec.name: _served(answer[spec.name], spec, spec.name in signature.columns) for spec in signature.outputs}


def observed(signature: Signature, answers: Sequence[Block]) -> Signature:
    """Return the signature with the outputs as they are in these answers, where those contradict what is declared.

    Without answers it is the declared one. A dimension that differs between answers is free.

    Raises:
        ModelError: an output has another rank from one answer to the next, or values that cannot be served.
    """
    outputs = tuple(_observed(spec, [answer[spec.name] for answer in answers]) for spec in signature.model_outputs)
    return signature if outputs == signature.model_outputs else Signature.of_model(signature.inputs, outputs)


def _served(array: npt.NDArray[Any], spec: TensorSpec, is_column: bool) -> npt.NDArray[Any]:
    shape = array.shape[1:]
    if is_column and shape[-1:] == (1,) and _fits(shape[:-1], spec.shape):
        array = array[..., 0]
    elif not _fits(shape, spec.shape):
        raise PredictionFailed(
            f"output {spec.name!r} is declared {_values(spec.shape)} a row, and the model gives {_values(shape)}"
        )
    if array.dtype == spec.dtype.numpy:
        return array
    if not _holds(spec.dtype, array):
        raise PredictionFailed(f"output {spec.name!r} is declared {spec.dtype}, and the model gives {_kind(array)}")
    return array.astype(spec.dtype.numpy)


def _observed(spec: TensorSpec, arrays: Sequence[npt.NDArray[Any]]) -> TensorSpec:
    shapes = {array.shape[1:] for array in arrays}
    if len({len(shape) for shape in shapes}) > 1:
        told = " and ".join(_values(shape) for shape in sorted(shapes))
        raise ModelError(f"output {spec.name!r} gives {told} a row: export it with one rank", field=spec.name)
    if not all(_fits(shape, spec.shape) for shape in shapes):
        sizes = [set(of_dimension) for of_dimension in zip(*shapes, strict=True)]
        spec = replace(spec, shape=tuple(size.pop() if len(size) == 1 else -1 for size in sizes))
    unfit = next((array for array in arrays if not _holds(spec.dtype, array)), None)
    return spec if unfit is None else replace(spec, dtype=_dtype(spec, unfit))


def _fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    if shape == declared:
        return True
    return len(shape) == len(declared) and all(own in (size, -1) for size, own in zip(shape, declared, strict=True))


def _holds(dtype: DType, array: npt.NDArray[Any]) -> bool:
    if dtype is DType.STRING or array.dtype.kind == "O":
        return dtype is DType.STRING and array.dtype.kind == "O"
    return bool(np.can_cast(array.dtype, dtype.numpy, "same_kind"))


def _dtype(spec: TensorSpec, array: npt.NDArray[Any]) -> DType:
    try:
        return DType(_kind(array))
    except ValueError:
        raise ModelError(f"output {spec.name!r} is {array.dtype}, which cannot be served", field=spec.name) from None


def _kind(array: npt.NDArray[Any]) -> str:
    return DType.STRING.value if array.dtype.kind == "O" else array.dtype.name


def _values(shape: tuple[int, ...]) -> str:
    return "1 value" if not shape else f"[{', '.join('any' if size < 0 else str(size) for size in shape)}] values"
