"""Keras 3 models, on TensorFlow, JAX or PyTorch: the one in `KERAS_BACKEND`, else the first that is installed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import ModelError
from inference.features import FeatureContract
from inference.models.runtimes.runtime import (
    LoadOptions,
    as_served,
    cpu_name,
    failed_call,
    one_line,
    row_spec,
    telling_line,
)
from inference.schema import Block, DType, Signature, TensorSpec, rows_in

BACKENDS = ("tensorflow", "torch", "jax")
_BACKEND = os.environ.get("KERAS_BACKEND") or next((name for name in BACKENDS if find_spec(name)), None)
if _BACKEND is None:
    raise ModelError(
        "Keras computes by TensorFlow, PyTorch or JAX, and none is installed: "
        "install forecache[tensorflow], forecache[torch] or forecache[jax] where workers run"
    )
if _BACKEND not in BACKENDS:
    raise ModelError(
        f"Keras' backend {_BACKEND!r} is not known here: set keras_backend under [workers], or KERAS_BACKEND, "
        f"to one of {', '.join(BACKENDS)}"
    )
if not find_spec(_BACKEND):
    raise ModelError(
        f"Keras is to compute by {_BACKEND} (keras_backend, or KERAS_BACKEND), which is not installed: "
        f"install forecache[{_BACKEND}] where workers run"
    )
# read when the library is loaded
os.environ["KERAS_BACKEND"] = _BACKEND
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# JAX would take three quarters of a GPU at once
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import keras  # noqa: E402 - it reads these variables

#: inputs by name → outputs in order
_Call = Callable[[Block], list[npt.NDArray[Any]]]
#: model, the structure of its inputs, their specs → a call of it, and the dtypes of the outputs if the backend knows
#: them better than Keras, which takes looked-up text for integers
_Bind = Callable[[Any, Any, dict[str, TensorSpec]], tuple[_Call, list[str] | None]]
#: Keras' message about an unknown class or function
_FOREIGN = re.compile(r"Could not (?:locate|find|retrieve) (class|function|object) '(?:\w+>)?(\w+)'")
#: Keras' words for files outside of the model
_OUTSIDE = re.compile(r"vocabulary file|TFSMLayer|external Dataset|ExternalLink|virtual Dataset")
_REASON = "Exception encountered: "
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory", "OOM when allocating")


def load(file: Path, options: LoadOptions, _: FeatureContract | None) -> KerasRuntime:
    """Load the model in `file` without running its author's code, onto the GPU if the backend can use one."""
    try:
        device, bind = _of_backend(options)
    except ImportError as error:
        raise ModelError(f"Keras is to compute by {_BACKEND}, which cannot be imported: {error}") from error
    return KerasRuntime(file, device, bind)


class KerasRuntime:
    """A functional or sequential model in memory. A call of it costs a fraction of Keras' own `predict`."""

    def __init__(self, file: Path, device: str, bind: _Bind) -> None:
        try:
            model = keras.saving.load_model(file, compile=False, safe_mode=True)
        except Exception as error:
            raise ModelError(f"{file} cannot be loaded as a Keras model: {_why_not(error)}", field="path") from error
        inputs = getattr(model, "inputs", None)
        if not inputs:
            raise ModelError(
                f"{file} holds a {type(model).__name__}, which does not say what it takes: build it by the functional "
                "interface, or export it as a SavedModel with model.export(path)",
                field="path",
            )
        if isinstance(model, keras.Sequential):
            structure, given, names = inputs[0], model.outputs[0], [model.layers[-1].name]
        else:
            structure, given, names = model.input, model.output, list(model.output_names)
        taken = _named(structure, [one.name for one in inputs], file)
        self._inputs = {
            name: row_spec(file, "input", name, str(tensor.dtype), tensor.shape) for name, tensor in taken.items()
        }
        _check_text(self._inputs, file)
        self._call, dtypes = bind(model, structure, self._inputs)
        outputs = _named(given, names, file)
        dtypes = dtypes or [str(tensor.dtype) for tensor in outputs.values()]
        self._outputs = {
            name: row_spec(file, "output", name, dtype, tensor.shape)
            for (name, tensor), dtype in zip(outputs.items(), dtypes, strict=True)
        }
        self.device = device
        self.signature = Signature.of_model(self._inputs.values(), self._outputs.values())

    def predict(self, inputs: Block) -> Block:
        """Return the outputs by name in the model's own shapes, rows in the order of the inputs.

        Raises:
            PredictionFailed: the model raised, or gave another number of rows.
            ModelOutOfMemory: so many rows do not fit into the device's memory.
        """
        rows = rows_in(inputs)
        try:
            arrays = self._call({name: inputs[name] for name in self._inputs})
        except Exception as error:  # each backend has its own
            full = isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)
            raise failed_call(rows, telling_line(error), out_of_memory=full) from error
        given = zip(self._outputs.values(), arrays, strict=True)
        return {spec.name: as_served(array, spec, rows) for spec, array in given}


def _of_backend(options: LoadOptions) -> tuple[str, _Bind]:
    """Return the device of the chosen backend, and the function that binds a model to it."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        from inference.models.runtimes import tensorflow

        tensorflow.prepare_gpus(options.gpu_memory_share)
        return tensorflow.device(), _by_tensorflow
    if backend == "torch":
        from inference.models.runtimes import pytorch

        pytorch.prepare_gpus(options.gpu_memory_share)
        return pytorch.device(), _by_torch
    if backend == "jax":
        return _jax_device(options.gpu_memory_share), _by_jax
    raise ModelError(f"Keras computes by {backend}, which is not known here")  # another module imported Keras first


def _why_not(error: Exception) -> str:
    """Return why a file cannot be loaded, and the fix."""
    text = str(error)
    foreign = _FOREIGN.search(text)
    if foreign:
        return (
            f"it needs the {foreign[1]} {foreign[2]!r}, which is not part of Keras and not in the file: export the "
            "model as a SavedModel with model.export(path), which holds all that it computes"
        )
    outside = _OUTSIDE.search(text)
    if outside:
        return (
            f"it reads what lies outside of it ({outside[0]}), and so could read any file of this machine: save the "
            "model with all that it needs, or export it as a SavedModel with model.export(path)"
        )
    if "safe_mode" in text or "enable_unsafe_deserialization" in text:
        return (
            "it holds a Lambda layer, whose code is not run when it is loaded: export the model as a SavedModel with "
            "model.export(path), or build it of Keras' own layers"
        )
    return one_line(Exception(text.rpartition(_REASON)[2]))


def _check_text(inputs: dict[str, TensorSpec], file: Path) -> None:
    """Refuse inputs of text if the backend has no text."""
    backend = keras.backend.backend()
    text = next((spec.name for spec in inputs.values() if spec.dtype is DType.STRING), None)
    if text is not None and backend != "tensorflow":
        raise ModelError(
            f"{file}: input {text!r} is text, which only TensorFlow has, and Keras computes by {backend}: set "
            'keras_backend = "tensorflow" under [workers]',
            field=text,
        )


def _arranged(structure: Any, tensors: dict[str, Any]) -> Any:
    """Return tensors in the structure of the model's inputs: a dict, a list, or a single tensor."""
    if isinstance(structure, dict):
        return tensors
    return list(tensors.values()) if isinstance(structure, list | tuple) else next(iter(tensors.values()))


def _flat(answer: Any, model: Any) -> list[Any]:
    """Return the outputs in the model's declared order. A dict may have another order."""
    if isinstance(answer, dict):
        return [answer[name] for name in model.output]
    return list(answer) if isinstance(answer, list | tuple) else [answer]


def _by_tensorflow(model: Any, structure: Any, inputs: dict[str, TensorSpec]) -> tuple[_Call, list[str] | None]:
    import tensorflow as tf

    def dtype(spec: TensorSpec) -> Any:
        return tf.string if spec.dtype is DType.STRING else tf.as_dtype(spec.dtype.value)

    def shape(spec: TensorSpec) -> list[int | None]:
        return [None, *(None if size < 0 else size for size in spec.shape)]

    def call(tensors: dict[str, Any]) -> list[Any]:
        return _flat(model(_arranged(structure, tensors), training=False), model)

    # traced once, for any number of rows
    signature = [{name: tf.TensorSpec(shape(spec), dtype(spec), name=name) for name, spec in inputs.items()}]
    traced = tf.function(call, input_signature=signature).get_concrete_function()
    dtypes = [tensor.dtype.name for tensor in traced.structured_outputs]

    def compute(arrays: Block) -> list[npt.NDArray[Any]]:
        tensors = {name: tf.convert_to_tensor(array, dtype(inputs[name])) for name, array in arrays.items()}
        return [tensor.numpy() for tensor in traced(tensors)]

    return compute, dtypes


def _by_torch(model: Any, structure: Any, _: dict[str, TensorSpec]) -> tuple[_Call, list[str] | None]:
    import torch

    def compute(arrays: Block) -> list[npt.NDArray[Any]]:
        with torch.inference_mode():
            # torch shares the memory, and warns if it is read-only
            tensors = {name: keras.ops.convert_to_tensor(np.require(a, requirements="W")) for name, a in arrays.items()}
            answer = model(_arranged(structure, tensors), training=False)
            return [one.detach().cpu().numpy() for one in _flat(answer, model)]

    return compute, None


def _by_jax(model: Any, structure: Any, _: dict[str, TensorSpec]) -> tuple[_Call, list[str] | None]:
    """Return a compiled call. JAX compiles anew for each number of rows, so it pads rows to powers of two.

    The first call of a size compiles the smaller sizes too, so that after a warm-up no request waits for the compiler.
    """
    import jax

    def call(trainable: Any, fixed: Any, tensors: dict[str, Any]) -> list[Any]:
        answer, _ = model.stateless_call(trainable, fixed, _arranged(structure, tensors), training=False)
        return _flat(answer, model)

    compiled = jax.jit(call)
    trainable = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]
    known: set[int] = set()

    def compute(arrays: Block) -> list[npt.NDArray[Any]]:
        rows = rows_in(arrays)
        size = 1 << (rows - 1).bit_length()
        for smaller in (1 << bits for bits in range(size.bit_length() - 1)):
            if size not in known and smaller not in known:
                compiled(trainable, fixed, {name: _with_rows(array, smaller) for name, array in arrays.items()})
                known.add(smaller)
        known.add(size)
        answer = compiled(trainable, fixed, {name: _with_rows(array, size) for name, array in arrays.items()})
        return [np.asarray(one)[:rows] for one in answer]

    return compute, None


def _with_rows(array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """Return `rows` rows, with the last one repeated if there are too few."""
    missing = max(0, rows - len(array))
    return array[:rows] if not missing else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def _jax_device(gpu_memory_share: float | None) -> str:
    if gpu_memory_share is not None:  # JAX reads it when it first uses the device
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(gpu_memory_share))
    import jax

    first = jax.devices()[0]
    return cpu_name() if first.platform == "cpu" else str(first.device_kind)


def _named(structure: Any, names: list[str], file: Path) -> dict[str, Any]:
    """Return the tensors of a structure by name: the keys of a dict, else Keras' names."""
    tensors = list(structure.values()) if isinstance(structure, dict) else structure
    tensors = list(tensors) if isinstance(tensors, list | tuple) else [tensors]
    if not all(isinstance(tensor, keras.KerasTensor) for tensor in tensors):
        raise ModelError(f"{file} takes or gives nested tensors, which cannot be served", field="path")
    return dict(zip(structure if isinstance(structure, dict) else names, tensors, strict=True))
