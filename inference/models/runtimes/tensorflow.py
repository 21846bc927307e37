"""TensorFlow SavedModels, called by signature. The only file that imports tensorflow."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import ModelError, ModelOutOfMemory, PredictionFailed, SettingsError
from inference.schema import Block, DType, Signature, TensorSpec, rows_in

# read when the library is loaded: errors only, else every process greets with pages of notes
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

_DEFAULT_SIGNATURE = "serving_default"
#: what the lines around the message of a graph error begin with
_FRAME_LINES = ("Graph execution error", "Detected at node", "<stack", "File ", "[[", "(")


class TensorFlowRuntime:
    """A SavedModel in memory.

    The signature is called directly: one row takes 0.5 ms where Keras' `predict` takes 80.
    """

    def __init__(self, folder: Path) -> None:
        try:
            # the signature holds its variables weakly: the object must live as long as it
            self._model = tf.saved_model.load(str(folder))
        except Exception as error:
            raise ModelError(
                f"{folder} cannot be loaded as a SavedModel: {_telling_line(error)}", field="path"
            ) from error
        self._function = _serving_signature(self._model, folder)
        # by name: a signature has no order of its own; that of its protobuf map differs between processes
        inputs = dict(sorted(self._function.structured_input_signature[1].items()))
        outputs = dict(sorted(self._function.structured_outputs.items()))
        self._inputs = {name: _spec(folder, "input", name, tensor) for name, tensor in inputs.items()}
        self._outputs = {name: _spec(folder, "output", name, tensor) for name, tensor in outputs.items()}
        self._order = list(self._function.function_type.parameters)
        self.device = _device()
        self.signature = Signature(tuple(self._inputs.values()), tuple(map(_served, self._outputs.values())))

    def predict(self, inputs: Block) -> Block:
        """Return the outputs by name, a trailing dimension of 1 dropped, rows in the order of the inputs.

        Raises:
            PredictionFailed: the model raised, or gave another number of rows.
            ModelOutOfMemory: so many rows do not fit into the device's memory.
        """
        rows = rows_in(inputs)
        try:
            tensors = self._call(
                {name: tf.convert_to_tensor(inputs[name], dtype=_tf_dtype(spec)) for name, spec in self._inputs.items()}
            )
        except tf.errors.ResourceExhaustedError as error:
            raise ModelOutOfMemory(f"{rows} rows do not fit into memory: {_telling_line(error)}") from error
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise PredictionFailed(f"the model failed: {_telling_line(error)}") from error
        return {spec.name: _array(tensors[spec.name], spec, rows) for spec in self._outputs.values()}

    def _call(self, tensors: dict[str, Any]) -> Any:
        # what calling the signature does, without binding the arguments by Python's `inspect` each time, which takes
        # as long as a small model (164 µs a call against 89)
        function = self._function
        flat = function.inference_fn.call_flat(*(tensors[name] for name in self._order), *function.captured_inputs)
        return function.function_type.pack_output(flat)


def prepare_devices(*, use_gpus: bool, gpu_memory_share: float | None) -> list[str]:
    """Set up the GPUs that this process sees; must run before anything else touches TensorFlow's devices."""
    gpus = tf.config.list_physical_devices("GPU")
    if not use_gpus:
        tf.config.set_visible_devices([], "GPU")
        return []
    sizes = _gpu_memory_mib() if gpus and gpu_memory_share is not None else []
    for index, gpu in enumerate(gpus):
        if gpu_memory_share is None:
            tf.config.experimental.set_memory_growth(gpu, True)
        else:
            limit = tf.config.LogicalDeviceConfiguration(memory_limit=int(sizes[index] * gpu_memory_share))
            tf.config.set_logical_device_configuration(gpu, [limit])
    return [gpu.name for gpu in gpus]


def _device() -> str:
    """Return the name of the first GPU that this process uses, else the number of processors."""
    for gpu in tf.config.get_visible_devices("GPU"):
        return str(tf.config.experimental.get_device_details(gpu).get("device_name", "gpu"))
    return f"cpu-{os.cpu_count()}"


def _gpu_memory_mib() -> list[int]:
    """Return the memory of each GPU that this process sees, in its order."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        sizes: list[int] = []
        for one in visible.split(",") if visible else [None]:
            only = ["-i", one.strip()] if one else []
            # the driver's own tool; every argument is ours or the operator's
            output = subprocess.run([*command, *only], capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
            sizes.extend(int(line) for line in output.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise SettingsError(
            f"gpu_memory_share needs nvidia-smi to tell the GPU's memory ({error}): install it or unset this",
            field="workers.gpu_memory_share",
        ) from error
    return sizes


def _serving_signature(model: Any, folder: Path) -> Any:
    signatures = getattr(model, "signatures", {})
    names = [name for name in signatures if not name.startswith("__")]
    if _DEFAULT_SIGNATURE in names:
        function = signatures[_DEFAULT_SIGNATURE]
    elif len(names) == 1:
        function = signatures[names[0]]
    else:
        found = ", ".join(sorted(names)) or "none"
        raise ModelError(
            f"{folder} has no signature {_DEFAULT_SIGNATURE!r} (found: {found}): "
            "export it with model.export(path), or pass signatures= to tf.saved_model.save",
            field="path",
        )
    if not isinstance(function.structured_outputs, dict) or not function.structured_outputs:
        raise ModelError(f"{folder}: its signature gives no named outputs", field="path")
    return function


def _spec(folder: Path, kind: str, name: str, tensor: Any) -> TensorSpec:
    """Return a tensor's row shape and dtype.

    Raises:
        ModelError: it has no free row dimension, or a dtype that numpy and JSON cannot carry.
    """
    if not hasattr(tensor, "shape") or not hasattr(tensor, "dtype") or tensor.shape.rank is None:
        raise ModelError(f"{folder}: {kind} {name!r} is no plain tensor of known rank", field=name)
    if tensor.shape.rank == 0:
        raise ModelError(f"{folder}: {kind} {name!r} is a scalar without a row dimension", field=name)
    rows, *sizes = tensor.shape.as_list()
    if rows is not None:
        raise ModelError(
            f"{folder}: {kind} {name!r} has a fixed row dimension of {rows}: export it with None there, "
            "so that it takes any number of rows",
            field=name,
        )
    try:
        dtype = DType(tensor.dtype.name)
    except ValueError:
        raise ModelError(
            f"{folder}: {kind} {name!r} is {tensor.dtype.name}, which cannot be served", field=name
        ) from None
    return TensorSpec(name, dtype, tuple(-1 if size is None else size for size in sizes))


def _served(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.dtype, spec.shape[:-1]) if spec.shape[-1:] == (1,) else spec


def _tf_dtype(spec: TensorSpec) -> Any:
    return tf.string if spec.dtype is DType.STRING else tf.as_dtype(spec.dtype.value)


def _array(tensor: Any, spec: TensorSpec, rows: int) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.numpy()
    if array.ndim == 0 or len(array) != rows:
        raise PredictionFailed(f"output {spec.name!r} has shape {list(array.shape)} for {rows} rows of input")
    if spec.shape[-1:] == (1,):
        array = array[..., 0]
    if spec.dtype is not DType.STRING:
        return array.astype(spec.dtype.numpy, copy=False)
    text = [value.decode("utf-8", "replace") for value in array.ravel()]
    decoded = np.empty(len(text), dtype=object)
    decoded[:] = text
    return decoded.reshape(array.shape)


def _telling_line(error: BaseException) -> str:
    """Return the line of a TensorFlow error that tells what is wrong, rather than where in the graph."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(_FRAME_LINES)]
    return (telling[0] if telling else type(error).__name__)[:300]
