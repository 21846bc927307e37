"""ONNX models by ONNX Runtime. The only file that imports onnxruntime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from inference.errors import ModelError
from inference.features import FeatureContract
from inference.gpus import gpu_use
from inference.models.runtimes.runtime import (
    LoadOptions,
    as_served,
    cpu_name,
    failed_call,
    gpu_memory_mib,
    one_line,
    row_spec,
)
from inference.schema import Block, Signature, TensorSpec, rows_in

_CUDA = "CUDAExecutionProvider"
#: its error classes have no common base class
_FAILURES = (
    errors.EPFail, errors.EngineError, errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf,
    errors.NoModel, errors.NoSuchFile, errors.NotFound, errors.NotImplemented, errors.RuntimeException,
    ValueError, TypeError, RuntimeError,
)  # fmt: skip
_OUT_OF_MEMORY = ("failed to allocate memory", "out of memory", "bad allocation", "bad_alloc", "available memory of")
#: errors only: its warnings are for authors of models
_LOG_ERRORS = 3
_FREE_ROWS = "give the dimension a name (skl2onnx: FloatTensorType([None, n]), else onnx.tools.update_model_dims)"
#: ONNX's name of an element type → numpy's
_ELEMENTS = {"float": "float32", "double": "float64"}


def load(file: Path, options: LoadOptions, _: FeatureContract | None) -> OnnxRuntime:
    """Load the model in `file`, onto the GPU if the installed build can use one."""
    return OnnxRuntime(file, options.gpu_memory_share)


class OnnxRuntime:
    """An ONNX model in memory."""

    def __init__(self, file: Path, gpu_memory_share: float | None = None) -> None:
        session_options = ort.SessionOptions()
        session_options.log_severity_level = _LOG_ERRORS
        try:
            self._session = ort.InferenceSession(str(file), session_options, providers=_providers(gpu_memory_share))
        except _FAILURES as error:
            raise ModelError(f"{file} cannot be loaded as an ONNX model: {one_line(error)}", field="path") from error
        self._inputs = tuple(_spec(file, "input", tensor) for tensor in self._session.get_inputs())
        self._outputs = tuple(_spec(file, "output", tensor) for tensor in self._session.get_outputs())
        self._names = [spec.name for spec in self._outputs]
        self.device = _gpu_name() if _CUDA in self._session.get_providers() else cpu_name()
        self.signature = Signature.of_model(self._inputs, self._outputs)

    def predict(self, inputs: Block) -> Block:
        """Return the outputs by name in the model's own shapes, rows in the order of the inputs.

        Raises:
            PredictionFailed: the model raised, or gave another number of rows.
            ModelOutOfMemory: so many rows do not fit into the device's memory.
        """
        rows = rows_in(inputs)
        try:
            arrays = self._session.run(self._names, {spec.name: inputs[spec.name] for spec in self._inputs})
        except MemoryError as error:
            raise failed_call(rows, "", out_of_memory=True) from error
        except _FAILURES as error:
            line = one_line(error)
            full = any(words in line.lower() for words in _OUT_OF_MEMORY)
            raise failed_call(rows, line, out_of_memory=full) from error
        return {spec.name: as_served(array, spec, rows) for spec, array in zip(self._outputs, arrays, strict=True)}


def _providers(gpu_memory_share: float | None) -> list[Any]:
    """Return the execution providers in order of preference."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if _CUDA not in ort.get_available_providers() or hidden:
        return ["CPUExecutionProvider"]
    ort.preload_dlls()  # the loader does not find CUDA's libraries in wheels
    limits: dict[str, Any] = {}
    if gpu_memory_share is not None:
        limits["gpu_mem_limit"] = int(gpu_memory_mib()[0] * gpu_memory_share) << 20
    return [(_CUDA, limits), "CPUExecutionProvider"]


def _gpu_name() -> str:
    return next((gpu.name for gpu in gpu_use()), "gpu")


def _spec(file: Path, kind: str, tensor: Any) -> TensorSpec:
    if not tensor.type.startswith("tensor("):
        raise ModelError(
            f"{file}: {kind} {tensor.name!r} is {tensor.type}, no plain tensor: convert the model so that it gives "
            "tensors (skl2onnx: options={'zipmap': False})",
            field=tensor.name,
        )
    element = tensor.type.removeprefix("tensor(").removesuffix(")")
    # a free dimension is a name, or None
    shape = [size if isinstance(size, int) else None for size in tensor.shape]
    if not shape and kind == "output":  # unknown shape, or a scalar: the first answer shows which
        shape = [None]
    return row_spec(file, kind, tensor.name, _ELEMENTS.get(element, element), shape, free_rows=_FREE_ROWS)
